"""Results as text, as JSON and as the README's table."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

__all__ = ["SCHEMA", "format_header", "format_table", "readme_block", "update_readme"]

SCHEMA = 1
_HEADING = ["implementation", "median ms (quartiles)", "time / floor", "extra memory"]
BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"


def _milliseconds(row: Mapping[str, Any]) -> str:
    seconds = row["seconds"]
    digits = 0 if seconds["median"] >= 1 else 1 if seconds["median"] >= 0.01 else 2
    median, q1, q3 = (f"{1e3 * seconds[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{median} ({q1}-{q3})"


def _memory(row: Mapping[str, Any]) -> str:
    extra = row.get("extra_bytes")
    return "" if extra is None else f"{extra / 2**20:.0f} MiB"


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [row["label"], row["status"], "", "", ""]
    share = row.get("floor_multiple")
    return [
        row["label"],
        _milliseconds(row),
        f"{row['speedup']:.2f}x" if row.get("speedup") else "",
        "" if share is None else f"{share:.2f}x",
        _memory(row),
    ]


def _columns(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Columns with their heading first; those without an entry are left out."""
    first = result["rows"][0]["label"].partition(" (")[0]
    return _filled([[*_HEADING[:2], f"against {first}", *_HEADING[2:]], *map(_cells, result["rows"])])


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
        notes.append(
            f"matrix floor {floor:.2f} ms: {result['operations'] / 1e9:.2f} GFLOP; torch.mm: {rates}"
        )
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
        " table says otherwise. Ratios are to the first row of the same case.",
    ]
    for op, group in groupby(document["results"], key=lambda result: result["op"]):
        lines += ["", *_readme_table(op, list(group), document["rounds"])]
    return "\n".join([*lines, END])


def _readme_table(op: str, results: list[Mapping[str, Any]], rounds: int) -> list[str]:
    table = [["case", *_HEADING[:2], "ratio", *_HEADING[2:]]]
    notes = []
    for result in results:
        case = result["title"].partition(": ")[2]
        for index, row in enumerate(result["rows"]):
            table.append(["" if index else case, *_cells(row)])
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
