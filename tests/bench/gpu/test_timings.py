"""What bench/gpu times, in tiny sizes, and the bars that are read from it."""

import json

import pytest

from fastcsm import backends
from fastcsm.bench.gpu import bars, timings, verbs

ONE_OF_EACH = [
    "csm_loss tf32",
    "csm_loss float32, 16 frequencies",
    "langevin_draw bfloat16",
    "masked_linear bfloat16, MADE",
    "langevin tf32",
    "conditional_density float32",
    "probability_flow float32",
    "probability_flow float32, preconditioned",
    "langevin tf32, preconditioned",
    "linear_csm_loss tf32",
    "masked_linear tf32, 64 rows",
    "masked_linear_backward tf32, 64 rows",
]


@pytest.fixture(scope="module")
def measured():
    return {}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_timings(run, name, measured):
    if backends.CPU().missing():
        pytest.skip("needs the CPU library")
    warm, _ = run("warm", name)
    assert warm.get("status", "passed") == "passed", warm
    found = json.loads(json.dumps(run("time", name)[0]))
    timing, _ = timings.make(name)
    assert found["rounds"] == 2
    assert {"cuda", *timing.peers} <= set(found["rows"])
    assert all(row["over"]["cuda"] > 0 for row in found["rows"].values())
    measured[name] = {"status": "passed", **found}


def test_a_call_that_fails_leaves_the_others_their_times(run, monkeypatch):
    def broken(precision, **sizes):
        def out_of_memory():
            raise MemoryError("too much")

        return timings.langevin(precision, **sizes)._replace(
            peers={"loop": out_of_memory, "other": lambda: None}
        )

    monkeypatch.setitem(timings.MAKERS, "langevin", (broken, {"rows": 3, "steps": 2}))
    found, _ = run("time", "langevin tf32")
    assert (found["status"], found["reason"]) == ("failed", "loop: MemoryError: too much")
    assert found["rows"]["loop"] == {"error": "MemoryError: too much"}
    assert found["rows"]["other"]["median"] > 0


def test_every_bar_is_measured_by_what_the_timings_hold(measured):
    """Of a document with both backends, in which the peers have the names that the bars ask for."""
    if len(measured) < len(ONE_OF_EACH):
        pytest.skip("needs the timings above")
    rows = {}
    for name in (name for names in verbs.TIMINGS for name in names):
        like = [
            known for known in measured if known.split()[0] == name.split()[0] and known[-4:] == name[-4:]
        ] or [known for known in measured if known.split()[0] == name.split()[0]]
        rows[name] = one = json.loads(json.dumps(measured[like[0]]))
        one["rows"]["triton"] = one["rows"]["cuda"]
        for row in one["rows"].values():
            row["over"]["triton"] = row["over"]["cuda"]
        for key in ("extra_memory", "extra_memory_twice"):
            one.get(key, {})["triton"] = 0
        one["launches"] = {"triton": 1, "cuda": 42}
    tests = {"a": {"status": "passed"}, "b": {"status": "refused"}}
    document = {"schema": bars.SCHEMA, "dry": False, "timings": rows, "checks": tests, "tests": tests}
    document["sanitizer"] = {"memcheck a": {"status": "passed"}, "racecheck a": {"status": "failed"}}
    document["machine"] = {"gpu": "A GPU", "torch": "2", "cuda": "13", "triton": "3"}
    found = {bar.name: bar for bar in bars.bars(document)}
    assert [bar.name for bar in found.values() if bar.measured is None] == []
    assert found["every op within its tolerance"][1:] == ("1 of 1", "all", True)
    assert found["racecheck clean"].reached is False
    assert found["langevin_draw bfloat16: launches of a draw"].reached is False
    assert all(f"| {name} |" in bars.page([document]) for name in found)
