"""The quadrature of every backend: known laws, error estimates, rows and intervals at the limits."""

import math

import pytest
import torch
from densities import KNOWN, Restoring, density, gaussian, known, names
from support import backend_params

import fastcsm
from fastcsm import functional
from fastcsm.reference import quadrature

BACKENDS = backend_params("conditional_density")
TRITON = backend_params("conditional_density", "triton")[1:]
BARS = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.mark.parametrize(("dtype", "name"), [(d, n) for d in BARS for n in names(d)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_densities(backend, dtype, name):
    case, context, x, found = known(name, backend, dtype)
    error = (found.log_density - case.logpdf(context, x)).abs()
    assert error.max() <= BARS[dtype]
    assert (error - found.error).max() <= 0
    assert (found.cdf - case.cdf(context, x)).abs().max() <= BARS[dtype]
    assert torch.equal(found.point, x)
    assert ((found.ends >= 0) & (found.ends < 1e-2)).all()


@pytest.mark.parametrize(("dtype", "name"), [(d, n) for d in BARS for n in names(d)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_quantiles(backend, dtype, name):
    case, context, u, found = known(name, backend, dtype, inverse=True)
    error = (case.cdf(context, found.point) - u).abs()
    assert error.max() <= BARS[dtype]
    assert (error - found.error).max() <= 1e-9
    assert torch.equal(found.cdf, u)
    density_error = (found.log_density - case.logpdf(context, found.point)).abs()
    assert density_error.max() <= 100 * BARS[dtype]


@pytest.mark.parametrize(
    ("dtype", "name", "inverse"), [(torch.float64, "gaussian", False), (torch.float32, "two modes", True)]
)
@pytest.mark.parametrize("backend", TRITON)
def test_known_densities_in_triton(backend, dtype, name, inverse):
    case, context, x, found = known(name, backend, dtype, inverse, every=55)
    if inverse:
        error = (case.cdf(context, found.point) - x).abs()
    else:
        error = (found.log_density - case.logpdf(context, x)).abs()
    assert error.max() <= BARS[dtype]
    assert (error - found.error).max() <= 1e-9


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("panels", [1, 3, 16])
@pytest.mark.parametrize("name", list(KNOWN))
def test_error_estimate_bounds_the_error(name, panels, tolerance):
    options = {"tolerance": tolerance, "panels": panels}
    case, context, x, found = known(name, "auto", torch.float64, **options)
    error = (found.log_density - case.logpdf(context, x)).abs()
    assert (error - found.error).max() <= 1e-10  # as exactly as the law itself is computed
    assert found.error.max() <= tolerance + 1e-9
    case, context, u, found = known(name, "auto", torch.float64, inverse=True, **options)
    error = (case.cdf(context, found.point) - u).abs()
    assert (error - found.error).max() <= 1e-9
    assert found.error.max() <= tolerance + 1e-9


def student(degrees):
    return lambda rows, t: -(degrees + 1) * t / 0.01 / (degrees + t * t / 0.01)


@pytest.mark.parametrize("degrees", [1, 3])
def test_power_law_tails(degrees):
    stats = pytest.importorskip("scipy.stats")
    law = stats.t(degrees, scale=0.1)
    x = torch.cat([torch.linspace(-2, 2, 41, dtype=torch.float64), torch.tensor([60.0, -900.0]).double()])
    found = quadrature.solve(student(degrees), -1.0, 1.0, x, False, 1e-7, 4, 1e-16)
    error = (found.log_density - torch.tensor(law.logpdf(x))).abs()
    assert error.max() <= 1e-6
    assert (error - found.error).max() <= 0
    u = torch.tensor([1e-5, 1e-3, 0.3, 0.999, 1 - 1e-5], dtype=torch.float64)
    found = quadrature.solve(student(degrees), -1.0, 1.0, u, True, 1e-7, 2, 1e-16)
    assert (torch.tensor(law.cdf(found.point)) - u).abs().max() <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_density_are_reported(backend):
    case = gaussian(0.1)
    k = torch.tensor([1.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    # The sign of the context turns s = k z around, or switches it off.
    weights = [
        torch.tensor([[50.0, -1.0], [50.0, 1.0], [-50.0, -1.0], [-50.0, 1.0]], dtype=torch.float64),
        torch.tensor([[100.0, -100.0, -100.0, 100.0]], dtype=torch.float64),
    ]
    x = torch.tensor([0.1, 0.1, 0.1, math.nan], dtype=torch.float64)
    with fastcsm.backend(backend):
        for inverse in (False, True):
            found = functional.conditional_density(
                k[:, None], x, weights, [None, None], activation=case.activation, low=-1.0, high=1.0,
                inverse=inverse,
            )  # fmt: skip
            assert found.log_density.isfinite().tolist() == [True, False, False, False]
            assert found.point.isfinite().tolist() == [True, False, False, False]
            assert found.error[0] < 1e-6
            assert found.error[1:].isposinf().all()
            assert found.ends.isnan().all(1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_points_and_extreme_probabilities(backend):
    case = gaussian(0.1)
    context, x = torch.zeros(5, 1).double(), torch.tensor([-30.0, -3.0, 0.0, 3.0, 30.0]).double()
    options = {"activation": case.activation, "low": -1.0, "high": 1.0}
    with fastcsm.backend(backend):
        found = functional.conditional_density(context, x, case.weights, case.biases, **options)
        torch.testing.assert_close(found.log_density, case.logpdf(context, x), rtol=1e-9, atol=1e-6)
        u = torch.tensor([0.0, 1e-300, 0.5, 1 - 1e-16, 1.0]).double()
        found = functional.conditional_density(context, u, case.weights, case.biases, inverse=True, **options)
        assert (found.point.diff() >= -1e-9).all()
        assert not found.point.isnan().any()
        outside = torch.tensor([-0.1, 1.1, math.inf, -math.inf, math.nan]).double()
        found = functional.conditional_density(
            context, outside, case.weights, case.biases, inverse=True, **options
        )
        assert found.point.isnan().all()
        assert found.ends.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("low", "high"), [(-1e-3, 1e-3), (-100.0, 100.0), (5.0, 6.0), (-6.0, -5.9)], ids=str)
def test_a_wrong_interval_costs_time_only(backend, low, high):
    case = Restoring(rows=9)
    truth = density(case, "reference", tolerance=1e-9)
    found = density(case, backend, low=low, high=high)
    error = (found.log_density - truth.log_density).abs()
    assert (error - found.error - truth.error).max() <= 0
    assert found.error.max() <= 2e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_normaliser_is_relative_to_low(backend):
    case = Restoring(rows=6)
    one, other = (density(case, backend, low=low, high=1.0) for low in (-1.0, -0.5))
    t = torch.linspace(-1, -0.5, 4001, dtype=torch.float64)
    with fastcsm.backend("reference"):
        s, _ = functional.score_head(
            case.context.repeat_interleave(len(t), 0), t.repeat(6), case.weights, case.biases,
            frequencies=case.frequencies,
        )  # fmt: skip
    between = torch.trapezoid(s.view(6, -1), t)
    torch.testing.assert_close(one.log_normalizer - other.log_normalizer, between, rtol=1e-6, atol=1e-6)
