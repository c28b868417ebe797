"""The command line: ``fastcsm train | sample | evaluate | bench | info | demo``."""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any

import torch

from .. import backends
from ..progress import tell
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
    try:
        with _streams():
            return _run(arguments)
    except OSError as error:  # standard output: nobody reads it, or its disk is full
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        if isinstance(error, BrokenPipeError):
            return 1
        tell(f"fastcsm: standard output: {_sentence(error)}")
        return 2


def _run(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["bench"]:
            return bench.main(arguments[1:])
        given = parser(_model(arguments)).parse_args(arguments)
        command: Any = {"train": train, "sample": sample, "evaluate": evaluate, "info": info, "demo": demo}
        with backends.backend(getattr(given, "backend", "auto")):
            return command[given.command].run(given)
    except Interrupted as stop:
        tell(f"fastcsm: {stop}; go on with --resume")
        return stop.code
    except KeyboardInterrupt:
        tell("fastcsm: interrupted")
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, MemoryError) as error:
        rank = os.environ.get("RANK", "0")
        tell(f"fastcsm: {_sentence(error)}" if rank == "0" else f"fastcsm: rank {rank}: {_sentence(error)}")
        return 2


@contextmanager
def _streams() -> Iterator[None]:
    """Inside the block every line can be printed: where there is no stream it is dropped, and characters that
    a stream does not have are escaped. Warnings are lines of their own."""
    before = sys.stdout, sys.stderr, warnings.showwarning
    warnings.showwarning = _show_warning
    for number in range(3):
        with suppress(OSError):  # that is open: no file of a run gets the number of a closed stream
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    with ExitStack() as stack:
        for name, stream in (("stdout", before[0]), ("stderr", before[1])):
            if stream is None or getattr(stream, "closed", False):
                setattr(sys, name, stack.enter_context(open(os.devnull, "w")))
            elif hasattr(stream, "reconfigure"):
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        try:
            yield
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr, warnings.showwarning = before


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}: '{error.filename}'" if error.filename else error.strerror.lower()
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the device: try a smaller batch size"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    tell(f"fastcsm: warning: {message}")
