"""The command line: ``fastcsm train | sample | evaluate | bench | info | demo``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import backends
from .config import PRESETS, Config
from .parser import parser, text_of

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .data import Transform
    from .nn import ARCSM

_RESUMABLE = (
    "epochs",
    "steps",
    "max_minutes",
    "patience",
    "finetune_steps",
    "log_every",
    "eval_every",
    "checkpoint_seconds",
)


_PICTURE_POINTS = 5000
#: Stream of the noise on held-out rows.
_NOISE = 4


class UsageError(ValueError):
    """A request that cannot be carried out, in one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a request that cannot be carried out, 130 for Ctrl-C."""
    from .training import Interrupted

    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _show_warning
    try:
        if arguments[:1] == ["bench"]:
            from .benchmark import main as bench

            return bench(arguments[1:])
        given = parser().parse_args(arguments)
        command = {"train": _train, "sample": _sample, "evaluate": _evaluate, "info": _info, "demo": _demo}
        with backends.backend(getattr(given, "backend", "auto")):
            return command[given.command](given)
    except Interrupted as stop:
        print(f"fastcsm: {stop}; go on with --resume", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("fastcsm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"fastcsm: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}: '{error.filename}'" if error.filename else error.strerror.lower()
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the device: try a smaller batch size"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"fastcsm: warning: {message}", file=sys.stderr)


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device is '{name}', expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device is '{name}', expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is None and "LOCAL_RANK" in os.environ:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if (device.index or 0) >= count:
            raise UsageError(
                f"device is '{device}', expected one of the {count} CUDA devices that torch sees here"
            )
        torch.cuda.set_device(device)
    return device


def _train(given: argparse.Namespace) -> int:
    from . import checkpoint, data, runs, training

    run, device = Path(given.out), _device(given.device)
    fields = [item.name for item in dataclasses.fields(Config)]
    explicit = {name: getattr(given, name) for name in fields if hasattr(given, name)}
    resume = given.resume
    if resume and "data" in explicit and runs.is_new(run):
        print(f"fastcsm: nothing to resume in '{run}', starting it", file=sys.stderr)
        resume = False
    if resume:
        config = _resumed(checkpoint.read(run, tensors=()).config, explicit)
    else:
        if not runs.is_new(run):
            raise UsageError(
                f"out '{run}' exists: give another folder, or --resume to go on with the run in it"
            )
        if "data" not in explicit:
            raise UsageError("data is not given, expected --data with a name or a file")
        config = Config(**(PRESETS[given.preset] | explicit))
    loaded = data.load(config.data, grey_levels=config.grey_levels, validation=config.validation)
    summary = training.train(config, loaded, run, device=device, resume=resume, quiet=given.quiet)
    if summary["run"] and not given.quiet:
        losses = f"loss {summary['loss']:.4f}" if summary["loss"] is not None else "no step to do"
        if summary["held_out"] is not None:
            losses += f", held out {summary['held_out']:.4f} per dimension"
        print(f"{run}: {summary['steps']} steps in {summary['seconds']:.1f} s, {losses}")
    return 0


def _resumed(config: Config, explicit: dict[str, Any]) -> Config:
    """The run's configuration with another budget; anything else must be as it was."""
    for name, value in explicit.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in _RESUMABLE and value != getattr(config, name):
            raise UsageError(
                f"{name} is {text_of(value)} but the run was started with {text_of(getattr(config, name))}: "
                f"expected only {', '.join(_RESUMABLE)} to differ when resuming"
            )
    return dataclasses.replace(config, **{k: v for k, v in explicit.items() if k in _RESUMABLE})


def _output(name: str, overwrite: bool, suffixes: tuple[str, ...]) -> Path:
    path = Path(name)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"out is '{name}', expected a file that ends in {' or '.join(suffixes)}")
    if path.exists() and not overwrite:
        raise UsageError(f"out '{name}' exists: give another file, or --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"out is '{name}', expected a file in an existing folder")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"out is '{name}', expected a folder that can be written to")
    return path


def _sample(given: argparse.Namespace) -> int:
    import numpy as np

    from . import checkpoint, plotting
    from .progress import Bar

    method = given.method
    if given.steps is not None or given.step_size is not None:
        if method not in (None, "langevin"):
            raise UsageError(f"steps and step-size belong to Langevin dynamics, got method '{method}'")
        method = "langevin"
    path, device = _output(given.out, given.overwrite, (".png", ".npz")), _device(given.device)
    if given.n < 1:
        raise UsageError(f"n is {given.n}, expected at least 1")
    if not 0 <= given.seed < 2**63:
        raise UsageError(f"seed is {given.seed}, expected a number in 0..2^63-1")
    saved = checkpoint.read(given.run, tensors=())
    model = checkpoint.load(given.run, ema=not given.no_ema, device=device)
    method = method or ("flow" if model.conditional else "langevin")
    options: dict[str, Any] = {}
    if method == "langevin":
        options["steps"] = saved.config.langevin_steps if given.steps is None else given.steps
        options["step_size"] = saved.config.step_size if given.step_size is None else given.step_size
    started, bar = time.monotonic(), Bar("sampling", unit="dimension")
    x = model.sample(
        given.n,
        method,
        seed=given.seed,
        **options,
        batch_size=given.batch_size,
        denoise=given.denoise,
        progress=bar.to,
    )
    exists = x.isfinite().all(1)
    if not exists.all():
        missing = f"{int((~exists).sum())} of {given.n} samples have a conditional without a density"
        if not exists.any():
            raise UsageError(f"{missing}: train for longer, or use --method langevin")
        print(f"fastcsm: warning: {missing} and are left out", file=sys.stderr)
        x = x[exists]
    raw = saved.transform.decode(x)
    if path.suffix.lower() == ".png":
        plotting.samples(raw, saved.transform, path)
    else:
        with checkpoint.atomic_file(path) as file:
            np.savez_compressed(file, x=x.float().cpu().numpy(), samples=raw)
    print(f"{path}: {len(x)} samples in {time.monotonic() - started:.1f} s")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    from . import checkpoint, report
    from .evaluation import evaluate

    path = _output(given.out, given.overwrite, (".json",)) if given.out else None
    device = _device(given.device)
    if given.limit is not None and given.limit < 1:
        raise UsageError(f"limit is {given.limit}, expected at least 1")
    saved = checkpoint.read(given.run, tensors=())
    model = checkpoint.load(given.run, ema=not given.no_ema, device=device)
    methods = _methods(given.method, model)
    source = given.data or saved.config.data
    x = _held_out(source, given, saved).to(next(model.parameters()))
    strange = _held_out(given.ood, given, saved).to(x) if given.ood else None
    result: dict[str, Any] = {
        "run": str(given.run),
        "data": source,
        "split": given.split,
        "samples": len(x),
        "dimensions": x.shape[1],
        "step": saved.state["step"],
        "levels": evaluate(model, x, sigmas=given.sigmas, seed=_noise_seed(given.seed)),
        "likelihood": _likelihoods(model, x, methods, saved.transform.grey_levels, given.seed),
        "ood": None,
    }
    if strange is not None:
        found = _ood(model, x, strange, methods[0] if methods else None)
        result["ood"] = {"data": given.ood, "samples": len(strange)} | found
    if x.shape[1] == 2 and methods:
        result["picture"] = _density_picture(given, model, saved.transform, x, methods[0])
    text = json.dumps(result, indent=1)
    if path:
        with checkpoint.atomic_file(path) as file:
            file.write((text + "\n").encode())
    print(text if given.json else report.evaluation(result))
    return 0


def _methods(name: str | None, model: ARCSM) -> list[str]:
    """The densities to evaluate, the best first."""
    if name == "none":
        return []
    if name in (None, "both"):
        return ["flow", "quadrature"] if model.conditional else ["quadrature"]
    if name == "flow" and not model.conditional:
        raise UsageError(
            "method is 'flow', expected 'quadrature': the flow needs a conditional noise schedule"
        )
    return [name]


def _held_out(source: str, given: argparse.Namespace, saved: Checkpoint) -> torch.Tensor:
    """Rows of a data set in the run's model space."""
    from . import data

    config, transform = saved.config, saved.transform
    loaded = data.load(source, grey_levels=config.grey_levels, validation=config.validation)
    if loaded.features != transform.features:
        raise UsageError(
            f"data '{source}' has {loaded.features} features, expected {transform.features} as in the run"
        )
    if bool(loaded.transform.grey_levels) != bool(transform.grey_levels):
        kinds = ["grey values" if t.grey_levels else "real numbers" for t in (loaded.transform, transform)]
        raise UsageError(f"data '{source}' holds {kinds[0]}, expected {kinds[1]} as in the run")
    loaded = dataclasses.replace(loaded, transform=transform)
    return loaded.held_out(given.split, given.seed, given.limit)


def _noise_seed(seed: int) -> int:
    """Of noise on rows that were dequantised under ``seed``: the same random numbers must not serve twice."""
    from .training import seed_of

    return seed_of(seed, _NOISE, 0)


def _noise(x: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(_noise_seed(seed))).to(x)


def _likelihoods(
    model: ARCSM, x: torch.Tensor, methods: list[str], grey_levels: int, seed: int
) -> list[dict[str, Any]]:
    """Likelihoods of the rows with noise sigma_L, as the model is trained, and of grey values without it."""
    from .evaluation import likelihood
    from .progress import Bar

    sigma = model.noise.sigma_min if model.noise else 0.0
    noises = [sigma, 0.0] if grey_levels and sigma else [sigma]
    z = _noise(x, seed)
    found = []
    for method in methods:
        for noise in noises:
            bar = Bar(f"likelihood by {method}", unit="sample")
            levels = 0 if noise else grey_levels
            row = likelihood(model, x + noise * z, method, grey_levels=levels, progress=bar.to)
            bar.close()
            found.append({"method": method, "noise": noise} | row)
    return found


def _ood(model: ARCSM, x: torch.Tensor, strange: torch.Tensor, method: str | None) -> dict[str, Any]:
    from .evaluation import anomaly_scores, auroc

    usual, other = (anomaly_scores(model, rows, method) for rows in (x, strange))
    missing = sum(int(scores["log_likelihood"].isnan().sum()) for scores in (usual, other))
    areas = {
        name: auroc(
            *(scores[name].nan_to_num(nan=-torch.inf, neginf=-torch.inf) for scores in (usual, other))
        )
        for name in usual
    }
    if method is None:
        method = "flow" if model.conditional else "quadrature"
    return {"method": method, "diverged": missing, "auroc": areas}


def _density_picture(
    given: argparse.Namespace, model: ARCSM, transform: Transform, x: torch.Tensor, method: str
) -> str | None:
    """Draw density.png into the run's folder, unless it is there or the run is a bare checkpoint file."""
    from . import plotting
    from .evaluation import density_grid

    path = Path(given.run) / "density.png"
    if not path.parent.is_dir():
        return None
    if path.exists() and not given.overwrite:
        print(f"fastcsm: '{path}' exists and is kept, --overwrite replaces it", file=sys.stderr)
        return None
    if not plotting.available():
        print("fastcsm: no density.png without matplotlib: pip install matplotlib", file=sys.stderr)
        return None
    drawn = model.sample(min(len(x), _PICTURE_POINTS), "flow" if method == "flow" else None, seed=given.seed)
    grid = density_grid(model, x, method)
    points = [transform.decode(rows[:_PICTURE_POINTS]) for rows in (x, drawn[drawn.isfinite().all(1)])]
    corners = transform.decode(torch.stack([grid.low, grid.high]))
    plotting.density(grid.density.cpu().numpy(), corners, points[0], points[1], path)
    return str(path)


def _info(given: argparse.Namespace) -> int:
    if given.run is None:
        print(backends.info())
        return 0
    from . import checkpoint

    saved = checkpoint.read(given.run, tensors=())
    state = saved.state
    print(f"{given.run}: step {state['step']}, stage {state['stage']}, {state['elapsed']:.1f} s of training")
    print(f"data {saved.config.data}, shape {saved.transform.shape}")
    for name, value in saved.config.to_dict().items():
        print(f"  {name.replace('_', '-'):20} {text_of(value)}")
    return 0


def _demo(given: argparse.Namespace) -> int:
    from .demo import run_demo

    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)
    run_demo(Path(given.out), _device(given.device))
    return 0
