"""What moved between two results of ``fastcsm bench --json``, beyond the noise of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .harness.case import from_config
from .micro.registry import CASES

#: A row moved if the logarithm of its speed-up did by more than both.
STANDARD_ERRORS, LEAST = 3.0, 0.03

Document = Mapping[str, Any]


class Change(NamedTuple):
    """One row that moved: a sentence, and whether it got worse."""

    text: str
    worse: bool


def standard_error(seconds: Mapping[str, float], rounds: int) -> float:
    """Of a median, as a part of it: 0.93 (q3 - q1) / (median sqrt(rounds)), as of a normal law."""
    return 0.93 * (seconds["q3"] - seconds["q1"]) / (seconds["median"] * math.sqrt(rounds))


def comparable(old: Document, new: Document) -> str:
    """Why two documents cannot be compared; "" if they can."""
    for name, before, now in (
        ("format", old["schema"], new["schema"]),
        ("processor", old["machine"]["processor"], new["machine"]["processor"]),
        ("number of threads", old["threads"], new["threads"]),
    ):
        if before != now:
            return f"its {name} is {before}, and here it is {now}"
    return ""


def compare(old: Document, new: Document) -> tuple[list[Change], int]:
    """The rows of fastcsm that moved, and how many were compared.

    Compared are speed-ups over the first row of the same case, which the same rounds timed: a machine that is
    slower today moves both. A speed-up moved if it differs by more than 3% and by more than three times the
    root of the summed squares of the standard errors of its four medians.
    """
    before = dict(_rows(old))
    pairs = [(before[key], now) for key, now in _rows(new) if key in before]
    changes = [change for pair in pairs if (change := _change(*pair))]
    return changes, len(pairs)


class _Row(NamedTuple):
    title: str
    row: Mapping[str, Any]
    first: Mapping[str, Any]
    rounds: int


def _rows(document: Document) -> Iterator[tuple[tuple[Any, ...], _Row]]:
    """fastcsm's rows by op, sizes and name; sizes that a document does not mention are the defaults."""
    for result in document["results"]:
        sizes = from_config(CASES[result["op"]], result["config"])
        for row in result["rows"]:
            if row["own"]:
                rounds = result.get("rounds", document["rounds"])
                yield (sizes, row["name"]), _Row(result["title"], row, result["rows"][0], rounds)


def _change(old: _Row, now: _Row) -> Change | None:
    name = f"{now.title}: {now.row['label']}"
    if old.row["status"] != "ok" or now.row["status"] != "ok":
        if old.row["status"] == now.row["status"]:
            return None
        reason = f" ({now.row['reason']})" if "reason" in now.row else ""
        text = f"{name}: {old.row['status']} -> {now.row['status']}{reason}"
        return Change(text, now.row["status"] != "ok")
    if "speedup" not in old.row or "speedup" not in now.row:
        return None
    moved = math.log(now.row["speedup"] / old.row["speedup"])
    errors = (standard_error(row["seconds"], of.rounds) for of in (old, now) for row in (of.row, of.first))
    noise = STANDARD_ERRORS * math.sqrt(sum(error**2 for error in errors))
    if abs(moved) <= max(noise, LEAST):
        return None
    word = "slower" if moved < 0 else "faster"
    milliseconds = [1e3 * of.row["seconds"]["median"] for of in (old, now)]
    text = (
        f"{name}: {math.expm1(abs(moved)):.0%} {word} against {now.first['label']}:"
        f" {old.row['speedup']:.2f}x -> {now.row['speedup']:.2f}x"
        f" ({milliseconds[0]:.4g} -> {milliseconds[1]:.4g} ms; noise {math.expm1(noise):.0%})"
    )
    return Change(text, moved < 0)
