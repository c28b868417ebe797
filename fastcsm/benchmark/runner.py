"""One measurement from start to end: check, time, memory, floor."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .base import Case, Contender, Outputs
from .measure import (
    at_precision,
    errors,
    extra_memory,
    interleave,
    machine,
    matrix_calls,
    memory_call,
    quartiles,
    versions,
)
from .report import SCHEMA

__all__ = ["add_speedups", "check_rows", "document", "run_case"]

PLAIN_LIMIT = 1e-4
FLOOR = 1e-5
MEDIUM_LIMIT = 2e-2
MEDIUM_MOST = 0.1
_COPY = "copy"


def check_rows(
    contenders: Mapping[str, Contender],
    reference: Outputs,
    scales: Mapping[str, float],
    log: Callable[[str], object] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """One row per contender with status "ok", "failed" (a wrong result) or "unavailable" (it does not run).

    The first contender is plain PyTorch: each of its outputs must lie within 1e-4 of the float64 truth (norm
    of the difference over norm). The others must lie within twice its error, or 1e-5, whichever is larger;
    under "medium" within 2e-2, or twice the error of the first contender under bfloat16 autocast, whichever
    is larger, but never beyond 0.1. A contender's own ``limit`` comes before all of these.
    """
    rounded: dict[str, float] = {}
    rows: dict[str, dict[str, Any]] = {}
    plain: dict[str, float] = {}
    for name, contender in contenders.items():
        log(f"checking {contender.label}")
        row: dict[str, Any] = {"name": name, "label": contender.label, "own": contender.own, "status": "ok"}
        rows[name] = row
        try:
            outputs = at_precision(contender.precision, contender.check or contender.call)()
        except Exception as error:
            row |= {
                "status": "unavailable",
                "reason": f"{type(error).__name__}: {_first_sentence(error)}",
            }
            continue
        found = errors(outputs, reference, scales)
        for output, value in found.items():
            if contender.precision != "highest":
                limit = MEDIUM_LIMIT
                if value > limit and plain:
                    rounded = rounded or _rounded_errors(next(iter(contenders.values())), reference, scales)
                    limit = min(max(limit, 2 * rounded[output]), MEDIUM_MOST)
            else:
                limit = max(2 * plain[output], FLOOR) if plain else PLAIN_LIMIT
                limit = limit if contender.limit is None else contender.limit
            if not value <= limit:
                row |= {"status": "failed", "reason": f"{output} is off by {value:.1e}, allowed {limit:.1e}"}
                break
        else:
            row["error"] = max(found.values())
            plain = plain or found
    return rows


def _rounded_errors(plain: Contender, reference: Outputs, scales: Mapping[str, float]) -> dict[str, float]:
    """Errors of plain PyTorch with operands rounded to bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return errors((plain.check or plain.call)(), reference, scales)


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0].partition(". ")[0]


def run_case(
    case: Case,
    *,
    precisions: Sequence[str] = ("highest", "medium"),
    rounds: int = 15,
    compiled: bool = True,
    memory: Callable[[dict[str, Any]], int | None] | None = extra_memory,
    memory_rows: Sequence[int] = (),
    without: Sequence[str] = (),
    square: int = 2048,
    log: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure every contender of a case; returns one entry of a document's "results".

    No time is taken of a contender whose result is wrong. The matrix rate and the bandwidth of memory are
    timed in the same rounds, of which there are at most ``case.most_rounds``.

    Args:
        precisions: matrix precisions of fastcsm's rows.
        compiled: whether torch.compile is among the contenders.
        memory: measures the extra memory of a contender: :func:`~fastcsm.benchmark.extra_memory`, a
            :class:`~fastcsm.benchmark.Probe`'s, or None.
        memory_rows: row counts at which fastcsm's extra memory is measured too (cases of rows only).
        without: names of contenders to leave out.
        square: side of the large matrix product whose rate is measured beside the case's own.
        log: called with what is being done.
    """
    rounds = min(rounds, case.most_rounds)
    contenders = case.contenders(precisions, compiled)
    contenders = {name: contender for name, contender in contenders.items() if name not in without}
    rows = check_rows(contenders, *case.reference(), log)
    calls: dict[str, Callable[[], object]] = {
        name: at_precision(contenders[name].precision, contenders[name].call)
        for name, row in rows.items()
        if row["status"] == "ok"
    }
    products = matrix_calls(*case.matrix_shape(), square=square)
    calls |= {shape: call for shape, (_, call) in products.items()}
    copied, copy = memory_call()
    parts = case.parts()
    calls |= {_COPY: copy, **parts}
    log(f"timing {rounds} rounds")
    seconds = interleave(calls, rounds, case.warmup)
    rates = {shape: count / quartiles(seconds[shape])["median"] for shape, (count, _) in products.items()}
    bandwidth = copied / quartiles(seconds[_COPY])["median"]
    floor = max(case.operations() / max(rates.values()), case.bytes() / bandwidth)
    for name, row in rows.items():
        if row["status"] != "ok":
            continue
        scale = contenders[name].scale
        row["seconds"] = {key: scale * value for key, value in quartiles(seconds[name]).items()}
        if scale != 1:
            row["extrapolated"] = scale
        row["floor_multiple"] = row["seconds"]["median"] / floor
    add_speedups(rows)
    result = {
        "op": case.op,
        "title": case.title(),
        "config": case.config(),
        "rounds": rounds,
        "operations": case.operations(),
        "bytes": case.bytes(),
        "matrix_rate": {"best": max(rates.values()), "shapes": rates},
        "bandwidth": bandwidth,
        "floor_seconds": floor,
        "rows": list(rows.values()),
    }
    if parts:
        result["parts"] = {name: quartiles(seconds[name]) for name in parts}
    del contenders, calls, parts, products, copy
    if memory is None:
        return result
    for name, row in rows.items():
        if row["status"] == "ok":
            log(f"memory of {row['label']}")
            row["extra_bytes"] = memory(_request(case, name))
    if memory_rows:
        result["extra_bytes_by_rows"] = {
            str(count): memory(_request(replace(case, rows=count), "fastcsm"))  # type: ignore[call-arg]
            for count in memory_rows
        }
    return result


def add_speedups(rows: Mapping[str, dict[str, Any]]) -> None:
    """Add to every timed row its speed-up over the first row, when that is right too."""
    first = next(iter(rows.values()))
    for row in rows.values():
        if "seconds" in row and "seconds" in first:
            row["speedup"] = first["seconds"]["median"] / row["seconds"]["median"]


def _request(case: Case, contender: str) -> dict[str, Any]:
    return {
        "op": case.op,
        "contender": contender,
        "threads": torch.get_num_threads(),
        "config": case.config(),
    }


def document(results: Sequence[Mapping[str, Any]], rounds: int) -> dict[str, Any]:
    """Results with the machine, the versions and the date: what ``--json`` writes."""
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "results": list(results),
    }
