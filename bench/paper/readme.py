"""Bring README.md's experiments up to date with bench/results/paper/: ``python bench/paper/readme.py``."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- experiments: begin -->", "<!-- experiments: end -->"
NOTE = (
    "Budgets are minutes a model on a shared core, and settings were chosen with the held-out score of toys"
    " and digits in sight: compare within a table, not with published figures."
)
TITLES = {"toys": "2-D toys", "digits": "8x8 digits", "likelihood": "MNIST"}


def block(results: Path) -> str:
    """The section, markers included: the committed tables, and how to make them again."""
    parts = [BEGIN, "### Measured densities", NOTE]
    for name, title in TITLES.items():
        file = results / f"{name}.md"
        if file.exists():
            text = file.read_text(encoding="utf-8").strip()
            parts.append(f"**{title}** (`python bench/paper/{name}.py`)\n\n{text}")
    return "\n\n".join([*parts, END])


def updated(text: str, results: Path) -> str:
    """README text with its section replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + block(results) + rest.partition(END)[2]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(updated(text, ROOT / "bench" / "results" / "paper"), encoding="utf-8")
