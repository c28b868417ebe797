"""What bench/gpu checks, in tiny sizes."""

import pytest

from fastcsm.bench.gpu import verbs

#: What computes in float32 where it is given float16.
IN_FLOAT32 = ("conditional_density", "probability_flow")


@pytest.mark.parametrize("op", verbs.OPS)
def test_checks(run, op):
    """The CPU library in the place of CUDA C++; the dry run of a bare copy interprets Triton's kernels."""
    found, kept = run("check", f"{op} tf32")
    assert found["status"] in ("passed", "refused"), found
    assert found["status"] == "refused" or 0 <= found["share"] <= 1
    assert kept["cases"]
    refused, _ = run("edges", f"{op} float16")
    if op in IN_FLOAT32:
        assert refused["status"] == "passed"
    else:
        assert refused["status"] == "refused"
        assert "cannot run" in refused["reason"]


def test_a_wrong_result_is_found(dry, run, monkeypatch):
    right = dry.checks.comparisons.loss

    def wrong(case):
        found = right(case)
        return {**found, "loss": found["loss"] * 1.01}

    sizes = dry.checks.heads(loss=(wrong, dry.checks.comparisons.plain_gradients))
    monkeypatch.setitem(dry.checks.SIZES, "csm_loss", sizes)
    found, _ = run("check", "csm_loss tf32")
    assert found["status"] == "failed"
    assert "loss " in found["reason"]
