"""The table of a training step, of any model."""

import pytest
import torch

from fastcsm import nn
from fastcsm.bench.harness.report import format_table
from fastcsm.bench.micro.training_step import step_table


@pytest.mark.parametrize(
    "noise", [None, nn.NoiseSchedule(1.0, 0.1, 4), nn.NoiseSchedule(1.0, 0.1, 4, form="staged")]
)
def test_step_table(noise):
    torch.manual_seed(0)
    conditional = noise is not None and noise.form == "conditional"
    made = nn.MADE(5, (9, 9), 3, activation="silu", dropout=0.2)
    model = nn.ARCSM(made, nn.ScoreHead(3 + conditional, (6, 6), frequencies=2), noise=noise)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = step_table(model=model, batch=8, rounds=1, compiled=False)
    assert {row["name"]: row.get("reason") for row in result["rows"] if row["status"] != "ok"} == {}
    assert [row["name"] for row in result["rows"]] == ["double_backward", "jvp", "tangent", "fastcsm"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "fastcsm" in format_table(result)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        step_table(model=model, batch=0)
