"""What was measured on GPUs, in one file a GPU."""

import json

import pytest

from fastcsm.bench.gpu import bars


def test_runs_of_one_gpu_are_one_file(tmp_path, monkeypatch, capsys):
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(bars, "RESULTS", results)

    def report(gpu_name, dry=False, **checks):
        machine = {"gpu": gpu_name, "torch": "2", "cuda": "13", "triton": "3"}
        entries = {name: {"status": status} for name, status in checks.items()}
        path = tmp_path / "check.json"
        path.write_text(json.dumps({"machine": machine, "dry": dry, "checks": entries}))
        return bars.main([path])

    assert report("NVIDIA A 80GB", a="failed", b="passed") == 0
    assert report("NVIDIA A 80GB", a="passed", b="not run", c="not run") == 0
    (found,) = bars.committed()
    assert list(results.iterdir()) == [results / "nvidia-a-80gb.json"]
    states = {name: entry["status"] for name, entry in found["checks"].items()}
    assert states == {"a": "passed", "b": "passed", "c": "not run"}
    assert "| every op within its tolerance | 2 of 3 | all | not reached |" in bars.page([found])
    with pytest.raises(ValueError, match="must be of one GPU, and are of A, B"):
        bars.merged([{"dry": False, "machine": {"gpu": name}} for name in "AB"])
    assert report(None, dry=True) == 1
    assert capsys.readouterr().err == "bench/gpu: a dry run measures nothing\n"


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
    assert bars.figures(text) == {
        "DRAM Frequency": "2.61 cycle/nsecond",
        "Elapsed Cycles": "674,321 cycle",
        "Registers Per Thread": "255 register/thread",
        "Waves Per SM": "1",
    }
