"""What the CUDA C++ kernels' compiled code needs of a GPU, by the built library."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TABLE = json.loads((ROOT / "bench" / "results" / "resources.json").read_text())
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.slow
def test_no_cuda_kernel_got_worse(nothing_worse):
    assert "csm_loss_kernel layers=2 rows=32 bfloat16 sm_90" in nothing_worse("cuda_resources")


def test_cuda_kernels_do_not_spill():
    """But for some of float32, which put away what they need between products, outside of their loops."""
    kernels = TABLE["cuda"]["kernels"]
    assert {name.split()[-1] for name in kernels} == {"sm_80", "sm_90"}
    for name, figures in kernels.items():
        if not re.match(r"(conditional_density|probability_flow|csm_loss)_kernel .*float32", name):
            assert figures["spills"] == figures["stack"] == 0, name
        assert figures["spills"] <= 80, name
        if not name.startswith(("masked_linear_bwd_activation", "masked_linear_sum")):
            assert figures["matrix"] > 0, name
