"""Which of tests/emulated/ need more shared memory than a block of sm_80 has: a pytest plugin."""

import pytest

TOO_LARGE = """
emulated_kernels.py::test_score_head_of_more_layers[float32-hidden0]
emulated_kernels.py::test_score_head_of_more_layers[tf32-hidden1]
emulated_kernels.py::test_csm_loss_of_large_heads[bfloat16-shape1-tanh]
emulated_kernels.py::test_csm_loss_of_large_heads[float32-shape2-silu]
emulated_kernels.py::test_csm_loss_of_large_heads[tf32-shape3-silu]
emulated_kernels.py::test_csm_loss_of_large_heads[float32-shape4-softplus]
emulated_langevin.py::test_langevin[float32-shape5-relu]
emulated_langevin.py::test_langevin[tf32-shape5-relu]
emulated_density.py::test_densities[float32-(33, 16, 7)]
emulated_density.py::test_densities[tf32-(33, 16, 7)]
emulated_density.py::test_what_it_cannot_run
emulated_flow.py::test_probability_flow[shape5-relu-float32]
emulated_flow.py::test_what_does_not_fit
"""


def pytest_collection_modifyitems(items):
    reason, errors = "more shared memory than a block has", (RuntimeError, ValueError)
    mark = pytest.mark.xfail(reason=reason, raises=errors, strict=True)
    tests = {f"{item.path.name}::{item.name}": item for item in items}
    files = {item.path.name for item in items}
    for name in TOO_LARGE.split("\n")[1:-1]:
        if name.partition("::")[0] in files:
            tests[name].add_marker(mark)
