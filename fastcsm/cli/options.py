"""What the commands share: help, devices, output files."""

import argparse
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..progress import Bar


class UsageError(ValueError):
    """A request that cannot be carried out, in one sentence."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, 110 columns at most."""

    def __init__(self, prog: str):
        columns = shutil.get_terminal_size((100, 24)).columns - 2
        super().__init__(prog, max_help_position=30, width=min(110, columns))


def add_device(command: argparse._ActionsContainer) -> None:
    """--device and --backend."""
    command.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one)"
    )
    command.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="implementation of the ops: auto, reference, cpu, triton or cuda (default: auto)",
    )


def device_of(name: str | None) -> torch.device:
    """The device of that name, by default the GPU where there is one."""
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
        if device.index is None and os.environ.get("LOCAL_RANK", "").isdecimal():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if (device.index or 0) >= count:
            raise UsageError(
                f"device is '{device}', expected one of the {count} CUDA devices that torch sees here"
            )
        torch.cuda.set_device(device)
    return device


def output(name: str, overwrite: bool, suffixes: tuple[str, ...]) -> Path:
    """The path of a file to write, which must not exist unless ``overwrite``."""
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


def picture(path: Path, draw: Callable[[Bar], None], quiet: bool = False) -> bool:
    """Whether a picture could be drawn: a run that has all its numbers does not fail for it, but warns."""
    try:
        with Bar(f"drawing '{path}'", "point", quiet) as bar:
            draw(bar)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"no picture '{path}': {reason}", stacklevel=2)
        return False
    return True


def text_of(value: Any) -> str:
    """A setting as it is given on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
