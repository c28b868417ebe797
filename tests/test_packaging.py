"""What is installed, how it is built, and what importing it costs."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fastcsm

ROOT = Path(__file__).resolve().parents[1]
TREE = (
    "fastcsm",
    "kernels",
    "bench",
    "csrc",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
)


def run(*command, cwd, **environment):
    merged = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=merged, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources without anything built."""
    target = tmp_path / "tree"
    target.mkdir()
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
            shutil.copytree(source, target / name, ignore=ignore)
        else:
            shutil.copy(source, target / name)
    return target


def build_wheel(tree, **environment):
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-index", "--no-build-isolation"]
    done = run(*command, "--no-deps", "--wheel-dir", "dist", ".", cwd=tree, **environment)
    return done, sorted((tree / "dist").glob("*.whl"))


def test_import_is_light():
    code = """
import sys, torch
before = set(sys.modules)
import fastcsm
print(*sorted(set(sys.modules) - before))
"""
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    new = done.stdout.split()
    outside = {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names) - {"torch", "fastcsm"}
    assert outside == set()
    assert [name for name in new if name.startswith(("torch._dynamo", "torch._inductor", "torch.func"))] == []
    own = {name for name in new if name.partition(".")[0] == "fastcsm"}
    assert own.isdisjoint({"fastcsm.cli", "fastcsm.training", "fastcsm.bench", "fastcsm.evaluation"})


def test_pure_python_wheel(tree, tmp_path):
    done, wheels = build_wheel(tree, FASTCSM_BUILD="python")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "pure-Python" in line]
    reason = "FASTCSM_BUILD=python was set at installation; unset it and reinstall"
    assert lines == [f"fastcsm: pure-Python install, no CPU library: {reason}."]
    (wheel,) = wheels
    assert wheel.name == f"fastcsm-{fastcsm.__version__}-py3-none-any.whl"
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert {name.partition("/")[0] for name in names} == {
        "fastcsm",
        f"fastcsm-{fastcsm.__version__}.dist-info",
    }
    modules = (
        "kernels/common/head.py",
        "reference/csm_loss.py",
        "bench/command.py",
        "bench/micro/csm_loss.py",
    )
    assert {f"fastcsm/{name}" for name in (*modules, "backends/measured.json", "_build.json")} <= set(names)
    assert not any(re.match("fastcsm/bench/(paper|results|machine)", name) for name in names)
    assert not any(name.endswith((".so", ".cpp", ".h")) for name in names)
    record = json.loads((site / "fastcsm" / "_build.json").read_text())
    assert record["cpu"] == record["cuda"] == reason
    code = """
import importlib.util, torch, fastcsm, fastcsm.kernels.common
from fastcsm.backends import measured
assert importlib.util.find_spec("kernels") is None
assert isinstance(measured.table(), tuple)
assert fastcsm.info()["ops"]["csm_loss"]["cpu"]["backend"] == "reference"
head = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
fastcsm.csm_loss(head, torch.zeros(5, 2, 2), torch.zeros(5, 2)).backward()
print(fastcsm.info())
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stdout


def test_no_compiler_means_pure_python(tree):
    done, wheels = build_wheel(tree, CXX="no-such-compiler", FASTCSM_BUILD="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no C++ compiler was found (no-such-compiler)" in done.stdout + done.stderr
    assert [wheel.name for wheel in wheels] == [f"fastcsm-{fastcsm.__version__}-py3-none-any.whl"]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
def test_broken_compile_fails(tree):
    shutil.rmtree(tree / "csrc")
    (tree / "csrc").mkdir()
    (tree / "csrc" / "library_cpu.cpp").write_text("#error broken on purpose\n")
    done, wheels = build_wheel(tree, FASTCSM_BUILD="")
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout + done.stderr
    assert wheels == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize(
    ("build", "source"), [("cuda", "__global__ void kernel() {}"), ("", "#error broken")]
)
def test_cuda_library(tree, build, source):
    """A wheel has both libraries; with FASTCSM_BUILD unset an nvcc that fails leaves the second out."""
    shutil.rmtree(tree / "csrc")
    (tree / "csrc" / "cuda").mkdir(parents=True)
    for name in ("library_cpu.cpp", "library_cuda.cpp"):
        (tree / "csrc" / name).write_text("int nothing() { return 0; }\n")
    (tree / "csrc" / "cuda" / "kernel.cu").write_text(source + "\n")
    done, (wheel,) = build_wheel(tree, FASTCSM_BUILD=build)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(wheel) as archive:
        libraries = {name for name in archive.namelist() if name.endswith(".so")}
        record = json.loads(archive.read("fastcsm/_build.json"))
    assert libraries == {"fastcsm/_cpu.abi3.so"} | ({"fastcsm/_cuda.abi3.so"} if build else set())
    assert record["cpu"] == ""
    assert record["cuda"].startswith("nvcc could not compile it") == (build == "")
    assert re.fullmatch(r"\d+\.\d+", record["nvcc"])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FASTCSM_BUILD": "nothing"}, "FASTCSM_BUILD=nothing: expected auto, cpu, cuda or python."),
        ({"FASTCSM_BUILD": "cpu", "CXX": "no-such-compiler"}, "FASTCSM_BUILD=cpu: no C++ compiler was found"),
        (
            {"FASTCSM_BUILD": "cuda", "CXX": "no-such-compiler"},
            "FASTCSM_BUILD=cuda: no C++ compiler was found",
        ),
        (
            {"FASTCSM_BUILD": "cuda", "CXX": "/bin/true", "PATH": "", "CUDA_HOME": ""},
            "FASTCSM_BUILD=cuda: nvcc was not found",
        ),
    ],
)
def test_build_refuses_in_one_line(tree, environment, message):
    done = run(sys.executable, "setup.py", "--version", cwd=tree, **environment)
    assert done.returncode != 0
    assert done.stderr.startswith(message)
    assert len(done.stderr.strip().splitlines()) == 1


def test_one_version():
    assert metadata.version("fastcsm") == fastcsm.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastcsm.__version__)


def test_dependencies():
    required = metadata.requires("fastcsm") or []
    plain = {re.match(r"[\w-]+", line)[0] for line in required if "extra ==" not in line}
    assert plain == {"torch", "numpy"}
    unbounded = [line for line in required if not re.search(r"[<>=~]=?\s*\d", line.partition(";")[0])]
    assert unbounded == []


def test_two_commands():
    text = (ROOT / "Makefile").read_text()
    assert re.findall(r"^([a-z-]+):", text, re.MULTILINE) == ["demo", "test"]
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


def test_no_machine_in_files():
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = r"/(home|root|opt|Users|work|mnt)/\w|[A-Z]:\\\\\w"
    hosts = r"pypi\.|pythonhosted|download\.pytorch|anaconda\.|deb\.debian"
    pattern = re.compile(f"{paths}|{hosts}")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{name}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []
