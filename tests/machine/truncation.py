"""Which of tests/emulated_*.py fail on the machine, and why: a pytest plugin.

A float32 product is three of tf32. Tensor cores truncate what they accumulate, and the error exceeds the
tests' tolerance; in those of CLOSE by less than half, or it comes near it, so that the plain result that it
is compared with decides, which differs between processors.
"""

import os

import pytest

FAILURES = """
emulated_kernels.py::test_score_head[float32-shape3-gelu]
emulated_kernels.py::test_csm_loss[float32-shape3-gelu]
emulated_kernels.py::test_csm_loss[float32-shape5-relu]
emulated_masked_linear.py::test_masked_linear[float32-40-1100-30-narrow-gelu]
emulated_masked_linear.py::test_masked_linear[float32-130-40-600-unsorted-None]
emulated_masked_linear.py::test_masked_linear[float32-1030-20-9-ties-silu]
emulated_density.py::test_densities[float32-(128, 128)]
emulated_density.py::test_densities[float32-(17, 9)]
emulated_density.py::test_densities[float32-(127,)]
emulated_density.py::test_gradients[None]
emulated_density.py::test_gradients[0.4]
"""
CLOSE = """
emulated_kernels.py::test_score_head[float32-shape5-relu]
emulated_kernels.py::test_score_head[float32-shape6-sigmoid]
emulated_kernels.py::test_csm_loss[float32-shape0-softplus]
emulated_kernels.py::test_csm_loss[float32-shape6-sigmoid]
emulated_kernels.py::test_score_head_backward[float32-shape0-gelu]
emulated_kernels.py::test_score_head_backward[float32-shape3-sigmoid]
emulated_masked_linear.py::test_masked_linear[float32-3-1100-20-sorted-sigmoid]
emulated_masked_linear.py::test_masked_linear[float32-17-130-66-narrow-silu]
emulated_masked_linear.py::test_masked_linear[float32-64-64-64-ties-None]
emulated_masked_linear.py::test_masked_linear[float32-65-36-129-sorted-softplus]
emulated_masked_linear.py::test_masked_linear[float32-140-128-100-contexts-None]
emulated_masked_linear.py::test_linear_csm_loss[float32]
emulated_density.py::test_nodes[float32]
"""
#: Heads that need more shared memory than a block of sm_80 has; and what they are for sm_90.
TOO_LARGE = {
    "emulated_kernels.py::test_score_head_of_more_layers[float32-hidden0]": "",
    "emulated_kernels.py::test_score_head_of_more_layers[tf32-hidden1]": "",
    "emulated_kernels.py::test_csm_loss_of_large_heads[bfloat16-shape1-tanh]": "",
    "emulated_kernels.py::test_csm_loss_of_large_heads[float32-shape2-silu]": "close",
    "emulated_kernels.py::test_csm_loss_of_large_heads[tf32-shape3-silu]": "",
    "emulated_kernels.py::test_csm_loss_of_large_heads[float32-shape4-softplus]": "close",
    "emulated_langevin.py::test_langevin[float32-shape5-relu]": "",
    "emulated_langevin.py::test_langevin[tf32-shape5-relu]": "",
    "emulated_density.py::test_densities[float32-(33, 16, 7)]": "fails",
    "emulated_density.py::test_densities[tf32-(33, 16, 7)]": "",
    "emulated_density.py::test_what_it_cannot_run": "",
    "emulated_flow.py::test_probability_flow[shape5-relu-float32]": "",
    "emulated_flow.py::test_what_does_not_fit": "",
}


def expected(architecture):
    """The mark of each test that may fail."""
    reason = "tensor cores truncate"
    fails = pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True)
    close = pytest.mark.xfail(reason=reason, raises=AssertionError, strict=False)
    no_room = pytest.mark.xfail(
        reason="more shared memory than a block has", raises=(RuntimeError, ValueError), strict=True
    )
    marks = dict.fromkeys(FAILURES.split("\n")[1:-1], fails) | dict.fromkeys(CLOSE.split("\n")[1:-1], close)
    if architecture == 80:
        return marks | dict.fromkeys(TOO_LARGE, no_room)
    kinds = {"fails": fails, "close": close}
    return marks | {name: kinds[kind] for name, kind in TOO_LARGE.items() if kind}


def pytest_collection_modifyitems(items):
    tests = {f"{item.path.name}::{item.name}": item for item in items}
    files = {item.path.name for item in items}
    for name, mark in expected(int(os.environ["FASTCSM_MACHINE"])).items():
        if name.partition("::")[0] in files:
            tests[name].add_marker(mark)
