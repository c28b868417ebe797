"""What the experiments share: trained runs, the trained baseline, and where results go."""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcsm import training
from fastcsm.atomic import atomic_file
from fastcsm.bench.harness.measure import machine, versions
from fastcsm.data import Dataset
from fastcsm.evaluation.likelihood import Progress
from fastcsm.nn import ARCSM, MixtureMADE
from fastcsm.training import Config

#: Added to a seed for Gaussian noise, which must not repeat the dequantisation's random numbers.
_NOISE = 1_000_003
RESULTS = Path(__file__).resolve().parents[1] / "results" / "paper"


def arguments(description: str, name: str) -> argparse.ArgumentParser:
    """The options every experiment has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/paper") / name, help="folder of the trained runs"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / name, help="results, without a suffix")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def trained(config: Config, data: Dataset, run: Path) -> tuple[ARCSM, dict[str, Any]]:
    """The model of a run, trained where it is not there or not finished, and what its training took."""
    summary = training.train(config, data, run, resume=run.exists(), quiet=True)
    keys = ("steps", "seconds", "parameters")
    return training.load(run), {key: summary[key] for key in keys}


def fit_mixture(
    model: MixtureMADE,
    data: Dataset,
    config: Config,
    *,
    noise: float = 0.0,
    run: Path,
) -> tuple[MixtureMADE, dict[str, Any]]:
    """Train a mixture MADE by maximum likelihood of rows with Gaussian noise, as :func:`trained` trains.

    Batches, AdamW, schedule, clipping, averaged weights and the budget are those of ``config``, as in
    fastcsm.training. The result is kept in the folder ``run`` and reused.
    """
    file = run / "mixture.pt"
    average = copy.deepcopy(model).eval()
    if file.exists():
        saved = torch.load(file, weights_only=True)
        average.load_state_dict(saved["model"])
        return average, saved["training"]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    generator = torch.Generator().manual_seed(config.seed)
    rows, started, step = len(data.train), time.monotonic(), 0
    steps = config.steps or math.inf
    for indices in _batches(rows, config.batch_size, generator):
        used = step / steps
        if config.max_minutes is not None:
            used = max(used, (time.monotonic() - started) / (60 * config.max_minutes))
        if used >= 1:
            break
        rate = config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * used))
        for group in optimizer.param_groups:
            group["lr"] = rate if config.schedule == "cosine" else config.lr
        x = data.batch(indices, generator)
        optimizer.zero_grad(set_to_none=True)
        model.train()
        loss = -model.log_prob(x + noise * torch.randn(x.shape, generator=generator)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
        optimizer.step()
        weight = 1 - min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, weight)
        step += 1
    done = {
        "steps": step,
        "seconds": round(time.monotonic() - started, 1),
        "parameters": parameters(model),
    }
    run.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as handle:
        torch.save({"model": average.state_dict(), "training": done}, handle)
    return average, done


def _batches(rows: int, size: int, generator: torch.Generator) -> Iterable[Tensor]:
    """Endless batches: permutations laid end to end."""
    left = torch.empty(0, dtype=torch.int64)
    for _ in itertools.count():
        while len(left) < size:
            left = torch.cat([left, torch.randperm(rows, generator=generator)])
        yield left[:size]
        left = left[size:]


def parameters(model: torch.nn.Module) -> int:
    """Number of weights that training can change: entries outside a mask do not count."""
    count = 0
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if name == "weight" and hasattr(module, "in_degrees"):
                count += int((module.in_degrees <= module.out_degrees[:, None]).sum())
            else:
                count += value.numel()
    return count


def width(model: Callable[[int], torch.nn.Module], least: int, count: int) -> int:
    """The first of the widths from ``least`` on, by 16, of whose model there are no fewer parameters."""
    return next(width for width in itertools.count(least, 16) if parameters(model(width)) >= count)


def noisy(data: Dataset, sigma: float, repeats: int = 1, limit: int | None = None) -> Tensor:
    """Test rows in model space with noise, ``repeats`` independent draws of dequantisation and noise."""
    parts = []
    for seed in range(repeats):
        x = data.held_out("test", seed, limit)
        generator = torch.Generator().manual_seed(_NOISE + seed)
        parts.append(x + sigma * torch.randn(x.shape, generator=generator))
    return torch.cat(parts)


def mean_and_error(values: Tensor) -> dict[str, float]:
    values = values.double()
    return {"mean": values.mean().item(), "standard_error": values.std().item() / math.sqrt(len(values))}


def cell(value: dict[str, float] | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value['mean']:.{digits}f} ± {value['standard_error']:.{digits}f}"


def write(out: Path, results: dict[str, Any]) -> None:
    """OUT.json with the machine and the versions; ``python bench/publish.py`` makes docs/results.md of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    head = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    out.with_suffix(".json").write_text(json.dumps(head | results, indent=1) + "\n", encoding="utf-8")


def shrink(picture: Path, width: int = 1000) -> None:
    """Make a PNG file small enough to keep in the repository: that wide at most, of 64 colours."""
    from PIL import Image

    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)))
    image.quantize(64).save(picture, optimize=True)


def report(title: str) -> Progress:
    """Progress on standard error."""
    from fastcsm.progress import Bar

    return Bar(title, unit="sample").to
