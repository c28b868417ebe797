"""The command line of ``fastcsm bench``."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fastcsm.activations import ACTIVATIONS
from fastcsm.progress import Bar

from .compare import comparable, compare
from .harness.case import Case
from .harness.measure import Probe, extra_memory
from .harness.report import format_header, format_table
from .harness.runner import document, run_case
from .micro.registry import CASES, suite
from .micro.rows import RowsCase

SUITE_ROUNDS, OP_ROUNDS, QUICK_ROUNDS = 5, 15, 3
_SIZES = {
    "rows": "rows N of csm_loss, score_head, conditional_density (default: 50176), probability_flow (12544)"
    " or langevin (4096)",
    "features": "variables D of a model (default: 784)",
    "batch": "samples B of masked_linear (default: 128) or training_step (64)",
    "samples": "samples that a draw draws (default: 64)",
    "context": "context features C (default: 32)",
}
_WIDTHS = {
    "hidden": "hidden widths of the head, or of the MADE in an op that has one",
    "head": "hidden widths of the head beside a MADE (default: 128 128)",
}
_ACTIVATION = "default: softplus, and for csm_loss silu with 16 frequencies beside it; of masked_linear: relu"
_PRECISION = "torch.set_float32_matmul_precision of fastcsm's rows (default: both)"
_COMPARE = "say what moved since this result, beyond the noise; exit code 1 if something got slower"


def parser() -> argparse.ArgumentParser:
    """Arguments of ``fastcsm bench``."""
    p = argparse.ArgumentParser(
        prog="fastcsm bench",
        description="Time every op, or one, against plain PyTorch here: about two minutes on two cores."
        " Results are checked against float64 first.",
    )
    p.add_argument("--op", choices=list(CASES), help="measure this op, at any size (default: all ops)")
    for name, text in _SIZES.items():
        p.add_argument(f"--{name}", type=int, help=text)
    for name, text in _WIDTHS.items():
        p.add_argument(f"--{name}", type=int, nargs="+", help=text)
    p.add_argument("--activation", choices=list(ACTIVATIONS), help=_ACTIVATION)
    p.add_argument("--frequencies", type=int, help="frequencies of x, E, on rows (default: as --activation)")
    p.add_argument("--precision", choices=["highest", "medium", "both"], default="both", help=_PRECISION)
    threads = min(2, os.cpu_count() or 1)
    p.add_argument("--threads", type=int, default=threads, help="torch threads (default: 2)")
    p.add_argument("--rounds", type=int, help="interleaved rounds (default: 5, with --op 15, with --quick 3)")
    p.add_argument("--quick", action="store_true", help="small sizes, 3 rounds, no torch.compile, no memory")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    p.add_argument("--compare", type=Path, metavar="OLD", help=_COMPARE)
    p.add_argument("--measured", type=Path, metavar="NEW", help="with --compare: measure nothing, compare it")
    return p


def _cases(p: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Case]:
    sizes: dict[str, Any] = {}
    for name in (*_SIZES, *_WIDTHS, "activation", "frequencies"):
        value = getattr(arguments, name)
        if value is not None:
            sizes[name] = tuple(value) if name in _WIDTHS else value
    if arguments.op is None:
        for name in sizes:
            p.error(f"argument --{name}: needs --op")
        return list(dict.fromkeys(case.quick() for case in suite())) if arguments.quick else suite()
    kind = CASES[arguments.op]
    known = {field.name for field in fields(kind)}
    for name in sizes.keys() - known:
        p.error(f"argument --{name}: --op {arguments.op} has no such size")
    if issubclass(kind, RowsCase) and "frequencies" in sizes:
        sizes.setdefault("activation", "silu")
    case = kind(**sizes)
    if arguments.quick:
        case = case.quick()
    if isinstance(case, RowsCase) and not sizes.keys().isdisjoint(("activation", "frequencies")):
        return [case]
    return list(case.variants())


def _check(p: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for name in (*_SIZES, *_WIDTHS, "threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            p.error(f"argument --{name}: expected at least 1, got {value}")
    if (arguments.frequencies or 0) < 0:
        p.error(f"argument --frequencies: expected at least 0, got {arguments.frequencies}")
    if arguments.measured and not arguments.compare:
        p.error("argument --measured: needs --compare")


def _read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        OSError, ValueError: if there is none.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not {"schema", "machine", "threads", "results"} <= found.keys():
        raise ValueError(f"{path}: expected a file that fastcsm bench --json wrote")
    return found


def _measure(p: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the cases, print their tables, write the file."""
    cases = _cases(p, arguments)
    whole = arguments.op is None
    rounds = arguments.rounds or (SUITE_ROUNDS if whole else OP_ROUNDS)
    rounds = QUICK_ROUNDS if arguments.quick else rounds
    precisions = ["highest", "medium"] if arguments.precision == "both" else [arguments.precision]
    threads, results = torch.get_num_threads(), []
    torch.set_num_threads(arguments.threads)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        bar = stack.enter_context(Bar("fastcsm bench", "case"))
        memory = stack.enter_context(Probe()).extra_memory if whole else extra_memory
        for done, case in enumerate(cases):

            def say(line: str, done: int = done, op: str = case.op) -> None:
                bar.to(done, len(cases), f"{op}: {line}")

            results.append(
                run_case(
                    case,
                    precisions=precisions,
                    rounds=rounds,
                    compiled=not arguments.quick,
                    memory=None if arguments.quick else memory,
                    without=case.slow if whole else (),
                    square=1024 if arguments.quick else 2048,
                    log=say,
                )
            )
            bar.close()
            print(f"{format_table(results[-1])}\n", flush=True)
        measured = document(results, rounds)
    print(format_header(measured))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def _compared(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    """Print what moved; 1 if something got worse."""
    reason = comparable(old, new)
    if reason:
        raise ValueError(f"--compare {path}: {reason}")
    changes, count = compare(old, new)
    if not count:
        raise ValueError(
            f"--compare {path}: it has no case of this run; give the same --op, sizes and --quick"
        )
    for name, version in new["versions"].items():
        before = old["versions"].get(name)
        if before != version:
            print(f"{name}: {before} -> {version}")
    for change in changes:
        print(change.text)
    print(f"{count} rows compared with {path}: {sum(c.worse for c in changes)} worse, {len(changes)} moved")
    return int(any(change.worse for change in changes))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``fastcsm bench``: returns 0, or 1 if a result is wrong, slower than before or not written."""
    p = parser()
    arguments = p.parse_args(argv)
    _check(p, arguments)
    try:
        old = _read(arguments.compare) if arguments.compare else None
        new = _read(arguments.measured) if arguments.measured else _measure(p, arguments)
        worse = _compared(arguments.compare, old, new) if old else 0
    except (OSError, ValueError) as error:
        print(f"fastcsm bench: {error}", file=sys.stderr)
        return 1
    failed = any(row["status"] == "failed" for result in new["results"] for row in result["rows"])
    return int(worse or failed)
