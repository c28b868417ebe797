"""Measurements: a speed is a ratio to named baselines of one process, and a share of the matrix floor."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..activations import ACTIVATIONS
from .cases import CASES, Case, CsmLoss, Langevin
from .report import format_header, format_table, readme_block, update_readme
from .runner import document, run_case
from .step import step_table

__all__ = [
    "Case",
    "CsmLoss",
    "Langevin",
    "document",
    "format_header",
    "format_table",
    "main",
    "readme_block",
    "run_case",
    "step_table",
    "update_readme",
]


def parser() -> argparse.ArgumentParser:
    """Arguments of ``fastcsm bench``."""
    p = argparse.ArgumentParser(
        prog="fastcsm bench",
        description="Time an op against plain PyTorch here. Results are checked against float64 first.",
    )
    p.add_argument(
        "--op", choices=list(CASES), default="csm_loss", help="what to measure (default: csm_loss)"
    )
    p.add_argument("--rows", type=int, help="rows N (default: 50176 for csm_loss, 4096 for langevin)")
    p.add_argument("--context", type=int, default=32, help="context features C (default: 32)")
    p.add_argument(
        "--hidden", type=int, nargs="+", default=[128, 128], help="hidden widths (default: 128 128)"
    )
    p.add_argument(
        "--activation",
        choices=list(ACTIVATIONS),
        help="default: softplus, and silu with 16 frequencies beside it",
    )
    p.add_argument("--frequencies", type=int, help="frequencies of x, E (default: as for --activation)")
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
    p.add_argument(
        "--quick", action="store_true", help="4096 rows at most, 3 rounds, no torch.compile, no memory"
    )
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


def _cases(arguments: argparse.Namespace) -> list[Case]:
    sizes = {"context": arguments.context, "hidden": tuple(arguments.hidden)}
    if arguments.rows is not None:
        sizes["rows"] = arguments.rows
    case = CASES[arguments.op](**sizes)
    if arguments.quick:
        case = replace(case, rows=min(case.rows, 4096))
    if arguments.activation is None and arguments.frequencies is None:
        return [case, replace(case, activation="silu", frequencies=16)]
    return [replace(case, activation=arguments.activation or "silu", frequencies=arguments.frequencies or 0)]


def _check(p: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for name in ("rows", "threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            p.error(f"argument --{name}: expected a number of at least 1, got {value}")
    if arguments.context < 1 or min(arguments.hidden) < 1 or (arguments.frequencies or 0) < 0:
        p.error("arguments --context and --hidden must be at least 1, --frequencies at least 0")
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
    rounds = 3 if arguments.quick else arguments.rounds
    precisions = ["highest", "medium"] if arguments.precision == "both" else [arguments.precision]
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        results = []
        for case in _cases(arguments):
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
