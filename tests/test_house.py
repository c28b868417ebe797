"""Who may import whom, and how large code may be: rules of CONTRIBUTING.md, read from the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: A room imports from rooms of smaller numbers only; within a line, nothing.
LINES = {
    room: line
    for line, rooms in enumerate(
        (
            "activations random progress atomic data",
            "reference backends noise",
            "ops",
            "functional",
            "networks",
            "objectives densities",
            "samplers",
            "models",
            "training evaluation nn",
            "cli __init__",
            "__main__",
        )
    )
    for room in rooms.split()
}
FACES = ("__init__", "nn")
#: Lines of a file, lines of a function, parameters of a function.
LARGEST = 400, 60, 8


def room_of(path, package):
    """The room a file of the package lies in."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(path, package):
    """(line, names below the package) of every import of the package, wherever it stands."""
    here = path.relative_to(package).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [name.name.split(".") for name in node.names]
            yield from ((node.lineno, tuple(name[1:])) for name in found if name[0] == package.name)
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                module = here[: len(here) - node.level + 1] + module
            elif module[0] == package.name:
                module = module[1:]
            else:
                continue
            yield from ((node.lineno, (*module, name.name)) for name in node.names)


def file_of(module, package):
    """The file in which a module, or a name in it, is defined; None for a name of the face."""
    for names in (module, module[:-1]):
        path = package.joinpath(*names)
        if names and path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if names and (path / "__init__.py").is_file():
            return path / "__init__.py"
    return None


def sources(folder):
    """The Python files of a folder, without what is linked into it."""
    return sorted(path for path in folder.rglob("*.py") if path.resolve() == path.absolute())


def wrong_imports(package):
    """One sentence for each import that a room must not have."""
    found = []
    for path in sources(package):
        own = room_of(path, package)
        for line, module in imports(path, package):
            where, target = f"{path.relative_to(package.parent)}:{line}", file_of(module, package)
            if target is None and own != "__main__":
                found.append(f"{where}: {'.'.join(module) or package.name} is of the face {package.name}")
                continue
            room = own if target is None else room_of(target, package)
            if room in FACES and own not in (*FACES, "__main__"):
                found.append(f"{where}: {room} is a face, which nothing inside imports")
            elif room != own and LINES[room] >= LINES[own]:
                found.append(f"{where}: {own} (line {LINES[own]}) imports {room} (line {LINES[room]})")
    return found


def circles(package):
    """Files that import each other in a loop."""
    edges = {}
    for path in sources(package):
        targets = {file_of(module, package) for _, module in imports(path, package)}
        # A room's __init__ hands its files' names on: it is no file of the loop.
        edges[path] = {target for target in targets if target and target.name != "__init__.py"} - {path}
    reach = {}
    for path in edges:
        seen, new = set(), {path}
        while new:
            new = {target for one in new for target in edges.get(one, ())} - seen
            seen |= new
        reach[path] = seen
    return [str(path.relative_to(package.parent)) for path in edges if path in reach[path]]


def too_large(path):
    """One sentence for what exceeds the sizes of a file or a function.

    Flat may be a function on rows and the reference of an op, whose parameters are those of the op's schema.
    """
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    lines, length, parameters = LARGEST
    found = [f"{name}: {count} lines" for count in [len(text.splitlines())] if count > lines]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue  # a kernel
        if node.end_lineno - node.lineno + 1 > length:
            found.append(f"{name}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len(given) - (bool(given) and given[0].arg in ("self", "cls"))
        flat = path.parent.name in ("functional", "reference") and node.name.startswith(path.stem)
        if count > parameters and not flat:
            found.append(f"{name}:{node.lineno}: {node.name} has {count} parameters")
    return found


@pytest.fixture
def package(tmp_path):
    """A package with a room on each line."""
    folder = tmp_path / "fastcsm"
    for room in ("networks", "samplers", "models", "training", "evaluation"):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text("")
        (folder / room / "a.py").write_text("VALUE = 1\n")
    (folder / "__init__.py").write_text("from .nn import Model\n")
    (folder / "nn.py").write_text("from .models.a import VALUE as Model\n")
    return folder


@pytest.mark.parametrize(
    ("room", "text", "said"),
    [
        ("networks", "from ..samplers.a import VALUE", "a.py:1: networks (line 4) imports samplers (line 6)"),
        ("networks", "from .. import models", "a.py:1: networks (line 4) imports models (line 7)"),
        ("networks", "import fastcsm.models.a", "a.py:1: networks (line 4) imports models (line 7)"),
        ("networks", "from fastcsm.models import a", "a.py:1: networks (line 4) imports models (line 7)"),
        ("training", "from ..evaluation import a", "a.py:1: training (line 8) imports evaluation (line 8)"),
        (
            "samplers",
            "def f():\n    from ..models import a",
            "a.py:2: samplers (line 6) imports models (line 7)",
        ),
        (
            "samplers",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..models import a",
            "a.py:3: samplers (line 6) imports models (line 7)",
        ),
        ("training", "from ..nn import Model", "a.py:1: nn is a face, which nothing inside imports"),
        ("training", "from .. import Model", "a.py:1: Model is of the face fastcsm"),
        ("training", "import fastcsm", "a.py:1: fastcsm is of the face fastcsm"),
    ],
)
def test_planted_imports_are_named(package, room, text, said):
    assert wrong_imports(package) == []
    (package / room / "a.py").write_text(f"{text}\n")
    (found,) = wrong_imports(package)
    assert found == f"fastcsm/{room}/{said}"


def test_planted_circles_are_named(package):
    assert circles(package) == []
    (package / "models" / "a.py").write_text("from .b import VALUE\n")
    (package / "models" / "b.py").write_text("from . import a\n")
    assert circles(package) == ["fastcsm/models/a.py", "fastcsm/models/b.py"]


def test_planted_sizes_are_named(tmp_path):
    path = tmp_path / "a.py"
    body = "\n".join(["    pass"] * 60)
    many = "def g(self, a, b, c, d, e, f, g, h, *, i): pass"
    path.write_text(f"def f():\n{body}\n\n{many}\n" + "\n" * 400)
    assert too_large(path) == ["a.py: 463 lines", "a.py:1: f has 61 lines", "a.py:63: g has 9 parameters"]


def test_rooms_import_from_lower_lines_only():
    assert wrong_imports(ROOT / "fastcsm") == []
    assert circles(ROOT / "fastcsm") == []


def test_rooms_are_few_and_all_known():
    paths = [path for path in (ROOT / "fastcsm").iterdir() if not path.is_symlink()]
    rooms = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms == set(LINES)
    assert len(rooms) <= 21


def asks_for_a_form(path):
    """Lines that ask how the levels of a model are served, which its parts answer."""
    form = re.compile(r"\.(conditional|staged)\b(?! import)|[\"'](conditional|staged)[\"']")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path.relative_to(ROOT)}:{n}: {line.strip()}"
        for n, line in enumerate(lines, 1)
        if form.search(line)
    ]


def test_only_one_model_knows_its_forms():
    own = {ROOT / "fastcsm" / "models" / "arcsm.py", ROOT / "fastcsm" / "training" / "recipes" / "arcsm.py"}
    assert all(map(asks_for_a_form, own))
    assert [
        line for path in sources(ROOT / "fastcsm") if path not in own for line in asks_for_a_form(path)
    ] == []


def test_files_and_functions_are_small():
    paths = [path for room in ("fastcsm", "bench", "tests") for path in sources(ROOT / room)]
    assert [line for path in paths for line in too_large(path)] == []
