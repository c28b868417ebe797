"""What the experiments share: trained runs, the trained baseline, and where results go."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastcsm import training
from fastcsm.atomic import atomic_file
from fastcsm.bench.baselines.masked import parameters
from fastcsm.bench.harness.runner import circumstances
from fastcsm.data import Dataset
from fastcsm.evaluation.likelihood import Progress
from fastcsm.nn import MixtureMADE
from fastcsm.progress import Bar
from fastcsm.training.config import FRACTION, NON_NEGATIVE, POSITIVE, RunConfig, option
from fastcsm.training.recipes import RECIPES

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


class NoisyMixture(MixtureMADE):
    """A mixture MADE of rows with Gaussian noise of level ``sigma_min``."""

    def draw_noise(
        self, shape: Sequence[int], generator: Any = None, device: Any = None, dtype: Any = None
    ) -> tuple[Tensor, ...]:
        """z of x + sigma_min z, of the shape (B, D) of x."""
        return (torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype),)

    def loss(self, x: Tensor, generator: Any = None, *, noise: Any = None) -> Tensor:
        """-log q(x + sigma_min z), the mean over samples x (B, D), in nats."""
        (z,) = noise or self.draw_noise(x.shape, generator, x.device, x.dtype)
        return -self.log_prob(x + self.sigma_min * z).mean()


@dataclass(frozen=True)
class MixtureConfig(RunConfig):
    """The baseline, a :class:`NoisyMixture`, trained by likelihood with the options of any run."""

    model: ClassVar[str] = "mixture"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    hidden: tuple[int, ...] = option((512, 512), "model", "hidden widths of the MADE")
    components: int = option(10, "model", "logistics in each mixture", check=POSITIVE)
    dropout: float = option(0.0, "model", "dropout probability in the MADE", check=FRACTION)
    sigma: float = option(0.0, "model", "noise level of the rows", check=NON_NEGATIVE)

    @classmethod
    def beside(cls, config: RunConfig, **own: Any) -> MixtureConfig:
        """A mixture MADE that is trained as another model is: data, batches, optimiser, schedule, budget."""
        return cls(**{item.name: getattr(config, item.name) for item in fields(RunConfig)}, **own)

    def build(self, features: int) -> NoisyMixture:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            made = NoisyMixture(features, self.hidden, self.components, dropout=self.dropout)
        made.sigma_min = self.sigma
        return made


RECIPES[MixtureConfig.model] = MixtureConfig


def trained(config: RunConfig, data: Dataset, run: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a run, trained where it is not there or not finished, and what its training took.

    Minutes are those of the processor, a thread's share, which a busy machine takes from no rival.
    """

    def clock() -> float:
        return time.process_time() / torch.get_num_threads()

    summary = training.train(config, data, run, resume=run.exists(), quiet=True, clock=clock)
    model = training.load(run)
    taken = {key: summary[key] for key in ("steps", "seconds")}
    return model, taken | {"parameters": parameters(model)}


def width(features: int, least: int, count: int) -> int:
    """The first of the widths from ``least`` on, by 16, whose mixture MADE has no fewer parameters."""
    wide = itertools.count(least, 16)
    return next(w for w in wide if parameters(MixtureConfig(hidden=(w, w)).build(features)) >= count)


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
    with atomic_file(out.with_suffix(".json")) as file:
        file.write((json.dumps(circumstances() | results, indent=1) + "\n").encode())


class Table:
    """Rows of an experiment by name: of the kinds in ``only`` those made now, others as OUT.json keeps them.

    Args:
        out: results, without a suffix.
        only: kinds of rows.
    """

    def __init__(self, out: Path, only: Sequence[str]):
        file = out.with_suffix(".json")
        kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else {}
        self.rows: dict[str, dict[str, Any]] = {
            name: row for name, row in kept.items() if row["kind"] not in only
        }

    def add(self, kind: str, name: str, row: dict[str, Any]) -> None:
        """A row made now, with the date and the commit."""
        made = circumstances()
        self.rows[name] = row | {"kind": kind, "date": made["date"], "commit": made["versions"]["commit"]}

    def sorted(self, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The rows in the order of kinds."""
        return dict(sorted(self.rows.items(), key=lambda row: kinds.index(row[1]["kind"])))


def made(rows: dict[str, dict[str, Any]]) -> str:
    """By which commits the rows of a table were made, a sentence."""
    commits = sorted({(row["date"], row["commit"]) for row in rows.values()})
    return f"Rows were made by {', '.join(f'{commit} ({date})' for date, commit in commits)}."


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
    return Bar(title, unit="sample").to
