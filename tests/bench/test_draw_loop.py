"""Draws: the loop and its shares of the dimensions."""

from dataclasses import replace

import pytest
from small import MODELS

from fastcsm import nn
from fastcsm.bench.harness import runner
from fastcsm.bench.micro.registry import Draw


@pytest.mark.parametrize("sets", [1, 3])
def test_a_wrong_draw_is_caught(sets, monkeypatch):
    case = replace(MODELS[-1], sets=sets)
    sample = nn.ARCSM.sample
    monkeypatch.setattr(nn.ARCSM, "sample", lambda *args, **options: sample(*args, **options) * 1.001)
    rows = runner.check_rows(case.contenders(["highest"], compiled=False), *case.reference())
    assert {name: row["status"] for name, row in rows.items()} == {"loop": "ok", "fastcsm": "failed"}


def test_dimensions_of_a_draw_are_shared_out():
    case = Draw()
    shares = case.shares()
    assert [len(share) for share in shares] == [10] * 4
    chosen = sorted(d for share in shares for d in share)
    assert len(set(chosen)) == 40
    assert all(share[0] < 90 and share[-1] > 690 for share in shares)
    loop = replace(case, features=50, hidden=(8, 8), samples=2).contenders(["highest"], False)["loop"]
    assert loop.scale == pytest.approx(50 / 10)
    assert "extrapolated from 40 of 50 dimensions" in loop.label
    assert sorted(d for share in MODELS[-1].shares() for d in share) == list(range(7))
