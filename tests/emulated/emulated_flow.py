"""probability_flow in CUDA, as emulated_kernels.py; test_cuda_kernels.py runs both."""

from functools import partial

import emulated_kernels
import pytest
import torch
from comparisons import check_flow, settings
from emulated_kernels import LIMIT
from preconditioned import SQUASH, Preconditioned
from support import NAMES, Case, bitwise_equal
from test_densities_conditional import wave_model
from test_probability_flow import LEVELS, Line, back, flow
from test_probability_flow import test_known_flow as known_flow
from test_probability_flow import test_preconditioned_flow_of_a_line as preconditioned_line
from test_probability_flow import test_preconditioned_rows_of_any_size_arrive as rows_of_any_size_arrive

import fastcsm

precision = emulated_kernels.precision  # the fixture


def results(case, backend="emulation", **options):
    return flow(case, backend, **options)._asdict()


# Rows, context with log sigma, hidden widths and frequencies; rows about the tiles of three blocks.
SHAPES = [
    (49, 6, (17, 9), 3),
    (1, 1, (1,), 0),
    (17, 33, (128, 128), 16),
    (16, 13, (16,), 1),
    (15, 32, (127, 33), 0),
    (3, 3, (24, 15, 31), 2),
    (33, 4, (4, 40), 0),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize(("shape", "activation"), list(zip(SHAPES, NAMES, strict=True)))
def test_probability_flow(shape, activation, precision):
    case, levels = Case(**settings(shape, activation)), LEVELS if shape[0] % 2 else back()
    check_flow(
        partial(flow, backend="emulation"), partial(flow, backend="reference"), case, precision, levels
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]])
def test_preconditioned_flow(shape, precision):
    case, levels = Preconditioned(**settings(shape, "silu")), {"sigma_from": 0.05, "sigma_to": 20.0}
    levels = (levels if shape[0] % 2 else back(levels)) | {"squash": SQUASH}
    check_flow(
        partial(flow, backend="emulation"), partial(flow, backend="reference"), case, precision, levels
    )


@pytest.mark.parametrize("k", [0.5, 3.0])
def test_known_flow(k):
    known_flow("emulation", k, torch.float32, 1e-4)


def test_known_preconditioned_flows():
    preconditioned_line("emulation", torch.float32, 1e-4)
    rows_of_any_size_arrive("emulation")


def test_rows_do_not_depend_on_each_other():
    """More rows than are on their way at once, in two orders, and some that do not arrive."""
    case = Case(rows=450, hidden=(3,), frequencies=1, context=2).to(torch.float32)
    case.x[7], case.context[300, 0], case.x[400] = torch.nan, torch.nan, torch.inf
    whole = results(case)
    order = torch.randperm(450, generator=torch.Generator().manual_seed(1))[13:]
    case.x, case.context = case.x[order], case.context[order]
    assert bitwise_equal(results(case), {name: value[order] for name, value in whole.items()})
    lost = [7, 300, 400]
    for name, value in whole.items():
        assert (~value.isfinite()).nonzero().flatten().tolist() == lost, name
    assert whole["error"][lost].isposinf().all()
    assert whole["point"][lost].isnan().all()


def test_rows_that_take_too_many_steps():
    found = results(Line(1e7, torch.float32), sigma_from=2.0, sigma_to=1e-3)
    assert found["point"][:2].isnan().all()
    assert found["change"][:2].isnan().all()
    assert found["error"][:2].isposinf().all()


def test_a_draw_down_the_flow():
    """Quantiles at the first level, carried to the last: conditional_density_draw of this backend's ops."""
    model = wave_model(2, torch.float32)

    def draw(backend):
        with fastcsm.backend(backend):
            return model.sample(3, "flow", seed=1)

    torch.testing.assert_close(draw("emulation"), draw("reference"), rtol=0, atol=1e-4)


def test_no_rows():
    assert all(len(value) == 0 for value in results(Case(rows=0).to(torch.float32)).values())


def test_equal_levels_change_nothing(precision):
    case = Case(rows=5).to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    case.x[2] = torch.nan
    found = results(case, sigma_from=0.3, sigma_to=0.3)
    assert bitwise_equal({"x": found["point"]}, {"x": case.x.float()})
    assert not found["change"].any()
    assert not found["error"].any()


def test_float32_is_full_float32(precision):
    case = Case(rows=3).to(torch.float32)
    got = results(case)
    torch.set_float32_matmul_precision("highest")
    assert bitwise_equal(got, results(case))


def test_what_does_not_fit():
    with fastcsm.backend("emulation"):
        with pytest.raises(ValueError, match=rf"needs .* KiB of shared memory, a block has {LIMIT}; choose"):
            results(Case(rows=1, hidden=(3,), frequencies=170).to(torch.float32))
        with pytest.raises(RuntimeError, match=f"KiB of shared memory, a block has {LIMIT}"):
            results(Case(rows=1, context=400).to(torch.float32))
