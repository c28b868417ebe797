"""What the Triton kernels' compiled code needs of a GPU; compiled without one."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TABLE = json.loads((ROOT / "bench" / "results" / "resources.json").read_text())
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.slow
def test_no_kernel_got_worse(nothing_worse):
    assert "csm_loss_kernel" in nothing_worse("resources", "--only", "E=0 bfloat16 sm_90")


def test_what_is_committed_fits():
    limits = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
    gpu_machines = json.loads((ROOT / "bench" / "results" / "resources-3.6.0.json").read_text())
    assert gpu_machines["kernels"].keys() == TABLE["kernels"].keys()
    assert gpu_machines["kernels"]["csm_loss_kernel E=0 bfloat16 sm_90"]["spills"] <= 60
    for name, figures in (*TABLE["kernels"].items(), *gpu_machines["kernels"].items()):
        assert figures["shared"] <= limits[name.split()[-1]], name
        if "masked_linear" in name:
            assert figures["spills"] == 0, name
        if "masked_linear_bwd_activation" not in name:
            assert figures["matrix"] > 0, name
