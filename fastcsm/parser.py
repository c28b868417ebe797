"""The arguments of the command line's commands."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from .config import PRESETS, Config, kind_of

_EXAMPLES = """examples:
  fastcsm train --data digits --preset digits --out runs/digits
  fastcsm sample runs/digits --n 100 --denoise --out digits.png
  fastcsm evaluate runs/digits
  fastcsm train --data checkerboard --preset toy --out runs/checkerboard
  torchrun --nproc-per-node 2 -m fastcsm train --data ../data/mnist.npz --out runs/mnist
"""


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
        settings = ", ".join(f"{k} {text_of(v)}" for k, v in values.items())
        parts.append(f"{name}: {settings or 'the defaults'}")
    return f"settings to start from, which options override; {'; '.join(parts)} (default: paper)"


def text_of(value: Any) -> str:
    """A setting as it is given on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _add_option(group: Any, item: dataclasses.Field) -> None:
    kind, _ = kind_of(item)
    flag, meta = "--" + item.name.replace("_", "-"), item.metadata
    text = meta["help"].replace("%", "%%")
    if item.default is not None and kind is not bool and item.name != "data":
        text += f" (default: {text_of(item.default)})"
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
        description="Draw samples, one dimension after the other. A seed means the same samples for any "
        "--batch-size.",
    )
    sample.add_argument("run", metavar="RUN", help="run folder")
    sample.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".png picture, or .npz with x (model space) and samples (raw values)",
    )
    sample.add_argument(
        "--method",
        choices=("flow", "inverse_cdf", "langevin"),
        help="exact draws at the largest noise level carried down the probability flow, exact draws at the "
        "smallest level, or annealed Langevin dynamics (default: flow, or langevin where the noise is not "
        "conditional or --steps or --step-size is given)",
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
        help="held-out losses and likelihood of a run, anomaly scores, a picture of a 2-D density",
        formatter_class=_Help,
        description="Held-out composite score matching and denoising losses per dimension, both weighted by "
        "sigma^2 (they then differ by 1/2 in expectation), and negative log-likelihoods, as mean and "
        "standard error over samples. The model is the density of rows with noise of the smallest level; "
        "grey values are evaluated without noise too, in bits per dimension. For two-dimensional data the "
        "density, the data and samples are drawn into RUN/density.png.",
    )
    evaluate.add_argument("run", metavar="RUN", help="run folder")
    evaluate.add_argument("--data", metavar="NAME", help="data set or file (default: the run's)")
    evaluate.add_argument("--split", choices=("test", "val"), default="test", help="(default: test)")
    evaluate.add_argument(
        "--sigmas", type=float, nargs="+", metavar="X", help="noise levels (default: the run's)"
    )
    evaluate.add_argument(
        "--method",
        choices=("flow", "quadrature", "both", "none"),
        help="density of the likelihood: carried from the largest noise level along the probability flow, or "
        "integrated from the scores of the smallest (default: both, or quadrature where the noise is not "
        "conditional)",
    )
    evaluate.add_argument(
        "--ood",
        metavar="OTHER",
        help="data set or file of other rows: print how well h(x), the sum of scores, and log q(x) tell them "
        "from the data",
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="rows to read at most (default: all)")
    evaluate.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    evaluate.add_argument("--no-ema", action="store_true", help="use the last weights, not the averaged ones")
    evaluate.add_argument("--out", metavar="FILE", help="write the result there as JSON too")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of the table")
    evaluate.add_argument(
        "--overwrite", action="store_true", help="replace FILE and density.png where they exist"
    )
    _add_device(evaluate)
