"""Timing, memory, precision."""

import sys

import pytest
import torch
from small import SMALL

from fastcsm.bench.harness import measure
from fastcsm.bench.micro.registry import CsmLoss


def test_interleave_runs_every_call_once_a_round():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measure.interleave(calls, rounds=4, warmup=1)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    timed = order[3:]
    rounds = [timed[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert [names[0] for names in rounds] == ["a", "b", "c", "a"]


def test_quartiles():
    assert measure.quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}
    assert measure.quartiles([2.0]) == {"q1": 2.0, "median": 2.0, "q3": 2.0}


def test_at_precision_puts_the_setting_back():
    before = torch.get_float32_matmul_precision()
    assert measure.at_precision("medium", torch.get_float32_matmul_precision)() == "medium"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_probe_answers_again_and_again():
    request = {"op": "csm_loss", "threads": 1, "config": SMALL.config(), "contender": "fastcsm"}
    with measure.Probe() as probe:
        if probe.extra_memory(request) is None:
            pytest.skip("the resident set's peak cannot be reset here")
        assert probe.extra_memory(request) < 1 << 20
        assert probe.extra_memory({**request, "contender": "nothing"}) is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_extra_memory_counts_what_autograd_keeps():
    case = CsmLoss(rows=16384, context=8, hidden=(64, 64))
    request = {"op": "csm_loss", "threads": 1, "config": case.config(), "contender": "double_backward"}
    found = measure.extra_memory(request)
    if found is None:
        pytest.skip("the resident set's peak cannot be reset here")
    array = 4 * case.rows * 64
    assert 6 * array < found < 60 * array
