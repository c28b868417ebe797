"""bench/gpu.py without a GPU: nothing is lost, whatever ends; and a dry run of all it does."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import gpu
import gpu_report
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def options(out, **changes):
    given = {"out": out, "cache": None, "only": "", "minutes": 1.0, "workers": 2, "rounds": 2}
    return Namespace(**{**given, "backends": list(gpu.BACKENDS), "dry_run": True, **changes})


def job(name, code, seconds=20.0):
    return gpu.Job("tests", name, ("-c", code), seconds)


def test_what_ends_badly_loses_nothing(tmp_path):
    run = gpu.Run("check", options(tmp_path, only="tests (?!left)"))
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
    assert len(gpu_report.failures(document)) == 3


def run_program(*arguments, tree=ROOT, **environment):
    command = [sys.executable, tree / "bench" / "gpu.py", *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(tmp_path):
    done = run_program("check", "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "bench/gpu.py cannot run here: torch finds no CUDA device; --dry-run needs none\n"
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
    before = sorted(bare.rglob("*"))
    done = run_program(
        "time", "--dry-run", "--out", tmp_path, "--only", "masked_linear tf32, 64 rows", "--rounds", "2",
        tree=bare,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "time.json").read_text())
    assert sorted(bare.rglob("*")) == before
    ran = {
        f"{section} {name}": entry["status"]
        for section in ("warmed", "timings")
        for name, entry in document[section].items()
        if entry["status"] != "not run"
    }
    name = "masked_linear tf32, 64 rows"
    assert ran == dict.fromkeys([f"warmed {name} triton", f"warmed {name} cuda", f"timings {name}"], "passed")
    assert set(document["timings"]) == {name for names in gpu.TIMINGS for name in names}
    assert {"triton", "cuda", "mask * weight"} <= set(document["timings"][name]["rows"])
    assert document["dry"]
    assert "a dry run" in done.stdout


@pytest.fixture
def dry(monkeypatch):
    """The modules of a process of bench/gpu.py, with tiny sizes."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("bench/gpu.py runs them on the device")
    import gpu_checks
    import gpu_subjects
    import gpu_timings

    monkeypatch.setattr(gpu_subjects, "DRY", True)
    before = torch.get_float32_matmul_precision()
    yield Namespace(checks=gpu_checks, timings=gpu_timings, plan=gpu_subjects.Plan)
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("op", gpu.OPS)
def test_checks(dry, op):
    """The CPU library in the place of CUDA C++; the flow of the bare copy interprets Triton's kernels."""
    kept = {}
    found = dry.checks.KINDS["check"](f"{op} tf32", dry.plan(("cuda",), 1), kept.update)
    assert found["status"] in ("passed", "refused"), found
    assert found["status"] == "refused" or 0 <= found["share"] <= 1
    assert kept["cases"]
    refused = dry.checks.KINDS["edges"](f"{op} float16", dry.plan(("cuda",), 1), kept.update)
    assert refused["status"] == "refused"
    assert "cannot run" in refused["reason"]


def test_a_wrong_result_is_found(dry, monkeypatch):
    right = dry.checks.comparisons.loss

    def wrong(case):
        found = right(case)
        return {**found, "loss": found["loss"] * 1.01}

    sizes = dry.checks.heads(loss=(wrong, dry.checks.comparisons.plain_gradients))
    monkeypatch.setitem(dry.checks.SIZES, "csm_loss", sizes)
    found = dry.checks.KINDS["check"]("csm_loss tf32", dry.plan(("cuda",), 1), dict.update)
    assert found["status"] == "failed"
    assert "loss " in found["reason"]


ONE_OF_EACH = [
    "csm_loss tf32",
    "csm_loss float32, 16 frequencies",
    "langevin_draw bfloat16",
    "masked_linear bfloat16, MADE",
    "langevin tf32",
    "conditional_density float32",
    "probability_flow float32",
    "linear_csm_loss tf32",
    "masked_linear tf32, 64 rows",
    "masked_linear_backward tf32, 64 rows",
]


@pytest.fixture(scope="module")
def measured():
    return {}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_timings(dry, name, measured):
    if dry.checks.subjects.fastcsm.backends.CPU().missing():
        pytest.skip("needs the CPU library")
    plan, kept = dry.plan(("cuda",), 2), {}
    warm = dry.timings.KINDS["warm"](name, plan, kept.update)
    assert warm.get("status", "passed") == "passed", warm
    found = json.loads(json.dumps(dry.timings.KINDS["time"](name, plan, kept.update)))
    timing, _ = dry.timings.make(name)
    assert found["rounds"] == 2
    assert {"cuda", *timing.peers} <= set(found["rows"])
    assert all(row["over"]["cuda"] > 0 for row in found["rows"].values())
    measured[name] = {"status": "passed", **found}


def test_a_call_that_fails_leaves_the_others_their_times(dry, monkeypatch):
    def broken(precision, **sizes):
        def out_of_memory():
            raise MemoryError("too much")

        return dry.timings.langevin(precision, **sizes)._replace(
            peers={"loop": out_of_memory, "other": lambda: None}
        )

    monkeypatch.setitem(dry.timings.MAKERS, "langevin", (broken, {"rows": 3, "steps": 2}))
    found = dry.timings.KINDS["time"]("langevin tf32", dry.plan(("cuda",), 2), dict)
    assert (found["status"], found["reason"]) == ("failed", "loop: MemoryError: too much")
    assert found["rows"]["loop"] == {"error": "MemoryError: too much"}
    assert found["rows"]["other"]["median"] > 0


def test_every_bar_is_measured_by_what_the_timings_hold(measured):
    """Of a document with both backends, in which the peers have the names that the bars ask for."""
    if len(measured) < len(ONE_OF_EACH):
        pytest.skip("needs the timings above")
    timings = {}
    for name in (name for names in gpu.TIMINGS for name in names):
        like = [
            known for known in measured if known.split()[0] == name.split()[0] and known[-4:] == name[-4:]
        ] or [known for known in measured if known.split()[0] == name.split()[0]]
        timings[name] = one = json.loads(json.dumps(measured[like[0]]))
        one["rows"]["triton"] = one["rows"]["cuda"]
        for row in one["rows"].values():
            row["over"]["triton"] = row["over"]["cuda"]
        for key in ("extra_memory", "extra_memory_twice"):
            one.get(key, {})["triton"] = 0
        one["launches"] = {"triton": 1, "cuda": 42}
    tests = {"a": {"status": "passed"}, "b": {"status": "refused"}}
    document = {
        "schema": gpu_report.SCHEMA,
        "dry": False,
        "timings": timings,
        "checks": tests,
        "tests": tests,
    }
    document["sanitizer"] = {"memcheck a": {"status": "passed"}, "racecheck a": {"status": "failed"}}
    document["machine"] = {"gpu": "A GPU", "torch": "2", "cuda": "13", "triton": "3"}
    bars = {bar.name: bar for bar in gpu_report.bars(document)}
    assert [bar.name for bar in bars.values() if bar.measured is None] == []
    assert bars["every op within its tolerance"][1:] == ("1 of 1", "all", True)
    assert bars["racecheck clean"].reached is False
    assert bars["langevin_draw bfloat16: launches of a draw"].reached is False
    text = gpu_report.updated(f"a\n{gpu_report.BEGIN}\n{gpu_report.END}\nb", [document])
    assert all(f"| {name} |" in text for name in bars)
    assert text.startswith("a\n")
    assert text.endswith("\nb")


def test_runs_of_one_gpu_are_one_file(tmp_path, monkeypatch, capsys):
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_report, "RESULTS", results)
    readme = tmp_path / "README.md"
    readme.write_text(gpu_report.block([]))

    def report(gpu_name, dry=False, **checks):
        machine = {"gpu": gpu_name, "torch": "2", "cuda": "13", "triton": "3"}
        entries = {name: {"status": status} for name, status in checks.items()}
        path = tmp_path / "check.json"
        path.write_text(json.dumps({"machine": machine, "dry": dry, "checks": entries}))
        return gpu_report.main([path])

    assert report("NVIDIA A 80GB", a="failed", b="passed") == 0
    assert report("NVIDIA A 80GB", a="passed", b="not run", c="not run") == 0
    (found,) = gpu_report.committed()
    assert list(results.iterdir()) == [results / "nvidia-a-80gb.json"]
    states = {name: entry["status"] for name, entry in found["checks"].items()}
    assert states == {"a": "passed", "b": "passed", "c": "not run"}
    assert readme.read_text() == gpu_report.block([found])
    assert "| every op within its tolerance | 2 of 3 | all | not reached |" in readme.read_text()
    with pytest.raises(ValueError, match="must be of one GPU, and are of A, B"):
        gpu_report.merged([{"dry": False, "machine": {"gpu": name}} for name in "AB"])
    assert report(None, dry=True) == 1
    assert capsys.readouterr().err == "bench/gpu.py: a dry run measures nothing\n"


def test_figures_of_a_profile():
    text = """
  csm_loss_kernel (132, 1, 1)x(128, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Section: GPU Speed Of Light Throughput
    ----------------------- ------------- ------------
    Metric Name               Metric Unit Metric Value
    ----------------------- ------------- ------------
    DRAM Frequency          cycle/nsecond         2.61
    Elapsed Cycles                  cycle      674,321
    Registers Per Thread    register/thread        255
    Waves Per SM                                     1
    ----------------------- ------------- ------------
    OPT   Every scheduler is capable of issuing 2
"""
    assert gpu_report.figures(text) == {
        "DRAM Frequency": "2.61 cycle/nsecond",
        "Elapsed Cycles": "674,321 cycle",
        "Registers Per Thread": "255 register/thread",
        "Waves Per SM": "1",
    }


def test_the_readme_has_what_was_measured():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert gpu_report.updated(text, gpu_report.committed()) == text
