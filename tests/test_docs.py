"""What the documents say: README's code runs, links and paths lead somewhere, commands and options exist."""

import argparse
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch

import fastcsm
from fastcsm import nn
from fastcsm.cli.main import parser

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING, BENCH = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md"))
DOCUMENTS = [README, CONTRIBUTING, BENCH, *sorted((ROOT / "docs").glob("*.md"))]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FENCED = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)


def read(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def test_readme_is_short():
    text = read(README)
    assert len(text.encode()) <= 9000
    assert len(text.splitlines()) <= 160
    assert [line for line in FENCED.sub("", text).splitlines() if len(line) > 130 and line[0] != "|"] == []


def test_first_numbers_of_the_readme_are_in_its_table():
    before, _, rest = read(README).partition(BEGIN)
    table = rest.partition(END)[0]
    (first,) = re.findall(r"^\*\*\d.*", before, re.MULTILINE)
    wanted, measured = (re.findall(r"[\d.]+(?:x| MiB)", text) for text in (first.replace("*", ""), table))
    assert len(re.findall(r"\*\*[\d.]+", first)) == 3
    assert len(table.strip().splitlines()) == 9  # heading, rule, seven rows
    assert set(wanted) <= set(measured), "the first numbers are not those of the table"


def blocks():
    """The Python code of README.md."""
    return re.findall(r"^```python\n(.*?)^```", read(README), re.DOTALL | re.MULTILINE)


def test_before_and_after():
    """The same loss, and the same gradients of head and context."""
    results = []
    for block in blocks()[:2]:
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 16), torch.nn.Softplus(), torch.nn.Linear(16, 16), torch.nn.Softplus()]
        head = torch.nn.Sequential(*layers, torch.nn.Linear(16, 1)).double()
        context = torch.randn(5, 6, 3, dtype=torch.float64, requires_grad=True)
        x = torch.randn(5, 6, dtype=torch.float64)
        names = {"torch": torch, "fastcsm": fastcsm, "head": head, "context": context, "x": x}
        exec(block, names)
        results.append([names["loss"].detach(), context.grad, *(p.grad for p in head.parameters())])
    (before, after), used = results, ["create_graph=True" in block for block in blocks()[:2]]
    assert used == [True, False]
    assert all(value is not None and value.abs().sum() > 0 for value in before)
    torch.testing.assert_close(after, before)


def test_model_of_the_readme():
    """The eight lines train a model, draw samples and give its likelihood."""
    (block,) = blocks()[2:]
    assert len(block.splitlines()) == 8
    torch.manual_seed(0)
    data = 0.3 * torch.randn(32, 64) + 0.5 * torch.randn(32, 1).sign()
    names = {"torch": torch, "nn": nn, "batches": [data] * 25}
    torch.manual_seed(1)
    exec(block.splitlines()[0], names)
    untrained = names["model"]
    torch.manual_seed(1)
    exec(block, names)
    model, samples, log_q = (names[name] for name in ("model", "samples", "log_q"))
    noise = model.draw_noise(data.shape)
    assert model.loss(data, noise=noise) < untrained.loss(data, noise=noise)
    assert samples.shape == (16, 64)
    assert samples.isfinite().all()
    assert log_q.shape == (32,)
    assert log_q.isfinite().all()
    (completed,) = re.findall(r"`(model\.sample\([^`]*known=32\))`", read(README))
    torch.testing.assert_close(eval(completed, names)[:, :32], data[:16, :32])


def names_of_the_readme():
    """(module, name) of what README.md says is inside."""
    section = read(README).partition("## What is inside")[2].partition("##")[0]
    for row in section.splitlines():
        cell, module = row.strip("|").partition("|")[0], "fastcsm"
        for name in re.findall(r"`([\w.]+)`", cell):
            above, _, own = name.rpartition(".")
            module = f"fastcsm.{above}" if above else module
            yield module, own


def test_readme_names_all_that_is_public():
    found = set(names_of_the_readme())
    assert [each for each in found if not has(*each)] == []
    public = {(module.__name__, name) for module in (nn, fastcsm.functional) for name in module.__all__}
    public |= {("fastcsm", name) for name in set(fastcsm.__all__) - {"__version__", "functional", "nn"}}
    assert public - found == set()


def has(module, name):
    """Whether a module, or a package, has something of that name."""
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None


def links(path):
    """The relative targets of a document's links."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", read(path)))
    return [target.partition("#")[0] for target in found if not re.match(r"[a-z]+:|#", target)]


@each_document
def test_links_lead_somewhere(path):
    missing = [target for target in links(path) if not (path.parent / target).exists()]
    outside = [target for target in links(path) if ROOT not in (path.parent / target).resolve().parents]
    assert missing == outside == []


def test_readme_leads_to_the_other_documents():
    found = {(ROOT / target).resolve() for target in links(README)}
    assert {*DOCUMENTS, ROOT / "bench/results/readme.png"} - {README} <= found


def code(path):
    """Indented lines and what stands between backticks, in words."""
    text = FENCED.sub("", read(path))
    lines = [line.split() for line in text.splitlines() if line.startswith("    ")]
    return [*lines, *(snippet.split() for snippet in re.findall(r"`([^`]+)`", text))]


def commands(path):
    """Commands with their arguments and whatever stands behind them in the line."""
    for words in code(path):
        while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            words = words[1:]
        if words[:1] in (["fastcsm"], ["python"], ["pytest"]) and len(words) > 1:
            yield words


def wrong_command(words):
    """Why a command does not exist, or ""."""
    program, first, *rest = words
    flags = {flag for word in rest for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", word)}
    if program == "fastcsm":
        known = next(a for a in parser("arcsm")._actions if isinstance(a, argparse._SubParsersAction)).choices
        if first not in known:
            return f"no command fastcsm {first}"
        reader = known[first]
        if first == "bench":  # which reads its arguments itself
            reader = importlib.import_module("fastcsm.bench.command").parser()
        return ", ".join(sorted(flags - set(reader._option_string_actions)))
    if program == "pytest" or first == "-m":
        return ""
    target = ROOT / first
    if target.stem.isupper():  # any program of a folder
        target = target.parent
    if not (target.is_file() or any(target.glob("*.py"))):
        return f"no file {first}"
    folder = target if target.is_dir() else target.parent
    source = "".join(map(read, sorted(folder.glob("*.py"))))
    return ", ".join(sorted(flag for flag in flags - {"--help"} if f'"{flag}"' not in source))


@each_document
def test_commands_exist(path):
    wrong = {" ".join(words): wrong_command(words) for words in commands(path)}
    assert {command: why for command, why in wrong.items() if why} == {}
    modules = [words[2] for words in commands(path) if words[:2] == ["python", "-m"]]
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_commands_are_found():
    found = [words for path in (README, BENCH) for words in commands(path)]
    assert ["fastcsm", "bench", "--quick"] in [words[:3] for words in found]
    assert any(words[0] == "python" and words[1].startswith("bench/") for words in found)
    assert wrong_command(["fastcsm", "demolish"]) == "no command fastcsm demolish"
    assert wrong_command(["fastcsm", "sample", "runs/digits", "--colour"]) == "--colour"
    assert wrong_command(["python", "bench/nothing.py"]) == "no file bench/nothing.py"
    assert wrong_command(["python", "bench/sweeps.py", "--colour"]) == "--colour"


@each_document
def test_paths_exist(path):
    """Whatever begins with a folder of the repository and has no placeholder."""
    folders = "bench|csrc|docs|fastcsm|kernels|tests"
    words = [word.strip(".,;:()") for words in code(path) for word in words]
    paths = [word for word in words if re.fullmatch(rf"(?:{folders})/[\w./-]*", word)]
    assert [word for word in paths if not (ROOT / word).exists() and not Path(word).stem.isupper()] == []


def tables():
    """The rows of CONTRIBUTING.md's tables, as lists of cells."""
    lines = [line for line in read(CONTRIBUTING).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_contributing_names_what_exists():
    """Rooms of the house, and every path of the tables; of <...> the folder."""
    wrong, rooms, count, package = [], 0, 0, ROOT / "fastcsm"
    homes = [ROOT, package, *(path for path in package.iterdir() if path.is_dir())]
    for cells in tables():
        names = [name for cell in cells for name in re.findall(r"`([^`\s]+)`", cell)]
        if cells[0].isdigit():
            own = re.findall(r"`([^`]+)`", cells[1])
            rooms += len(own)
            wrong += [
                name for name in own if not any((package / each).exists() for each in (name, f"{name}.py"))
            ]
        for name in names:
            if "/" in name or re.search(r"\.(?:py|h|cpp|cu)$", name):
                count += 1
                wanted = name.partition("<")[0]
                wrong += [name] * (not any((home / wanted).exists() for home in homes))
    assert wrong == []
    assert rooms >= 20
    assert count >= 20
