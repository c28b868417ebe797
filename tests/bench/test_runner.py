"""A wrong result gets no time; right ones agree, whatever the head."""

import json
from dataclasses import replace

import pytest
import torch
from small import MODELS, ROWS, SMALL, Spoiled

import fastcsm.activations
from fastcsm.bench.harness import runner
from fastcsm.bench.harness.case import Contender, from_config
from fastcsm.bench.harness.report import format_table
from fastcsm.bench.harness.runner import run_case


def test_wrong_results_are_not_timed():
    result = run_case(
        Spoiled(**SMALL.__dict__), precisions=["highest"], rounds=1, compiled=False, memory=None
    )
    rows = {row["name"]: row for row in result["rows"]}
    for name in ("double_backward", "tangent", "jvp", "fastcsm"):
        assert rows[name]["status"] == "ok"
        assert rows[name]["seconds"]["median"] > 0
    for name, output in (("scaled", "grad_context"), ("poisoned", "loss"), ("missing", "grad_weights")):
        assert rows[name]["status"] == "failed"
        assert output in rows[name]["reason"]
    assert rows["broken"]["status"] == "unavailable"
    assert rows["broken"]["reason"] == "RuntimeError: no such thing"
    assert not any("seconds" in rows[name] for name in ("scaled", "poisoned", "missing", "broken"))
    assert "failed" in format_table(result)
    json.dumps(result, allow_nan=False)


def test_a_wrong_baseline_does_not_widen_the_limits():
    reference = {"y": torch.ones(3, dtype=torch.float64)}
    found = runner.check_rows(
        {
            "plain": Contender("plain", lambda: {"y": torch.full((3,), 1.5)}),
            "other": Contender("other", lambda: {"y": torch.full((3,), 1.1)}),
        },
        reference,
        {},
    )
    assert [row["status"] for row in found.values()] == ["failed", "failed"]


def test_medium_is_held_to_what_rounding_does_to_plain_pytorch():
    a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0 + 2**-9], [-1.0]])
    reference = {"y": a.double() @ b.double()}

    def off(by):
        return Contender("", lambda: {"y": (reference["y"] * (1 + by)).float()}, precision="medium")

    plain = Contender("plain", lambda: {"y": a @ b})
    entries = {"plain": plain, "near": off(0.01), "far": off(0.09), "wrong": off(0.11)}
    found = runner.check_rows(entries, reference, {})
    assert [row["status"] for row in found.values()] == ["ok", "ok", "ok", "failed"]
    exact = Contender("plain", lambda: dict(reference))
    found = runner.check_rows({"plain": exact, "far": off(0.03)}, reference, {})
    assert [row["status"] for row in found.values()] == ["ok", "failed"]


@pytest.mark.parametrize("activation", fastcsm.activations.ACTIVATIONS)
@pytest.mark.parametrize("frequencies", [0, 3])
@pytest.mark.parametrize("case", ROWS)
def test_contenders_agree(case, activation, frequencies):
    case = replace(case, activation=activation, frequencies=frequencies)
    rows = runner.check_rows(case.contenders(["highest", "medium"], compiled=False), *case.reference())
    assert {row["name"]: row.get("reason") for row in rows.values() if row["status"] != "ok"} == {}


@pytest.mark.parametrize("case", MODELS)
def test_contenders_of_models_agree(case):
    assert from_config(type(case), json.loads(json.dumps(case.config()))) == case
    contenders = case.contenders(["highest"], compiled=False)
    result = run_case(case, precisions=["highest"], rounds=2, compiled=False, memory=None)
    assert {row["status"] for row in result["rows"]} == {"ok"}
    assert case.title() in format_table(result)
    for contender in contenders.values():
        assert set((contender.memory or contender.call)()) != set()
    assert list(result.get("parts", {})) == (["Adam"] if case.op == "training_step" else [])
