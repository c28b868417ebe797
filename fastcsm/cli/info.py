"""``fastcsm info``: what was found on this machine, or in a run."""

import argparse
from typing import Any

from .. import backends
from ..training import checkpoint
from .options import Help, text_of


def add(commands: Any) -> None:
    """The command's arguments."""
    info = commands.add_parser(
        "info", help="what was found on this machine, or in a run", formatter_class=Help
    )
    info.add_argument("run", nargs="?", metavar="RUN", help="run folder to describe")


def run(given: argparse.Namespace) -> int:
    """Print it."""
    if given.run is None:
        print(backends.info())
        return 0
    saved = checkpoint.read(given.run, tensors=())
    state = saved.state
    print(f"{given.run}: step {state['step']}, stage {state['stage']}, {state['elapsed']:.1f} s of training")
    print(f"data {saved.config.data}, shape {saved.transform.shape}")
    for name, value in saved.config.to_dict().items():
        print(f"  {name.replace('_', '-'):20} {text_of(value)}")
    return 0
