"""The quadrature of every backend: known laws, error estimates, rows and intervals at the limits."""

import math

import pytest
import torch
from densities import KNOWN, Restoring, Waves, density, gaussian, known, names
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


#: 0 and +-10^k, k = 1 ... 30: two to three moves of an end a decade, then one.
FAR = torch.cat([-torch.logspace(30, 1, 30), torch.zeros(1), torch.logspace(1, 30, 30)]).double()


def check_far(found, right, dtype):
    """What is in the range of the dtype is there, to its estimate; the rest is NaN, its error infinite."""
    there = right.abs() < torch.finfo(dtype).max
    assert torch.equal(found.log_density.isfinite(), there)
    assert torch.equal(found.error.isfinite(), there)
    assert all(
        value[~there].isnan().all() for value in (found.point, found.log_density, found.cdf, found.ends)
    )
    error = (found.log_density.double() - right).abs()
    rounding = torch.finfo(dtype).eps * right.abs()
    assert (error <= found.error.double() + rounding)[there].all()
    assert (found.error.double() <= 1e-3 + 4096 * rounding)[there].all()
    assert (found.cdf[there].diff() >= 0).all()
    # What is known of the row does not depend on the point.
    assert found.log_normalizer[there].double().std() <= BARS[dtype]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("name", ["gaussian", "logistic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_far_points(backend, name, dtype):
    """No polynomial is read outside its panel, and far panels do not take the others' digits."""
    first, last, activation = {
        "gaussian": ([[1.0], [-1.0]], [[-1.0, 1.0]], "relu"),
        "logistic": ([[0.5]], [[-1.0]], "tanh"),
    }[name]
    x = FAR.to(dtype)
    weights, (wide, size) = [torch.tensor(w, dtype=dtype) for w in (first, last)], (x.double(), FAR.abs())
    law = {
        "gaussian": -0.5 * wide**2 - 0.5 * math.log(2 * math.pi),
        "logistic": -size - 2 * torch.log1p(torch.exp(-size)),
    }[name]
    with fastcsm.backend(backend):
        found = functional.conditional_density(
            x.new_empty(len(x), 0), x, weights, [None, None], activation=activation, low=-6.0, high=6.0
        )
        check_far(found, law, dtype)
        beyond = x.new_tensor([1e36, -1e36, math.inf, -math.inf, math.nan])
        found = functional.conditional_density(
            x.new_empty(5, 0), beyond, weights, [None, None], activation=activation, low=-6.0, high=6.0
        )
    assert found.log_density.isnan().all()
    assert found.error.isposinf().all()


@pytest.mark.parametrize("degrees", [0, 1, 3])
def test_far_points_of_any_score(degrees):
    """Power laws, and for 0 Laplace's."""
    stats = pytest.importorskip("scipy.stats")
    x = FAR[1:-1]
    if degrees:
        score, right = student(degrees), torch.tensor(stats.t(degrees, scale=0.1).logpdf(x))
    else:
        score, right = lambda rows, t: -torch.sign(t), -x.abs() - math.log(2)
    found = quadrature.solve(score, -1.0, 1.0, x, False, 1e-7, 4, 1e-16)
    error = (found.log_density - right).abs()
    assert (error <= found.error).all()
    assert (found.error <= 0.05 + 1e-12 * right.abs()).all()
    assert (found.cdf.diff() >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_points_of_waves(backend):
    """Between the mass and the point are more waves than 64 panels resolve: the estimate says so."""
    case = Waves(1.0, 0.3, 16)
    x = torch.tensor([s * 10.0**k for k in range(1, 10) for s in (1, -1, 2, -3)], dtype=torch.float64)
    found, right = density(case.at(x), backend, low=-6.0, high=6.0), case.logpdf(x)
    assert ((found.log_density - right).abs() <= found.error + 1e-9 * right.abs()).all()
    assert (found.error <= 1e-7 + 0.5 * x**2).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ends_behind_waves_are_found(backend):
    """At the ends of the interval s points back or not, panel by panel, and there is no room for more."""
    case = Waves(0.003, 1.0, 8, seed=24)
    x = torch.tensor([0.0, 5.0, -20.0], dtype=torch.float64)
    found = density(case.at(x), backend, low=-120.0, high=80.0, tolerance=1e-5)
    assert ((found.log_density - case.logpdf(x)).abs() <= found.error).all()
    assert (found.ends <= 1e-9).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_probabilities(backend):
    case = gaussian(0.1)
    context, options = torch.zeros(5, 1).double(), {"activation": case.activation, "low": -1.0, "high": 1.0}
    with fastcsm.backend(backend):
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


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_quadrature_in_half_precision(backend):
    """Its panels go on where float16 ends."""
    weights = [torch.tensor([[0.5]], dtype=torch.float16), torch.tensor([[-1.0]], dtype=torch.float16)]
    x = torch.tensor([0.5, -3.0, 60000.0], dtype=torch.float16).requires_grad_()
    options = {"activation": "tanh", "low": -6.0, "high": 6.0}
    with fastcsm.backend(backend):
        found = functional.conditional_density(x.new_empty(3, 0), x, weights, [None, None], **options)
        found.log_density.sum().backward()
    size = x.detach().float().abs()
    expected = -size - 2 * torch.log1p(torch.exp(-size))
    assert found.log_density.dtype == torch.float32
    assert ((found.log_density - expected).abs() <= found.error + 1e-6 * size).all()
    torch.testing.assert_close(x.grad.float(), -torch.tanh(x.detach().float() / 2), rtol=1e-2, atol=1e-3)
