"""Results as text, as JSON and as the README's table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

__all__ = ["SCHEMA", "format_header", "format_table", "readme_block", "update_readme"]

SCHEMA = 1
_HEADING = ["implementation", "median ms (quartiles)"]
_MORE = ["time / floor", "extra memory", "error"]
BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"


def _milliseconds(row: Mapping[str, Any]) -> str:
    seconds = row["seconds"]
    digits = 0 if seconds["median"] >= 1 else 1 if seconds["median"] >= 0.01 else 2
    median, q1, q3 = (f"{1e3 * seconds[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{median} ({q1}-{q3})"


def _memory(row: Mapping[str, Any]) -> str:
    extra = row.get("extra_bytes")
    return "" if extra is None else f"{extra / 2**20:.0f} MiB"


def _timed_baselines(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Median seconds of the baselines that have a time, by their number in the table, from 1."""
    return {
        number: row["seconds"]["median"]
        for number, row in enumerate(rows, 1)
        if not row["own"] and row["status"] == "ok"
    }


def _cells(row: Mapping[str, Any], baselines: Iterable[float]) -> list[str]:
    """Label, time, speed-up over each of the baselines' seconds, and the rest."""
    if row["status"] != "ok":
        return [row["label"], row["status"], *("" for _ in baselines), *("" for _ in _MORE)]
    share, error = row.get("floor_multiple"), row.get("error")
    return [
        row["label"],
        _milliseconds(row),
        *(f"{seconds / row['seconds']['median']:.2f}x" for seconds in baselines),
        "" if share is None else f"{share:.2f}x",
        _memory(row),
        "" if error is None else f"{error:.0e}",
    ]


def _columns(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Columns with their heading first; those without an entry are left out. Column "/ n": ratio to row n."""
    baselines = _timed_baselines(result["rows"])
    table = [[*_HEADING, *(f"/ {number}" for number in baselines), *_MORE]]
    for number, row in enumerate(result["rows"], 1):
        label, *cells = _cells(row, baselines.values())
        table.append([f"{number} {label}", *cells])
    return _filled(table)


def _filled(table: list[list[str]]) -> list[tuple[str, ...]]:
    return [column for column in zip(*table, strict=True) if any(column[1:])]


def format_header(document: Mapping[str, Any]) -> str:
    """Machine, threads and versions in one paragraph."""
    machine, versions = document["machine"], document["versions"]
    words = [
        machine["processor"],
        f"{document['threads']} threads of {machine['cores']} cores",
        machine["instructions"],
        f"torch {versions['torch']}",
        f"fastcsm {versions['fastcsm']}" + (f" ({versions['commit']})" if versions["commit"] else ""),
        f"Python {versions['python']}",
    ]
    return ", ".join(words)


def format_table(result: Mapping[str, Any]) -> str:
    """One result as an aligned table for a terminal."""
    columns = _columns(result)
    widths = [max(map(len, column)) for column in columns]
    text = [result["title"]]
    for first, *others in zip(*columns, strict=True):
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        text.append("  ".join(cells).rstrip())
    text += [f"  {note}" for note in _notes(result)]
    return "\n".join(text)


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = []
    rate = result.get("matrix_rate")
    if rate:
        rates = ", ".join(f"{value / 1e9:.0f} GFLOP/s at {shape}" for shape, value in rate["shapes"].items())
        floor = 1e3 * result["floor_seconds"]
        kind = "matrix floor"
        if "bytes" in result:
            memory = 1e3 * result["bytes"] / result["bandwidth"]
            copied = (
                f"{result['bytes'] / 1e6:.1f} MB take {memory:.2f} ms at {result['bandwidth'] / 1e9:.0f} GB/s"
            )
            rates += f"; {copied}"
            kind = "memory floor" if memory >= floor else kind
        notes.append(f"{kind} {floor:.2f} ms: {result['operations'] / 1e9:.2f} GFLOP; torch.mm: {rates}")
    growth = result.get("extra_bytes_by_rows")
    if growth:
        sizes = ", ".join(f"{count / 2**20:.0f} MiB at N = {rows}" for rows, count in growth.items())
        notes.append(f"extra memory of fastcsm: {sizes}")
    for name, seconds in result.get("parts", {}).items():
        notes.append(f"of each row, {name} alone: {_milliseconds({'seconds': seconds})} ms")
    notes += [f"{row['label']}: {row['reason']}" for row in result["rows"] if row["status"] != "ok"]
    return notes


def readme_block(document: Mapping[str, Any]) -> str:
    """The measured section of README.md, markers included; a function of the committed JSON alone."""
    lines = [
        BEGIN,
        "## Measured",
        "",
        f"{format_header(document)}; float32, medians of {document['rounds']} interleaved rounds unless a"
        " table says otherwise. Ratios are to the first row of the same case and to its fastest baseline; an"
        " error is the largest of an output, against float64.",
    ]
    for op, group in groupby(document["results"], key=lambda result: result["op"]):
        lines += ["", *_readme_table(op, list(group), document["rounds"])]
    return "\n".join([*lines, END])


def _readme_table(op: str, results: list[Mapping[str, Any]], rounds: int) -> list[str]:
    table = [["case", *_HEADING, "ratio", "to the fastest", *_MORE]]
    notes = []
    for result in results:
        case = result["title"].partition(": ")[2]
        baselines = _timed_baselines(result["rows"])
        chosen = [baselines[1], min(baselines.values())] if 1 in baselines else [math.nan] * 2
        for index, row in enumerate(result["rows"]):
            table.append(["" if index else case, *_cells(row, chosen)])
        taken = result.get("rounds", rounds)
        facts = [*([f"{taken} rounds"] if taken != rounds else []), *_notes(result)]
        if facts:
            notes.append(f"- {case}: {'; '.join(facts)}.")
    heading, *rows = zip(*_filled(table), strict=True)
    return [
        f"**{op}**",
        "",
        "| " + " | ".join(heading) + " |",
        "|---" * len(heading) + "|",
        *("| " + " | ".join(cells) + " |" for cells in rows),
        *(["", *notes] if notes else []),
    ]


def update_readme(text: str, document: Mapping[str, Any]) -> str:
    """README text with its measured section replaced by :func:`readme_block`.

    Raises:
        ValueError: if the text has no such section.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README must hold the lines {BEGIN} and {END} around the measured section")
    return before + readme_block(document) + after
