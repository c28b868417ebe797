"""``fastcsm bench``: time the ops against plain PyTorch on this machine."""

import importlib
from collections.abc import Sequence
from typing import Any


def add(commands: Any) -> None:
    """Its name among the commands; it reads its arguments itself."""
    commands.add_parser("bench", help="time an op against plain PyTorch on this machine", add_help=False)


def main(argv: Sequence[str]) -> int:
    """Run fastcsm.bench, which is started by name: nothing in the package imports it.

    Raises:
        ImportError: it is not installed.
    """
    return load("command").main(argv)


def load(module: str) -> Any:
    """A module of fastcsm.bench.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(f"fastcsm.bench.{module}")
    except ModuleNotFoundError as error:
        if error.name not in ("fastcsm.bench", f"fastcsm.bench.{module}"):
            raise
        raise ImportError(
            "fastcsm.bench is not installed: install fastcsm, or link fastcsm/bench to bench/"
        ) from None
