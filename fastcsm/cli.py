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
from typing import Any

import torch

from . import backends
from .config import PRESETS, Config, kind_of

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
_EXAMPLES = """examples:
  fastcsm train --data digits --preset digits --out runs/digits
  fastcsm sample runs/digits --n 100 --denoise --out digits.png
  fastcsm evaluate runs/digits
  fastcsm train --data checkerboard --preset toy --out runs/checkerboard
  torchrun --nproc-per-node 2 -m fastcsm train --data ../data/mnist.npz --out runs/mnist
"""


class UsageError(ValueError):
    """A request that cannot be carried out, in one sentence."""


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=min(110, _columns()))


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns - 2


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(
        prog="fastcsm",
        description="Train and use autoregressive score models with composite score matching.",
        epilog=_EXAMPLES,
        formatter_class=_Help,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    _add_evaluate(commands)
    commands.add_parser("bench", help="time an op against plain PyTorch on this machine", add_help=False)
    info = commands.add_parser(
        "info", help="what was found on this machine, or in a run", formatter_class=_Help
    )
    info.add_argument("run", nargs="?", metavar="RUN", help="run folder to describe")
    demo = commands.add_parser(
        "demo",
        help="train on the digits for up to three minutes, draw samples, time a step",
        description="Train on scikit-learn's 8x8 digits for up to three minutes, draw samples, "
        "and time a training step by four ways to the derivative. A second call reuses the trained model.",
        formatter_class=_Help,
    )
    demo.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder of the demo (default: %(default)s)"
    )
    _add_device(demo)
    return top


def _add_device(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one)"
    )
    command.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="implementation of the ops: auto, reference, cpu, triton or cuda (default: auto)",
    )


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a model into a run folder",
        usage="fastcsm train --data NAME --out DIR [options]",
        description="Train an AR-CSM into a run folder: checkpoint.safetensors, config.json, log.csv, "
        "loss.png.\n"
        "Defaults marked [paper] are the paper's values for MNIST (appendix C).",
        formatter_class=_Help,
    )
    run = train.add_argument_group("run")
    run.add_argument("--out", "--run", dest="out", metavar="DIR", required=True, help="run folder to create")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, bit-identically; with --data, start it if it is new",
    )
    run.add_argument("--preset", choices=list(PRESETS), default="paper", help=_preset_help())
    run.add_argument("--quiet", action="store_true", help="no progress")
    _add_device(run)
    groups: dict[str, Any] = {"run": run}
    for item in dataclasses.fields(Config):
        name = item.metadata["group"]
        if name not in groups:
            groups[name] = train.add_argument_group(name)
        _add_option(groups[name], item)


def _preset_help() -> str:
    parts = []
    for name, values in PRESETS.items():
        settings = ", ".join(f"{k} {_text(v)}" for k, v in values.items())
        parts.append(f"{name}: {settings or 'the defaults'}")
    return f"settings to start from, which options override; {'; '.join(parts)} (default: paper)"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _add_option(group: Any, item: dataclasses.Field) -> None:
    kind, _ = kind_of(item)
    flag, meta = "--" + item.name.replace("_", "-"), item.metadata
    text = meta["help"].replace("%", "%%")
    if item.default is not None and kind is not bool and item.name != "data":
        text += f" (default: {_text(item.default)})"
    text += " [paper]" if meta["paper"] else ""
    options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = kind
        options["metavar"] = {"int": "N", "float": "X", "str": "NAME"}[kind.__name__]
        if meta["choices"]:
            options["choices"], options["metavar"] = meta["choices"], None
        if str(item.type).startswith("tuple"):
            options["nargs"] = "+"
    group.add_argument(flag, **options)


def _add_sample(commands: Any) -> None:
    sample = commands.add_parser(
        "sample",
        help="draw samples from a run",
        formatter_class=_Help,
        description="Draw samples by annealed autoregressive Langevin dynamics. A seed means the same "
        "samples for any --batch-size.",
    )
    sample.add_argument("run", metavar="RUN", help="run folder")
    sample.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".png picture, or .npz with x (model space) and samples (raw values)",
    )
    sample.add_argument("--n", type=int, default=64, metavar="N", help="number of samples (default: 64)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    sample.add_argument(
        "--steps", type=int, metavar="T", help="Langevin steps per noise level (default: the run's)"
    )
    sample.add_argument(
        "--step-size",
        type=float,
        metavar="X",
        help="step size e_0 at the smallest level (default: the run's)",
    )
    sample.add_argument(
        "--denoise", action="store_true", help="return the mean of the noise-free value (Tweedie)"
    )
    sample.add_argument("--batch-size", type=int, metavar="N", help="samples drawn together (default: all)")
    sample.add_argument("--no-ema", action="store_true", help="use the last weights, not the averaged ones")
    sample.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    _add_device(sample)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="held-out losses of a run at its noise levels",
        formatter_class=_Help,
        description="Held-out composite score matching and denoising losses per dimension, both weighted by "
        "sigma^2 (they then differ by 1/2 in expectation), as mean and standard error over samples.",
    )
    evaluate.add_argument("run", metavar="RUN", help="run folder")
    evaluate.add_argument("--data", metavar="NAME", help="data set or file (default: the run's)")
    evaluate.add_argument("--split", choices=("test", "val"), default="test", help="(default: test)")
    evaluate.add_argument(
        "--sigmas", type=float, nargs="+", metavar="X", help="noise levels (default: the run's)"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="rows to read at most (default: all)")
    evaluate.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    evaluate.add_argument("--no-ema", action="store_true", help="use the last weights, not the averaged ones")
    evaluate.add_argument("--out", metavar="FILE", help="write the result there as JSON too")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of the table")
    evaluate.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    _add_device(evaluate)


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
                f"{name} is {_text(value)} but the run was started with {_text(getattr(config, name))}: "
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

    path, device = _output(given.out, given.overwrite, (".png", ".npz")), _device(given.device)
    if given.n < 1:
        raise UsageError(f"n is {given.n}, expected at least 1")
    if not 0 <= given.seed < 2**63:
        raise UsageError(f"seed is {given.seed}, expected a number in 0..2^63-1")
    saved = checkpoint.read(given.run, tensors=())
    model = checkpoint.load(given.run, ema=not given.no_ema, device=device)
    started, bar = time.monotonic(), Bar("sampling", unit="dimension")
    x = model.sample(
        given.n,
        seed=given.seed,
        steps=saved.config.langevin_steps if given.steps is None else given.steps,
        step_size=saved.config.step_size if given.step_size is None else given.step_size,
        batch_size=given.batch_size,
        denoise=given.denoise,
        progress=bar.to,
    )
    raw = saved.transform.decode(x)
    if path.suffix.lower() == ".png":
        plotting.samples(raw, saved.transform, path)
    else:
        with checkpoint.atomic_file(path) as file:
            np.savez_compressed(file, x=x.float().cpu().numpy(), samples=raw)
    print(f"{path}: {given.n} samples in {time.monotonic() - started:.1f} s")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    from . import checkpoint, data
    from .evaluation import evaluate

    path = _output(given.out, given.overwrite, (".json",)) if given.out else None
    device = _device(given.device)
    if given.limit is not None and given.limit < 1:
        raise UsageError(f"limit is {given.limit}, expected at least 1")
    saved = checkpoint.read(given.run, tensors=())
    model = checkpoint.load(given.run, ema=not given.no_ema, device=device)
    source = given.data or saved.config.data
    loaded = data.load(source, grey_levels=saved.config.grey_levels, validation=saved.config.validation)
    if loaded.features != saved.transform.features:
        raise UsageError(
            f"data '{source}' has {loaded.features} features, expected {saved.transform.features} "
            "as in the run"
        )
    loaded = dataclasses.replace(loaded, transform=saved.transform)
    x = loaded.held_out(given.split, given.seed, given.limit).to(next(model.parameters()))
    rows = evaluate(model, x, sigmas=given.sigmas, seed=given.seed)
    result = {
        "run": str(given.run),
        "data": source,
        "split": given.split,
        "samples": len(x),
        "dimensions": x.shape[1],
        "step": saved.state["step"],
        "levels": rows,
    }
    text = json.dumps(result, indent=1)
    if path:
        with checkpoint.atomic_file(path) as file:
            file.write((text + "\n").encode())
    print(text if given.json else _table(result))
    return 0


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['run']} at step {result['step']}: {result['samples']} {result['split']} rows of "
        f"{result['data']}, {result['dimensions']} dimensions",
        "sigma^2-weighted loss per dimension, mean +- standard error over samples",
        f"{'sigma':>8}  {'csm':>20}  {'denoising':>20}",
    ]
    for row in result["levels"]:
        cells = [
            f"{v['mean']:.4f} +- {v['standard_error']:.4f}" if v else "-"
            for v in (row["csm"], row["denoising"])
        ]
        lines.append(f"{row['sigma']:8.4f}  {cells[0]:>20}  {cells[1]:>20}")
    return "\n".join(lines)


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
        print(f"  {name.replace('_', '-'):20} {_text(value)}")
    return 0


def _demo(given: argparse.Namespace) -> int:
    from .demo import run_demo

    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)
    run_demo(Path(given.out), _device(given.device))
    return 0
