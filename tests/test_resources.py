"""What the Triton kernels' compiled code needs of a GPU; compiled without one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = json.loads((ROOT / "bench" / "results" / "resources.json").read_text())
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def resources(*arguments, program="resources.py"):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, ROOT / "bench" / program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_kernel_translates_with_64_bit_offsets():
    done = resources("--translate")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_no_kernel_got_worse():
    done = resources("--only", "E=0 bfloat16 sm_90")
    if "not compared" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "csm_loss_kernel" in done.stdout


def test_a_worse_kernel_is_named():
    code = """
import sys
sys.path.insert(0, "bench")
import resources
figures = {"stack": 8, "spills": 10, "shared": 100, "instructions": 1000, "matrix": 4}
assert resources.compare({"kernels": {"k": figures}}, {"k": figures}) == []
better = figures | {"instructions": 1015, "stack": 0}
assert resources.compare({"kernels": {"k": figures}}, {"k": better}) == []
worse = figures | {"spills": 11, "matrix": 0, "instructions": 1200}
assert resources.compare({"kernels": {"k": figures}}, {"k": worse}) == [
    "k: spills 10 -> 11 (+10.0%, 2% allowed)",
    "k: instructions 1000 -> 1200 (+20.0%, 2% allowed)",
    "k: matrix 4 -> 0",
]
assert "not in the table" in resources.compare({"kernels": {}}, {"k": figures})[0]
text = '''%a = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
%b = tt.addptr %a, %i : tensor<16x!tt.ptr<f32>>, tensor<16xi32>'''
assert resources.short_offsets(text) == ["x"]
assert resources.short_offsets(text.replace("i32", "i64")) == []
text = "%a = tt.addptr %out.point, %r : !tt.ptr<bf16>, i32"
assert resources.short_offsets(text) == ["out.point"]
assert resources.short_offsets(text.replace("i32", "i64")) == []
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


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


def test_every_op_fits_every_device():
    fits = json.loads((ROOT / "bench" / "results" / "fits.json").read_text())
    found = {}
    for name, value in fits.items():
        label, limit, kernel = re.fullmatch(r"(.*) (\d+) (\w+) \(Triton 3\.6\.0\)", name).groups()
        assert int(value.split()[-2]) <= int(limit), name
        found.setdefault((label, int(limit)), set()).add(kernel)
    heads, precisions, limits = 5, 4, 3
    assert len(found) == heads * precisions * limits
    ops = set().union(*found.values())
    passes = {"csm_loss_kernel", "score_head_bwd_kernel"}
    assert passes < ops
    for (label, limit), kernels in found.items():
        refused = label.endswith("2x512 float32") and limit == 101_376
        assert kernels == (ops - passes if refused else ops), (label, limit)


@pytest.mark.slow
def test_no_cuda_kernel_got_worse():
    done = resources(program="cuda_resources.py")
    if "not compared" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "csm_loss_kernel layers=2 rows=32 bfloat16 sm_90" in done.stdout


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
