"""Results as text: tables for a terminal, for docs/results.md and for README.md."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

SCHEMA = 2
_HEADING = ["implementation", "median ms (quartiles)"]
_MORE = ["time / floor", "time / torch.mm", "extra memory", "error"]
#: README.md's table: op, what of its title names the case, and fastcsm's row.
SUMMARY = (
    ("csm_loss", "head 2 x 128 softplus", "fastcsm"),
    ("training_step", "Adam(fused=True)", "fastcsm"),
    ("masked_linear", "forward and backward", "fastcsm"),
    ("langevin", "N = 4096", "fastcsm"),
    ("langevin_draw", "conditional", "fastcsm"),
    ("conditional_density", "N = ", "fastcsm"),
    ("conditional_density_draw", "conditional", "flow"),
)


def _milliseconds(row: Mapping[str, Any]) -> str:
    seconds = row["seconds"]
    digits = 0 if seconds["median"] >= 1 else 1 if seconds["median"] >= 0.01 else 2
    median, q1, q3 = (f"{1e3 * seconds[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{median} ({q1}-{q3})"


def _memory(row: Mapping[str, Any]) -> str:
    extra = row.get("extra_bytes")
    return "" if extra is None else f"{extra / 2**20:.0f} MiB"


def _times(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.2f}x" if key in row else ""


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
    return [
        row["label"],
        _milliseconds(row),
        *(f"{seconds / row['seconds']['median']:.2f}x" for seconds in baselines),
        _times(row, "floor_multiple"),
        _times(row, "mm_multiple"),
        _memory(row),
        f"{row['error']:.0e}" if "error" in row else "",
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
    if "peaks" in result:
        counted = f"{result['operations'] / 1e9:.2f} GFLOP, {result['bytes'] / 1e6:.1f} MB"
        notes.append(f"counted: {counted}; a copy moves {result['bandwidth'] / 1e9:.0f} GB/s")
    for arithmetic, peak in result.get("peaks", {}).items():
        rates = (f"{rate / 1e9:.0f} at {shape}" for shape, rate in result["matrix_rates"][arithmetic].items())
        notes.append(f"{arithmetic}: peak {peak / 1e9:.0f} GFLOP/s, torch.mm {', '.join(rates)}")
    if "peaks_of_mm" in result:
        notes.append(f"the peak is torch.mm's: {result['peaks_of_mm']}")
    for row in result["rows"]:
        if "operations" in row:
            notes.append(f"{row['label']}: {row['operations'] / 1e9:.2f} GFLOP")
    growth = result.get("extra_bytes_by_rows")
    if growth:
        sizes = ", ".join(f"{count / 2**20:.0f} MiB at N = {rows}" for rows, count in growth.items())
        notes.append(f"extra memory of fastcsm: {sizes}")
    for name, seconds in result.get("parts", {}).items():
        notes.append(f"of each row, {name} alone: {_milliseconds({'seconds': seconds})} ms")
    notes += [f"{row['label']}: {row['reason']}" for row in result["rows"] if row["status"] != "ok"]
    return notes


def markdown(table: Iterable[Sequence[str]], right: bool = False) -> str:
    """A table whose first row is the heading; ``right``: all columns but the first to the right."""
    heading, *rows = table
    rule = ["---", *(["---:" if right else "---"] * (len(heading) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows))


def section(document: Mapping[str, Any]) -> str:
    """All of a document's results in Markdown: a table an op."""
    parts = [
        f"{format_header(document)}; float32, medians of {document['rounds']} interleaved rounds unless a"
        " table says otherwise. Ratios are to the first row of the same case and to its fastest baseline; an"
        " error is the largest of an output, against float64."
    ]
    for op, group in groupby(document["results"], key=lambda result: result["op"]):
        parts += [f"### {op}", *_table(list(group), document["rounds"])]
    return "\n\n".join(parts)


def _table(results: list[Mapping[str, Any]], rounds: int) -> list[str]:
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
    return [markdown(zip(*_filled(table), strict=True)), *(["\n".join(notes)] if notes else [])]


def find(document: Mapping[str, Any], op: str, words: str) -> Mapping[str, Any]:
    """The first result of an op whose title has the words."""
    return next(result for result in document["results"] if result["op"] == op and words in result["title"])


def best_baseline(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fastest row that is not fastcsm's."""
    rows = (row for row in result["rows"] if not row["own"] and row["status"] == "ok")
    return min(rows, key=lambda row: row["seconds"]["median"])


def summary(document: Mapping[str, Any]) -> str:
    """README.md's table: seven cases, the fastest baseline of each beside fastcsm in float32."""
    table = [["op", "size", "best baseline", "fastcsm", "ratio", "extra memory"]]
    for op, words, name in SUMMARY:
        result = find(document, op, words)
        best = best_baseline(result)
        own = next(row for row in result["rows"] if row["name"] == name)
        times = [row["seconds"]["median"] for row in (best, own)]
        shown = [f"{time:.1f} s" if time >= 1 else f"{1e3 * time:.0f} ms" for time in times]
        label = best["label"].partition(" (")[0] + (", extrapolated" if "extrapolated" in best else "")
        memory = " / ".join(_memory(row) or "-" for row in (best, own))
        size = result["title"].partition(": ")[2]
        table.append(
            [f"`{op}`", size, f"{shown[0]}: {label}", shown[1], f"{times[0] / times[1]:.1f}x", memory]
        )
    return markdown(table)


def between(text: str, begin: str, end: str, block: str) -> str:
    """The text with what stands between the lines ``begin`` and ``end`` replaced by the block.

    Raises:
        ValueError: if the text has no such lines.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"expected the lines {begin} and {end} around what is measured")
    return f"{before}{begin}\n{block}\n{end}{after}"
