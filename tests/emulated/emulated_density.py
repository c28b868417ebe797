"""conditional_density in CUDA, as emulated_kernels.py; test_cuda_kernels.py runs both."""

import copy
import math
from functools import partial

import comparisons
import emulated_kernels
import pytest
import torch
from comparisons import density, log_density_gradients
from densities import KNOWN, Restoring, Waves, gaussian
from emulated_kernels import LIMIT, PRECISIONS
from preconditioned import DISTANCES, SQUASH, Preconditioned
from support import SEEDS, assert_as_accurate, bitwise_equal
from test_conditional_density import PRECONDITIONED

import fastcsm
from fastcsm import backends
from fastcsm.reference import quadrature

precision = emulated_kernels.precision  # the fixture
# Hidden widths, frequencies, context and activation; and whether quantiles are asked for.
SHAPES = [
    ((5,), 0, 1, "tanh", False),
    ((128, 128), 16, 32, "softplus", False),
    ((33, 16, 7), 17, 6, "gelu", True),
    ((17, 9), 3, 70, "elu", False),
    ((127,), 8, 33, "silu", False),
]


in_precision = partial(comparisons.in_precision, "emulation")


def check(shape, precision):
    hidden, frequencies, context, activation, inverse = shape

    def run(case, backend):
        point = torch.full((1,), 0.3).to(case.x.dtype) if inverse else None
        found = density(case, backend, point=point, inverse=inverse)
        assert (found["error"] < math.inf).all()
        return {name: found[name] for name in ("point", "log_density", "log_normalizer", "cdf")}

    sizes = {"rows": 1, "hidden": hidden, "frequencies": frequencies, "context": context}
    # Of narrow products' errors most is the rounding of the weights, one draw a head.
    seeds = range(2) if precision == "float32" else SEEDS
    cases = [Restoring(activation=activation, steepness=2.0, seed=seed, **sizes) for seed in seeds]
    assert_as_accurate(*(in_precision(precision, case, run) for case in cases))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape[0]))
def test_densities(shape, precision):
    check(shape, precision)


@pytest.mark.parametrize(("distance", "precision"), list(zip(DISTANCES, PRECISIONS)), indirect=["precision"])
def test_preconditioned_densities(distance, precision):
    def run(case, backend):
        found = density(case, backend, **PRECONDITIONED)
        assert (found["error"] < math.inf).all()
        u = torch.full_like(case.x, 0.3)
        quantile = density(case, backend, point=u, inverse=True, **PRECONDITIONED)["point"]
        return {name: found[name] for name in ("log_density", "log_normalizer", "cdf")} | {
            "quantile": quantile
        }

    cases = [Preconditioned(distance, rows=1, hidden=(17, 9), seed=seed) for seed in range(3)]
    assert_as_accurate(*(in_precision(precision, case, run) for case in cases))


@pytest.mark.parametrize("precision", ["bfloat16"], indirect=True)
def test_densities_of_four_layers(precision):
    check(((8, 24, 15, 31), 2, 13, "sigmoid", False), precision)


def nodes(case, backend, tolerance=1e-4, panels=3):
    """The op itself: t, weights, counts, scores at the points."""
    args = case.context, case.x, case.weights, case.biases, case.frequencies, case.activation
    request = backends.Request("cpu", case.x.dtype, tuple(len(w) for w in case.weights), 1)
    with fastcsm.backend(backend):
        return backends.select("conditional_density_nodes", request)(
            *args, 1.3, [], -1.0, 1.0, tolerance, panels, 0.0
        )


def test_nodes(precision):
    """Their sums with powers of t are derivatives of log q, which do not depend on how many there are."""

    def run(case, backend):
        t, weight, count, score = nodes(case, backend)
        used = torch.arange(t.shape[1]) < count[:, None]
        assert (count % quadrature.NODES == 0).all()
        if backend == "emulation":
            assert t.shape == weight.shape == (4, quadrature.MAX_PANELS * quadrature.NODES)
            assert not t[~used].any()
            assert not weight[~used].any()
        t, weight = t.double(), weight.double() * used
        moved = {f"moved by t^{k}": (weight * t**k).sum(1).to(score.dtype) for k in range(3)}
        return {"score": score, **moved}

    cases = [in_precision(precision, Restoring(rows=4, steepness=2.0, seed=seed), run) for seed in range(3)]
    assert_as_accurate(*cases)


@pytest.mark.parametrize(("frequency", "panels"), [(60.0, 12), (1000.0, 64)])
def test_panels_are_those_of_the_reference(frequency, panels):
    """Also where more are wanted than there is room for."""
    case = Restoring(rows=2, hidden=(9,), frequencies=2, context=2, activation="tanh", steepness=2.0, seed=1)
    case.frequencies = torch.tensor([frequency, 0.77 * frequency], dtype=torch.float64)
    case = case.to(torch.float32)
    found, expected = (nodes(case, backend, 1e-5, 5) for backend in ("emulation", "reference"))
    used = panels * quadrature.NODES
    assert found[2].tolist() == expected[2].tolist() == [used] * 2
    assert torch.equal(found[0][:, :used], expected[0])
    torch.testing.assert_close(found[1][:, :used], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("feature", "squash"), [(None, None), (0.4, None), (0.4, SQUASH)])
def test_gradients(feature, squash):
    run = partial(log_density_gradients, feature=feature, squash=squash)
    kind = partial(Preconditioned, rows=2) if squash else partial(Restoring, rows=5, steepness=2.0)
    cases = [in_precision("float32", kind(seed=seed, hidden=(9, 5)), run) for seed in range(2)]
    assert_as_accurate(*cases)


def known(name, rows, dtype=torch.float32):
    """Some rows of a law, as a case."""
    case = KNOWN[name]()
    case.context, case.x = case.context[rows].to(dtype), case.x[rows].to(dtype)
    case.weights = [w.to(dtype) for w in case.weights]
    case.biases = [b.to(dtype) for b in case.biases]
    case.frequencies = None
    return case


@pytest.mark.parametrize("name", ["narrow gaussian", "logistic", "two modes"])
def test_known_densities(name):
    case = known(name, slice(None, None, 17))
    options = {"score_scale": 1.0, "stage_feature": None}
    context, x = case.context.double(), case.x.double()
    found = {key: value.double() for key, value in density(case, "emulation", **options).items()}
    error = (found["log_density"] - case.logpdf(context, x)).abs()
    assert error.max() <= 1e-4
    assert (error - found["error"]).max() <= 0
    assert (found["cdf"] - case.cdf(context, x)).abs().max() <= 1e-4
    u = torch.linspace(1e-4, 1 - 1e-4, len(x))
    found = density(case, "emulation", point=u, inverse=True, **options)
    error = (case.cdf(context, found["point"].double()) - u.double()).abs()
    assert error.max() <= 1e-4
    assert torch.equal(found["cdf"], u)


def test_at_the_limits():
    """Ends that must move far; points and probabilities far out."""

    def close_to_reference(case, close=1e-4, **changes):
        options = {"score_scale": 1.0, "stage_feature": None} | changes
        got, expected = density(case, "emulation", **options), density(case, "reference", **options)
        for name in got:
            wide = 0.1 if name == "error" else close  # a difference of rounded numbers
            torch.testing.assert_close(
                got[name], expected[name], rtol=wide, atol=close, equal_nan=True, msg=name
            )
        return got

    close_to_reference(known("gaussian", slice(60, 61)), low=5.0, high=6.0, tolerance=1e-3, panels=1)
    far = known("gaussian", slice(40, 42))
    close_to_reference(far, point=torch.tensor([3.0, -30.0]), close=2e-3, tolerance=1.0)
    # The last two are beyond the range of a result in float32, and of what panels reach.
    for points, exist in (([1e6, -1e17], [True] * 2), ([-1e25, 3e38], [False] * 2)):
        found = close_to_reference(far, point=torch.tensor(points), tolerance=1.0)
        assert found["log_density"].isfinite().tolist() == found["error"].isfinite().tolist() == exist
    waves = Waves(0.003, 1.0, 8, seed=24).at(torch.zeros(1).double()).to(torch.float32)
    found = close_to_reference(waves, low=-120.0, high=80.0, panels=16, tolerance=1e-5, close=1e-2)
    assert found["log_density"].isfinite().all()
    ends = known("logistic", slice(60, 64))
    u = torch.tensor([0.0, 1e-30, 1 - 2.0**-24, 1.0])
    close_to_reference(ends, point=u, inverse=True, low=-1e-3, high=1e-3, panels=1, tolerance=1e-2)


def test_rows_without_a_density_are_reported_and_leave_others_alone():
    case = gaussian(0.1)
    # The sign of the context turns s = k z around, or switches it off.
    weights = [[50.0, -1.0], [50.0, 1.0], [-50.0, -1.0], [-50.0, 1.0]], [[100.0, -100.0, -100.0, 100.0]]
    case.weights = [torch.tensor(w) for w in weights]
    case.biases, case.frequencies = [None, None], None
    case.context = torch.tensor([1.0, -1.0, 0.0, 1.0, math.nan, math.inf, 1.0])[:, None]
    case.x = torch.tensor([0.1, 0.1, 0.1, math.nan, 0.1, 0.1, 0.2])
    options = {"score_scale": 1.0, "stage_feature": None}
    good = torch.tensor([1, 0, 0, 0, 0, 0, 1]).bool()
    for inverse in (False, True):
        found = density(case, "emulation", inverse=inverse, **options)
        for name in ("point", "log_density", "log_normalizer", "cdf"):
            assert torch.equal(~found[name].isnan(), good), name
        assert torch.equal(~found["error"].isposinf(), good)
        rest = copy.copy(case)
        rest.context, rest.x = case.context[good], case.x[good]
        alone = density(rest, "emulation", inverse=inverse, **options)
        assert bitwise_equal(alone, {name: value[good] for name, value in found.items()})
    outside = torch.tensor([-0.1, 1.1, math.inf, -math.inf, math.nan, 2.0, 0.5])
    found = density(case, "emulation", point=outside, inverse=True, **options)
    assert found["point"].isnan().tolist() == [True] * 6 + [False]
    case.frequencies, case.biases = torch.zeros(0), [torch.zeros(4), torch.zeros(1)]
    _, weight, count, score = nodes(case, "emulation", panels=2)
    assert torch.equal(~score.isnan(), good)
    for row, fine in enumerate(good):
        used = int(count[row])
        assert used >= 2 * quadrature.NODES
        assert weight[row, :used].isnan().logical_not().all() == fine
        assert not weight[row, used:].any()


@pytest.mark.parametrize("rows", [0, 1, 61])
def test_every_number_of_rows(rows):
    """More than the device takes at once; each as if it were alone."""
    case = Restoring(rows=rows, hidden=(3,), frequencies=0, context=1, steepness=2.0).to(torch.bfloat16)
    changes = {"tolerance": 10.0, "panels": 1, "stage_feature": None}
    whole = density(case, "emulation", **changes)
    assert whole["ends"].shape == (rows, 2)
    case.context, case.x = case.context[-1:], case.x[-1:]
    last = density(case, "emulation", **changes)
    assert bitwise_equal(last, {name: value[-1:] for name, value in whole.items()})


def test_tensors_that_begin_at_any_address():
    case = Restoring(rows=3, hidden=(7, 5), context=3).to(torch.bfloat16)
    whole = density(case, "emulation")

    def shifted(value):
        return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)

    case.context, case.x, case.frequencies = map(shifted, (case.context, case.x, case.frequencies))
    case.weights, case.biases = ([shifted(v) for v in part] for part in (case.weights, case.biases))
    assert bitwise_equal(density(case, "emulation"), whole)


def test_what_it_cannot_run():
    with pytest.raises(RuntimeError, match=f"KiB of shared memory, a block has {LIMIT}"):
        density(Restoring(rows=1, hidden=(128,) * 4).to(torch.float32), "emulation")
    with pytest.raises(ValueError, match=rf"needs \d+ KiB of shared memory, a block has {LIMIT}; choose"):
        density(Restoring(rows=1, hidden=(8,), frequencies=180).to(torch.float32), "emulation")
    with pytest.raises(RuntimeError, match="float64 is not one of"):
        density(Restoring(rows=1), "emulation")
