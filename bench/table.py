"""Committed figures of kernels beside those at hand: what bench/resources.py and bench/instructions.py share.

A table is a JSON file {tool: version, "kernels": {kernel: {figure: number}}}. Its figures depend on the tool
that compiled the kernels, so that those of another version are not compared.
"""

import json
from collections.abc import Mapping
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
    found = {tool: version, "kernels": dict(sorted({**kept, **kernels}.items()))}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def not_compared(before: Mapping[str, Any], tool: str, version: str) -> str:
    """Why the table says nothing about this version of the tool; "" if it does."""
    if before[tool] == version:
        return ""
    return f"not compared: the table is of {tool} {before[tool]}, and {version} is installed"


def line(kernel: str, figure: str, before: int, now: int) -> str:
    part = f" ({now / before - 1:+.1%}, {TOLERANCE:.0%} allowed)" if before else ""
    return f"{kernel}: {figure} {before} -> {now}{part}"


def worse(kernel: str, before: Figures, now: Figures, figures: tuple[str, ...]) -> list[str]:
    """Of the figures named, those that grew beyond the tolerance, a line each."""
    return [
        line(kernel, figure, before[figure], now[figure])
        for figure in figures
        if now[figure] > before[figure] * (1 + TOLERANCE)
    ]


def unknown(before: Mapping[str, Any], kernels: Mapping[str, Figures], program: str) -> list[str]:
    """A line for each kernel that the table lacks."""
    missing = sorted(kernels.keys() - before["kernels"].keys())
    return [f"{kernel}: not in the table; accept it with python {program} --accept" for kernel in missing]
