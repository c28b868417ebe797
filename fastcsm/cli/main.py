"""The command line: ``fastcsm train | sample | evaluate | bench | info | demo``."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from .. import backends
from ..training import Interrupted
from ..training.recipes import RECIPES
from . import bench, demo, evaluate, info, sample, train
from .options import Help

_EXAMPLES = """examples:
  fastcsm train --data digits --preset digits --out runs/digits
  fastcsm sample runs/digits --n 100 --denoise --out digits.png
  fastcsm evaluate runs/digits
  fastcsm train --data checkerboard --preset toy --out runs/checkerboard
  torchrun --nproc-per-node 2 -m fastcsm train --data ../data/mnist.npz --out runs/mnist
"""


def parser(model: str) -> argparse.ArgumentParser:
    """The arguments of every command; ``train`` has the options of a model, given by its name."""
    top = argparse.ArgumentParser(
        prog="fastcsm",
        description="Train and use autoregressive score models with composite score matching.",
        epilog=_EXAMPLES,
        formatter_class=Help,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train.add(commands, model)
    for command in (sample, evaluate, bench, info, demo):
        command.add(commands)
    return top


def _model(arguments: Sequence[str]) -> str:
    """The model that the arguments name, by default the first that there is."""
    values = [value for flag, value in pairwise(arguments) if flag == "--model"]
    values += [argument.partition("=")[2] for argument in arguments if argument.startswith("--model=")]
    return next((value for value in values if value in RECIPES), next(iter(RECIPES)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a request that cannot be carried out, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _show_warning
    try:
        if arguments[:1] == ["bench"]:
            return bench.main(arguments[1:])
        given = parser(_model(arguments)).parse_args(arguments)
        command: Any = {"train": train, "sample": sample, "evaluate": evaluate, "info": info, "demo": demo}
        with backends.backend(getattr(given, "backend", "auto")):
            return command[given.command].run(given)
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
