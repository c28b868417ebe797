"""bench/gpu without a GPU: nothing is lost, whatever ends; and a dry run of a copy of the tree."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from argparse import Namespace

import pytest
import torch

from fastcsm.bench.gpu import bars, verbs
from fastcsm.bench.gpu.run import ROOT, Job, Run


def options(out, **changes):
    given = {"out": out, "cache": None, "only": "", "minutes": 1.0, "workers": 2, "rounds": 2}
    return Namespace(**{**given, "backends": list(verbs.BACKENDS), "dry_run": True, **changes})


def job(name, code, seconds=20.0):
    return Job("tests", name, ("-c", code), seconds)


def test_what_ends_badly_loses_nothing(tmp_path):
    run = Run("check", options(tmp_path, only="tests (?!left)"))
    jobs = [
        job("fine", "print('all is well')"),
        job("aborted", "import os; os.abort()"),
        job("hangs", "print('began', flush=True); import time; time.sleep(60)", seconds=2.5),
        job("raises", "raise MemoryError('too much')"),
        job("left out", "raise SystemExit(1)"),
    ]
    wanted = run.expect(jobs)
    before = json.loads((tmp_path / "check.json").read_text())["tests"]
    assert {entry["status"] for entry in before.values()} == {"not run"}
    assert list(before) == [one.name for one in jobs]
    run.side_by_side(wanted)
    stopped, late = run.expect([job("stopped", "import time; time.sleep(60)"), job("late", "print()")])
    threading.Timer(0.5, run.stop).start()
    run.run(stopped)
    run.run(late)
    document = json.loads((tmp_path / "check.json").read_text())
    found = {name: (entry["status"], entry.get("reason", "")) for name, entry in document["tests"].items()}
    assert found["fine"] == ("passed", "")
    assert found["aborted"] == ("crashed", f"{signal.SIGABRT.name}: ")
    assert found["hangs"][0] == "timeout"
    assert found["raises"][0] == "failed"
    assert "MemoryError: too much" in found["raises"][1]
    assert found["left out"] == ("not run", "left out by --only")
    assert found["stopped"] == ("not run", "the run was ended while it ran")
    assert found["late"] == ("not run", "the time was over")
    log = (tmp_path / "check.log").read_text()
    assert all(word in log for word in ("all is well", "began", "MemoryError: too much"))
    assert len(bars.failures(document)) == 3


def run_program(*arguments, tree=ROOT, **environment):
    command = [sys.executable, tree / "bench" / "gpu", *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(tmp_path):
    done = run_program("check", "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "bench/gpu cannot run here: torch finds no CUDA device; --dry-run needs none\n"
    assert "csm_loss bfloat16 triton" not in json.loads((tmp_path / "check.json").read_text())


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What ``git archive`` would copy, and the built libraries."""
    tree = tmp_path_factory.mktemp("bare")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "bench", "fastcsm", "kernels", "tests"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    if not any(names):
        pytest.skip("needs a git checkout")
    built = [
        path.relative_to(ROOT) for end in ("so", "json") for path in (ROOT / "fastcsm").glob(f"_*.{end}")
    ]
    for name in [*filter(None, names), *built]:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target)
    assert not (tree / "fastcsm" / "kernels").exists()
    return tree


@pytest.mark.slow
def test_a_dry_run_of_a_bare_copy(bare, tmp_path):
    """With no environment: every job is named, those asked for have run, and the tree is as before."""
    pytest.importorskip("triton")
    before = set(bare.rglob("*"))
    done = run_program(
        "time", "--dry-run", "--out", tmp_path, "--only", "masked_linear tf32, 64 rows", "--rounds", "2",
        tree=bare,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "time.json").read_text())
    cache = bare / "bench" / "gpu" / "__pycache__"  # of Python's own, which runs a folder
    assert set(bare.rglob("*")) - before <= {cache, cache / f"__main__.{sys.implementation.cache_tag}.pyc"}
    ran = {
        f"{section} {name}": entry["status"]
        for section in ("warmed", "timings")
        for name, entry in document[section].items()
        if entry["status"] != "not run"
    }
    name = "masked_linear tf32, 64 rows"
    assert ran == dict.fromkeys([f"warmed {name} triton", f"warmed {name} cuda", f"timings {name}"], "passed")
    assert set(document["timings"]) == {name for names in verbs.TIMINGS for name in names}
    assert {"triton", "cuda", "mask * weight"} <= set(document["timings"][name]["rows"])
    assert document["dry"]
    assert "a dry run" in done.stdout
