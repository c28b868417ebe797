"""Committed figures of kernels beside those at hand: what bench/resources.py and bench/instructions.py share.

A table is a JSON file {tool: version, "kernels": {kernel: {figure: number}}}. Its figures depend on the tool
that compiled the kernels, so that those of another version are not compared.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, int]

#: Part by which a figure may grow.
TOLERANCE = 0.02


def read(path: Path, tool: str) -> dict[str, Any]:
    """The table, or one without kernels."""
    if not path.exists():
        return {tool: None, "kernels": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, tool: str, version: str, kernels: Mapping[str, Figures], partly: bool) -> None:
    """Put the kernels found in the table; ``partly``: keep the others, if they are of the same version."""
    before = read(path, tool)
    kept = before["kernels"] if partly and before[tool] == version else {}
    found = {**before, tool: version, "kernels": dict(sorted({**kept, **kernels}.items()))}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def not_compared(before: Mapping[str, Any], tool: str, version: str) -> str:
    """Why the table says nothing about this version of the tool; "" if it does."""
    if before[tool] == version:
        return ""
    return f"not compared: the table is of {tool} {before[tool]}, and {version} is installed"


def compare(before: Mapping[str, Any], kernels: Mapping[str, Figures], figures: Sequence[str]) -> list[str]:
    """A line for each kernel that the table lacks, and for each of the figures that grew too much."""
    lines = []
    for kernel, now in kernels.items():
        known = before["kernels"].get(kernel)
        if known is None:
            lines.append(f"{kernel}: not in the table; accept it with --accept")
        else:
            lines += _worse(kernel, known, now, figures)
    return lines


def _worse(kernel: str, before: Figures, now: Figures, figures: Sequence[str]) -> Iterator[str]:
    for figure in figures:
        if now[figure] > before[figure] * (1 + TOLERANCE):
            part = now[figure] / before[figure] - 1 if before[figure] else math.inf
            yield (
                f"{kernel}: {figure} {before[figure]} -> {now[figure]} ({part:+.1%}, {TOLERANCE:.0%} allowed)"
            )
