"""Committed figures of kernels beside those at hand: what the programs of this room share.

A table is a JSON file {tool: version, "kernels": {kernel: {figure: number}}}, or a part of one. Its figures
depend on the tool that compiled the kernels, so that those of another version are not compared.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Figures = Mapping[str, Any]

RESULTS = Path(__file__).resolve().parents[1] / "results"
#: Part by which a figure may grow.
TOLERANCE = 0.02


class Table(NamedTuple):
    """A table: its file and part of it, the tool that compiled the kernels, and what must not grow."""

    path: Path
    tool: str
    figures: tuple[str, ...]
    part: str = ""

    def _whole(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def read(self) -> dict[str, Any]:
        """The table, or one without kernels."""
        found = self._whole()
        return (found.get(self.part) if self.part else found) or {self.tool: None, "kernels": {}}

    def write(self, version: str, kernels: Mapping[str, Figures], partly: bool) -> None:
        """Put the kernels in the table; ``partly``: keep the others, if they are of the same version."""
        before = self.read()
        kept = before["kernels"] if partly and before[self.tool] == version else {}
        found = {**before, self.tool: version, "kernels": dict(sorted({**kept, **kernels}.items()))}
        whole = {**self._whole(), self.part: found} if self.part else found
        self.path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")

    def not_compared(self, version: str) -> str:
        """Why the table says nothing about this version of the tool; "" if it does."""
        known = self.read()[self.tool]
        if known == version:
            return ""
        return f"not compared: the table is of {self.tool} {known}, and {version} is installed"

    def compare(self, kernels: Mapping[str, Figures]) -> list[str]:
        """A line for each kernel that the table lacks, and for each figure of another that got worse."""
        known, lines = self.read()["kernels"], []
        for kernel, now in kernels.items():
            if kernel in known:
                lines += [f"{kernel}: {worse}" for worse in self._worse(known[kernel], now)]
            else:
                lines.append(f"{kernel}: not in the table; accept it with --accept")
        return lines

    def _worse(self, before: Figures, now: Figures) -> Iterator[str]:
        for figure in self.figures:
            if now[figure] > before[figure] * (1 + TOLERANCE):
                part = now[figure] / before[figure] - 1 if before[figure] else math.inf
                yield f"{figure} {before[figure]} -> {now[figure]} ({part:+.1%}, {TOLERANCE:.0%} allowed)"
        if before.get("matrix") and not now["matrix"]:
            yield f"matrix {before['matrix']} -> 0"

    def guard(
        self, version: str, found: Callable[[], Iterable[tuple[str, Figures]]], options: argparse.Namespace
    ) -> list[str]:
        """Print figures as they come; what got worse, a line each. With --accept the table takes them."""
        reason = self.not_compared(version)
        if reason and not options.accept:
            print(reason)
            return []
        kernels = {}
        for kernel, figures in found():
            kernels[kernel] = figures
            shown = (f"{name} {value}" for name, value in figures.items() if not isinstance(value, dict))
            print(f"{kernel:<60}", *shown, flush=True)
        if options.accept:
            self.write(version, kernels, partly=bool(options.only))
            return []
        return self.compare(kernels)


def parser(doc: str | None, only: str = "TEXT") -> argparse.ArgumentParser:
    """The options of every program of this room."""
    p = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    p.add_argument("--accept", action="store_true", help="write the figures found instead of comparing them")
    p.add_argument("--only", default="", metavar=only, help=f"only what has {only} in its name")
    return p


def said(lines: list[str]) -> int:
    """Print what got worse; the program's exit code."""
    print("\n".join(lines))
    return int(bool(lines))
