"""What was found on a GPU, in words: lines as they come, the bars, and the tables of docs/results.md.

Nothing here needs a GPU, or torch.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parents[1] / "results"
SCHEMA = 2
SECTIONS = ("ceilings", "checks", "sanitizer", "warmed", "timings", "profiles", "tests")
NOTHING = "Nothing has been measured on a GPU yet: there is no file of one in bench/results/."
Result = dict[str, Any]


def line(section: str, name: str, result: Mapping[str, Any]) -> str:
    """What is printed of a job when it ends."""
    words = [f"{section} {name}: {result['status']}"]
    if "share" in result:
        words.append(f"error {float(result['share']):.2g} of allowed")
    if "first_call_seconds" in result:
        words.append(f"first call {result['first_call_seconds']:.1f} s")
    if "seconds" in result:
        words.append(f"{result['seconds']:.0f} s")
    for kernel in result.get("kernels", [])[:4]:
        figures = (f"{figure} {kernel.get(figure)}" for figure in ("registers", "spills", "shared"))
        words.append(f"{kernel['name']} {' '.join(figures)}")
    if result.get("reason"):
        words.append(result["reason"].replace("\n", " ")[:400])
    text = ["; ".join(words)]
    for label, row in result.get("rows", {}).items():
        if "median" in row:
            over = " ".join(f"{ratio:.2f}x {backend}" for backend, ratio in row.get("over", {}).items())
            rate = f"{row['rate'] / 1e12:.3g} T/s" if "rate" in row else ""
            text.append(f"  {label:<24}{1e3 * row['median']:>12.4f} ms  {row['way']:<9}{over}{rate}")
        else:
            text.append(f"  {label:<24}{row['error'][:200]}")
    return "\n".join(text)


def figures(text: str) -> dict[str, str]:
    """What ncu says of a kernel, without what it explains: by name, with units."""
    rows = re.findall(r"^ {4}(\S(?:[^ ]| (?! ))+) {2,}(\S+ +)?([\d.,]+)$", text, re.MULTILINE)
    return {name: f"{value} {unit.strip()}".strip() for name, unit, value in rows}


class Bar(NamedTuple):
    """A line of what must be shown: measured is None where the document does not say."""

    name: str
    measured: float | str | None
    bar: str
    reached: bool | None


def _timing(document: Result, name: str) -> Result:
    return document.get("timings", {}).get(name, {})


def _over(document: Result, name: str, peer: str, backend: str | None = None) -> float | None:
    """How many times as long as a backend a peer took; of the faster backend by default."""
    over = _timing(document, name).get("rows", {}).get(peer, {}).get("over", {})
    return over.get(backend) if backend else max(over.values(), default=None)


def _own(document: Result, name: str, figure: str, choose: Callable, unit: float) -> float | None:
    """The best of a figure of the backends, so many of which are its unit."""
    rows = _timing(document, name).get("rows", {})
    known = (unit * rows[b][figure] for b in ("triton", "cuda") if figure in rows.get(b, {}))
    return choose(known, default=None)


def _most(document: Result, kind: str) -> float | None:
    """The most extra memory of csm_loss in MiB, or how much more at twice the rows."""
    found = []
    for name in ("csm_loss bfloat16", "csm_loss tf32"):
        once, twice = (_timing(document, name).get(f"extra_memory{end}", {}) for end in ("", "_twice"))
        for backend in ("triton", "cuda"):
            if backend in once and backend in twice:
                growth = twice[backend] - once[backend]
                found.append((max(once[backend], twice[backend]) if kind == "most" else growth) / 2**20)
    return max(found, default=None)


def _counted(document: Result, section: str, among: str = "") -> tuple[str | None, bool | None]:
    """("passed of all that run", whether all did)."""
    entries = [e for name, e in document.get(section, {}).items() if name.startswith(among)]
    entries = [e for e in entries if e["status"] != "refused"]
    if not any(e["status"] != "not run" for e in entries):
        return None, None
    passed = sum(e["status"] == "passed" for e in entries)
    return f"{passed} of {len(entries)}", passed == len(entries)


def bars(document: Result) -> Iterator[Bar]:
    """Every bar of what must be shown on a GPU."""

    def at_least(name: str, measured: float | None, bar: float, unit: str = "x") -> Bar:
        return Bar(name, measured, f">= {bar:g}{unit}", None if measured is None else measured >= bar)

    def at_most(name: str, measured: float | None, bar: float, unit: str) -> Bar:
        return Bar(name, measured, f"<= {bar:g}{unit}", None if measured is None else measured <= bar)

    for precision, share in (("bfloat16", 25), ("tf32", 30)):
        name = f"csm_loss {precision}"
        eager, compiled = "eager double backward", "compiled tangent"
        yield at_least(f"{name}: {eager} / Triton", _over(document, name, eager, "triton"), 10)
        yield at_least(f"{name}: {compiled} / Triton", _over(document, name, compiled, "triton"), 3)
        yield at_least(f"{name}: Triton / CUDA C++", _over(document, name, "triton", "cuda"), 1.2)
        yield at_least(f"{name}: {eager} / CUDA C++", _over(document, name, eager, "cuda"), 16)
        part = _own(document, name, "share_of_mm", max, 100)
        yield at_least(f"{name}: share of torch.mm", part, share, "%")
    yield at_most("csm_loss: extra memory", _most(document, "most"), 64, " MiB")
    yield at_most("csm_loss: more of it at twice the rows", _most(document, "growth"), 1, " MiB")
    for precision in ("bfloat16", "tf32"):
        name = f"langevin_draw {precision}"
        yield at_most(f"{name}: a step", _own(document, name, "seconds_per_step", min, 1e6), 1, " us")
        yield at_least(f"{name}: loop / fastcsm", _over(document, name, "loop"), 40)
        yield at_least(f"{name}: step in a graph / fastcsm", _over(document, name, "step in a graph"), 8)
        launches = _timing(document, name).get("launches", {}).values()
        most = max((count for count in launches if count is not None), default=None)
        yield at_most(f"{name}: launches of a draw", most, 1, "")
    for precision in ("bfloat16", "tf32"):
        name = f"langevin {precision}"
        yield at_least(f"{name}: eager loop / fastcsm", _over(document, name, "loop"), 30)
        yield at_least(f"{name}: loop in a graph / fastcsm", _over(document, name, "loop in a graph"), 5)
    name = "masked_linear bfloat16, MADE"
    yield at_least("MADE bfloat16: dense, masks folded", _over(document, name, "dense, masks folded"), 1)
    yield at_least("MADE bfloat16: mask * weight", _over(document, name, "mask * weight"), 3)
    for precision in ("tf32", "float32"):
        over = _over(document, f"conditional_density {precision}", "eager quadrature")
        yield at_least(f"log_prob {precision}: eager quadrature / fastcsm", over, 10)
    for title, section, among in (
        ("every op within its tolerance", "checks", ""),
        ("memcheck clean", "sanitizer", "memcheck"),
        ("racecheck clean", "sanitizer", "racecheck"),
        ("tests on the GPU", "tests", ""),
    ):
        measured, reached = _counted(document, section, among)
        yield Bar(title, measured, "all", reached)


def _text(bar: Bar) -> list[str]:
    measured = "not measured" if bar.measured is None else bar.measured
    if not isinstance(measured, str):
        measured = f"{measured:.3g}" + re.sub(r"^[<>]= [\d.]+", "", bar.bar)
    return [bar.name, measured, bar.bar, {None: "", True: "reached", False: "not reached"}[bar.reached]]


def failures(document: Result) -> list[str]:
    """What ran and did not pass."""
    return [
        f"{section} {name}: {entry['status']}: {entry.get('reason', '')[:300]}"
        for section in SECTIONS
        for name, entry in document.get(section, {}).items()
        if entry["status"] not in ("passed", "refused", "not run")
    ]


def summary(document: Result) -> list[str]:
    """The last lines of a run: counts, what failed, and the bars that it measured."""
    lines = []
    for section in SECTIONS:
        states = [entry["status"] for entry in document.get(section, {}).values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        lines += [f"{section}: {counts}"] if states else []
    late = [
        f"{section} {name}"
        for section in SECTIONS
        for name, entry in document.get(section, {}).items()
        if entry["status"] == "not run" and re.match("the (time|run) was", entry["reason"])
    ]
    lines += [f"not run, as the time was over: {', '.join(late)}"] if late else []
    lines += failures(document)
    shown = [_text(bar) for bar in bars(document) if bar.measured is not None]
    if document["dry"]:
        lines.append("a dry run: no figure counts")
        shown = [[*row[:3], ""] for row in shown]
    return lines + [f"{a:<52}{b:>16}  {c:<12}{d}" for a, b, c, d in shown]


def merged(documents: Sequence[Result]) -> Result:
    """One document of runs on one kind of GPU; of equal entries the later one that ran.

    Raises:
        ValueError: for a dry run, and for runs of several GPUs.
    """
    if any(document["dry"] for document in documents):
        raise ValueError("a dry run measures nothing")
    if not all("machine" in document for document in documents):
        raise ValueError("a file names no GPU: its run found none")
    names = sorted({document["machine"]["gpu"] for document in documents})
    if len(names) > 1:
        raise ValueError(f"the files must be of one GPU, and are of {', '.join(names)}")
    found: Result = {"schema": SCHEMA, "dry": False, "machine": documents[-1]["machine"]}
    for document in documents:
        for section in SECTIONS:
            for name, entry in document.get(section, {}).items():
                before = found.setdefault(section, {}).get(name)
                if before is None or entry["status"] != "not run":
                    found[section][name] = entry
    return found


def committed() -> list[Result]:
    """The documents of GPUs in bench/results/."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return [document for document in documents if document.get("machine", {}).get("gpu")]


def page(documents: Sequence[Result]) -> str:
    """The GPU section of docs/results.md."""
    lines = ["## Measured on GPUs", ""]
    if not documents:
        lines += [NOTHING]
    for document in documents:
        machine = document["machine"]
        versions = f"torch {machine['torch']}, CUDA {machine['cuda']}, Triton {machine['triton']}"
        lines += [f"**{machine['gpu']}** ({versions})", ""]
        lines += ["| what | measured | bar | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(_text(bar))} |" for bar in bars(document)]
        lines += ["", "| timing | | median ms (quartiles) | times fastcsm's | share of torch.mm |"]
        lines += ["|---|---|---|---|---|", *_rows(document), ""]
    return "\n".join(lines).rstrip()


def _rows(document: Result) -> Iterator[str]:
    for name, timing in document.get("timings", {}).items():
        first = name
        for label, row in timing.get("rows", {}).items():
            if "median" not in row or label.startswith("mm"):
                continue
            label += " (inaccurate)" * (label in timing.get("inaccurate", []))
            median, q1, q3 = (f"{1e3 * row[key]:.3g}" for key in ("median", "q1", "q3"))
            over = f"{max(row['over'].values()):.2f}x" if row["over"] else ""
            share = f"{row['share_of_mm']:.0%}" if "share_of_mm" in row else ""
            yield f"| {first} | {label} | {median} ({q1}-{q3}) | {over} | {share} |"
            first = ""


def main(files: Sequence[Path]) -> int:
    """Runs of one GPU into its file in bench/results/."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    gpu = documents[0].get("machine", {}).get("gpu")
    slug = re.sub(r"[^a-z0-9]+", "-", str(gpu).lower()).strip("-")
    target = RESULTS / f"{slug}.json"
    try:
        before = [json.loads(target.read_text(encoding="utf-8"))] if target.exists() else []
        found = merged([*before, *documents])
    except ValueError as error:
        print(f"bench/gpu: {error}", file=sys.stderr)
        return 1
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{target}; then: python bench/publish.py, and python bench/gpu/measured.py {target}")
    return 0
