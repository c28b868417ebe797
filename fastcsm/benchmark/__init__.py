"""Measurements: a speed is a ratio to named baselines of one process, and a share of the matrix floor."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from ..activations import ACTIVATIONS
from .base import Case
from .cases import CsmLoss, Langevin, Rows, ScoresOfRows
from .densities import ExactDraw, FlowOfRows, LogDensity
from .draw import Draw
from .masked import MaskedLayers
from .measure import extra_memory, interleave, machine_slug, quartiles
from .report import format_header, format_table, readme_block, update_readme
from .runner import document, run_case
from .step import TrainingStep, step_table

__all__ = [
    "CASES",
    "Case",
    "CsmLoss",
    "Draw",
    "ExactDraw",
    "FlowOfRows",
    "Langevin",
    "LogDensity",
    "MaskedLayers",
    "ScoresOfRows",
    "TrainingStep",
    "document",
    "extra_memory",
    "format_header",
    "format_table",
    "interleave",
    "machine_slug",
    "main",
    "quartiles",
    "readme_block",
    "run_case",
    "step_table",
    "update_readme",
]

CASES: Mapping[str, type[Case]] = {
    kind.op: kind
    for kind in (
        CsmLoss,
        ScoresOfRows,
        MaskedLayers,
        TrainingStep,
        Langevin,
        Draw,
        LogDensity,
        FlowOfRows,
        ExactDraw,
    )
}
_SIZES = {
    "rows": "rows N of csm_loss and conditional_density (default: 50176) or langevin (4096)",
    "features": "variables D of a model (default: 784)",
    "batch": "samples B of masked_linear (default: 128) or training_step (64)",
    "samples": "samples that a draw draws (default: 64)",
    "context": "context features C (default: 32)",
}
_WIDTHS = {
    "hidden": "hidden widths of the head, or of the MADE in an op that has one",
    "head": "hidden widths of the head beside a MADE (default: 128 128)",
}


def parser() -> argparse.ArgumentParser:
    """Arguments of ``fastcsm bench``."""
    p = argparse.ArgumentParser(
        prog="fastcsm bench",
        description="Time an op against plain PyTorch here. Results are checked against float64 first.",
    )
    p.add_argument(
        "--op", choices=list(CASES), default="csm_loss", help="what to measure (default: csm_loss)"
    )
    for name, text in _SIZES.items():
        p.add_argument(f"--{name}", type=int, help=text)
    for name, text in _WIDTHS.items():
        p.add_argument(f"--{name}", type=int, nargs="+", help=text)
    p.add_argument(
        "--activation",
        choices=list(ACTIVATIONS),
        help="default: softplus, and on rows silu with 16 frequencies beside it; of masked_linear: relu",
    )
    p.add_argument("--frequencies", type=int, help="frequencies of x, E, on rows (default: as --activation)")
    p.add_argument(
        "--precision",
        choices=["highest", "medium", "both"],
        default="both",
        help="torch.set_float32_matmul_precision of fastcsm's rows (default: both)",
    )
    p.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads (default: 2)"
    )
    p.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: 15)")
    p.add_argument("--quick", action="store_true", help="small sizes, 3 rounds, no torch.compile, no memory")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    p.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="measure nothing: print the README section of a result file",
    )
    p.add_argument(
        "--into", type=Path, metavar="README", help="with --readme: replace that section in this file"
    )
    return p


def _cases(p: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Case]:
    kind = CASES[arguments.op]
    known = {field.name for field in fields(kind)}
    sizes = {}
    for name in (*_SIZES, *_WIDTHS, "activation", "frequencies"):
        value = getattr(arguments, name)
        if value is None:
            continue
        if name not in known:
            p.error(f"argument --{name}: --op {arguments.op} has no such size")
        sizes[name] = tuple(value) if name in _WIDTHS else value
    if issubclass(kind, Rows) and "frequencies" in sizes:
        sizes.setdefault("activation", "silu")
    case = kind(**sizes)
    if arguments.quick:
        case = case.quick()
    if isinstance(case, Rows) and not sizes.keys().isdisjoint(("activation", "frequencies")):
        return [case]
    return list(case.variants())


def _check(p: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for name in (*_SIZES, *_WIDTHS, "threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            p.error(f"argument --{name}: expected at least 1, got {value}")
    if (arguments.frequencies or 0) < 0:
        p.error(f"argument --frequencies: expected at least 0, got {arguments.frequencies}")
    if arguments.into and not arguments.readme:
        p.error("argument --into: needs --readme")


def _readme(source: Path, target: Path | None) -> int:
    try:
        measured = json.loads(source.read_text(encoding="utf-8"))
        if target is None:
            print(readme_block(measured))
        else:
            text = update_readme(target.read_text(encoding="utf-8"), measured)
            target.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"fastcsm bench: {error}", file=sys.stderr)
        return 1
    except (KeyError, TypeError):
        print(
            f"fastcsm bench: --readme {source}: expected a file that fastcsm bench --json wrote",
            file=sys.stderr,
        )
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``fastcsm bench``: returns 0, or 1 if a result was wrong or could not be written."""
    p = parser()
    arguments = p.parse_args(argv)
    _check(p, arguments)
    if arguments.readme:
        return _readme(arguments.readme, arguments.into)
    cases = _cases(p, arguments)
    rounds = 3 if arguments.quick else arguments.rounds
    precisions = ["highest", "medium"] if arguments.precision == "both" else [arguments.precision]
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        results = []
        for case in cases:
            results.append(
                run_case(
                    case,
                    precisions=precisions,
                    rounds=rounds,
                    compiled=not arguments.quick,
                    memory=not arguments.quick,
                    log=lambda line: print(f"... {line}", file=sys.stderr),
                )
            )
            print(f"{format_table(results[-1])}\n", flush=True)
        measured = document(results, rounds)
    finally:
        torch.set_num_threads(threads)
    print(format_header(measured))
    if arguments.json:
        try:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"fastcsm bench: --json {arguments.json}: {error.strerror}", file=sys.stderr)
            return 1
    return int(any(row["status"] == "failed" for result in results for row in result["rows"]))
