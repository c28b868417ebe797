"""Every op has cases, and their contenders are right."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from small import MODELS, SMALL, Spoiled

from fastcsm.bench.micro import registry
from fastcsm.bench.micro.registry import CASES, right_contenders, suite


def test_the_suite_has_every_op():
    cases = suite()
    assert [op for op, _ in itertools.groupby(case.op for case in cases)] == list(CASES)
    assert len(set(cases)) == len(cases)
    for case in cases:
        assert case.bytes() > 0
        assert case.operations() > case.quick().operations() or case == case.quick()
    for case in (SMALL, MODELS[2]):
        assert set(case.slow) <= set(case.contenders(["highest"], compiled=True))


@pytest.mark.parametrize("op", CASES)
def test_contenders_are_right_at_the_sizes_of_pytest_benchmark(op):
    found = right_contenders(op)
    assert any(contender.own for contender in found.values())
    assert not all(contender.own for contender in found.values())


def test_a_wrong_contender_is_not_offered(monkeypatch):
    monkeypatch.setattr(registry, "CASES", {"csm_loss": Spoiled})
    with pytest.raises(ValueError, match="scaled failed: grad_context is off by"):
        registry.right_contenders("csm_loss")


def test_pytest_benchmark_times_the_contenders():
    pytest.importorskip("pytest_benchmark")
    root = Path(__file__).resolve().parents[2]
    options = ["-q", "-p", "no:cacheprovider", "--benchmark-disable", "--collect-only"]
    command = [sys.executable, "-m", "pytest", *options, "bench/micro/probability_flow.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    labels = list(right_contenders("probability_flow"))
    assert [line.partition("[")[2][:-1] for line in done.stdout.splitlines() if "::" in line] == labels
