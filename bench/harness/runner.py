"""One measurement from start to end: check, time, memory, floor."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .case import Case, Contender, Outputs
from .floor import Limits
from .measure import at_precision, errors, extra_memory, interleave, machine, quartiles, versions
from .report import SCHEMA

PLAIN_LIMIT = 1e-4
FLOOR = 1e-5
MEDIUM_LIMIT = 2e-2
MEDIUM_MOST = 0.1

Measure = Callable[[dict[str, Any]], int | None]


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
    rows: dict[str, dict[str, Any]] = {}
    plain: dict[str, float] = {}
    for name, contender in contenders.items():
        log(f"checking {contender.label}")
        row: dict[str, Any] = {"name": name, "label": contender.label, "own": contender.own, "status": "ok"}
        rows[name] = row
        try:
            outputs = at_precision(contender.precision, contender.check or contender.call)()
        except Exception as error:
            reason = f"{type(error).__name__}: {_first_sentence(error)}"
            row |= {"status": "unavailable", "reason": reason}
            continue
        found = errors(outputs, reference, scales)
        limits = _limits(contender, found, plain)
        if contender.precision != "highest" and plain and max(found.values()) > MEDIUM_LIMIT:
            rounded = _rounded_errors(next(iter(contenders.values())), reference, scales)
            limits = {key: min(max(MEDIUM_LIMIT, 2 * rounded[key]), MEDIUM_MOST) for key in found}
        wrong = next((key for key in found if not found[key] <= limits[key]), None)
        if wrong is None:
            row["error"] = max(found.values())
            plain = plain or found
        else:
            reason = f"{wrong} is off by {found[wrong]:.1e}, allowed {limits[wrong]:.1e}"
            row |= {"status": "failed", "reason": reason}
    return rows


def _limits(contender: Contender, found: Mapping[str, float], plain: Mapping[str, float]) -> dict[str, float]:
    """Of the error of each output, given those of plain PyTorch."""
    if contender.precision != "highest":
        return dict.fromkeys(found, MEDIUM_LIMIT)
    if contender.limit is not None:
        return dict.fromkeys(found, contender.limit)
    return {key: max(2 * plain[key], FLOOR) if plain else PLAIN_LIMIT for key in found}


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
    memory: Measure | None = extra_memory,
    without: Sequence[str] = (),
    square: int = 2048,
    log: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Check, then time every contender of a case, with torch's current number of threads.

    Args:
        case: what is measured.
        precisions: float32 matrix precisions of fastcsm's rows.
        rounds: interleaved rounds; ``case.most_rounds`` at most.
        compiled: whether torch.compile is among the contenders.
        memory: measures extra memory, of each row in another process; None to leave it out.
        without: names of contenders to leave out.
        square: side of the large matrix product whose rate is measured beside the case's own.
        log: called with what is being done.

    Returns:
        An entry of a document's "results". Of its rows "floor_multiple" is the time over the floor, the
        larger of the contender's operations at the peak of its arithmetic and of the case's bytes at the
        copy's bandwidth; "mm_multiple" that over torch.mm's time for those operations.
    """
    rounds = min(rounds, case.most_rounds)
    contenders = case.contenders(precisions, compiled)
    contenders = {name: entry for name, entry in contenders.items() if name not in without}
    rows = check_rows(contenders, *case.reference(), log)
    log(f"timing {rounds} rounds")
    measured = _time(contenders, rows, Limits(case, contenders.values(), square), rounds)
    del contenders  # what it holds is not to stand beside the memory of other processes
    if memory is not None:
        for name, row in rows.items():
            if row["status"] == "ok":
                log(f"memory of {row['label']}")
                row["extra_bytes"] = memory(memory_request(case, name))
    config = {"op": case.op, "title": case.title(), "config": case.config(), "rounds": rounds}
    return {**config, **measured, "rows": list(rows.values())}


def _time(
    contenders: Mapping[str, Contender],
    rows: Mapping[str, dict[str, Any]],
    limits: Limits,
    rounds: int,
) -> dict[str, Any]:
    """Put times and shares into the right rows; returns what was measured beside them."""
    calls: dict[str, Callable[[], object]] = {
        name: at_precision(contenders[name].precision, contenders[name].call)
        for name, row in rows.items()
        if row["status"] == "ok"
    }
    parts = limits.case.parts()
    seconds = interleave({**calls, **limits.calls, **parts}, rounds, limits.case.warmup)
    measured = limits.measured(seconds)
    for name in calls:
        contender, row = contenders[name], rows[name]
        row["seconds"] = {k: contender.scale * v for k, v in quartiles(seconds[name]).items()}
        if contender.scale != 1:
            row["extrapolated"] = contender.scale
        row |= limits.shares(contender, row["seconds"]["median"], measured)
    add_speedups(rows)
    return {**measured, **({"parts": {k: quartiles(seconds[k]) for k in parts}} if parts else {})}


def memory_by_rows(case: Case, rows: Sequence[int], memory: Measure = extra_memory) -> dict[str, int | None]:
    """Extra memory of fastcsm at other numbers of rows."""
    return {str(n): memory(memory_request(replace(case, rows=n), "fastcsm")) for n in rows}  # type: ignore[call-arg]


def add_speedups(rows: Mapping[str, dict[str, Any]]) -> None:
    """Add to every timed row its speed-up over the first row, when that is right too."""
    first = next(iter(rows.values()))
    for row in rows.values():
        if "seconds" in row and "seconds" in first:
            row["speedup"] = first["seconds"]["median"] / row["seconds"]["median"]


def memory_request(case: Case, contender: str) -> dict[str, Any]:
    """What :meth:`.measure.Probe.extra_memory` is asked for."""
    return {
        "op": case.op,
        "contender": contender,
        "threads": torch.get_num_threads(),
        "config": case.config(),
    }


def circumstances() -> dict[str, Any]:
    """The date, the machine, the versions and the number of threads, which every file has."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def document(results: Sequence[Mapping[str, Any]], rounds: int) -> dict[str, Any]:
    """Results with their circumstances: what ``--json`` writes."""
    return {"schema": SCHEMA, **circumstances(), "rounds": rounds, "results": list(results)}
