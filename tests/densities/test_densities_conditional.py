"""Normalised densities of whole models, and the draws that belong to them."""

import math

import pytest
import torch
from torch import nn

import fastcsm
from fastcsm import backends, random
from fastcsm.densities import Conditionals
from fastcsm.networks import heads
from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead
from fastcsm.reference.panels import rule

stats = pytest.importorskip("scipy.stats")

SIGMAS = 1.0, 0.1


def line_head(context_features, k, extra=0):
    """s = -k (x - c_0) in every row, from a plain head."""
    head = ScoreHead(context_features + extra, (2,), "silu", 0)
    with torch.no_grad():
        first = torch.zeros(2, context_features + extra + 1)
        first[:, 0], first[:, -1] = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, -1.0])
        head.layers[0].weight.copy_(first)
        head.layers[1].weight.copy_(torch.tensor([[-k, k]]))
        for layer in head.layers:
            layer.bias.zero_()
    return head


def gaussian_model(features=3, k=4.0, conditional=False, dtype=torch.float64, order=None):
    """x_d is normal about c_0 of a random MADE, with precision k; k / sigma if conditional."""
    torch.manual_seed(0)
    made = MADE(features, (16, 16), 2, order=order, activation="tanh")
    noise = NoiseSchedule(*SIGMAS, 5) if conditional else None
    head = line_head(2, k, int(conditional))
    return ARCSM(made, head, noise=noise, data_range=(-2.0, 2.0)).to(dtype).eval()


def wave_model(features=4, dtype=torch.float64, order=None, residual=False, frequencies=3):
    """A conditional model with several modes: a steep line and a random head, summed in one."""
    torch.manual_seed(1)
    made = MADE(features, (24, 24), 3, order=order, activation="silu", residual=residual)
    head = ScoreHead(4, (26, 18), "silu", frequencies)
    with torch.no_grad():
        first, second, last = (layer.weight for layer in head.layers)
        first[:2, :3], first[:2, 3:] = 0.0, 0.0
        first[0, 4], first[1, 4] = 1.0, -1.0
        second[:2] = 0.0
        second[0, :2], second[1, :2] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
        last *= 2.0
        last[0, :2] = torch.tensor([-1.5, 1.5])
        for layer in head.layers:
            layer.bias.zero_()
    return ARCSM(made, head, noise=NoiseSchedule(*SIGMAS, 5)).to(dtype).eval()


class Any(nn.Module):
    """A head no kernel knows, with the parameters of one that they do."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, h):
        phase = h[..., -1:] * self.head.frequencies
        *hidden, last = self.head.layers
        h = torch.cat([h, phase.sin(), phase.cos()], -1)
        for layer in hidden:
            h = nn.functional.silu(layer(h))
        return last(h)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gaussian_by_quadrature(dtype):
    model = gaussian_model(dtype=dtype)
    x = torch.randn(7, 3, dtype=dtype)
    mean = model.context_net(x)[..., 0]
    expected = torch.distributions.Normal(mean, 0.5).log_prob(x)
    found = model.log_density(x)
    bar = 1e-6 if dtype is torch.float64 else 1e-4
    assert (found.log_density - expected).abs().max() <= bar
    assert ((found.log_density - expected).abs() <= found.error + 1e-12).all()
    assert found.ends.shape == (7, 3, 2)
    torch.testing.assert_close(model.log_prob(x), expected.sum(1), rtol=0, atol=3 * bar)
    torch.testing.assert_close(model.cdf(x), torch.distributions.Normal(mean, 0.5).cdf(x), rtol=0, atol=bar)


def test_gaussian_by_flow():
    """At level sigma the variance is sigma / k; the flow keeps the deviation, in units of the first's."""
    k = 2.0
    model = gaussian_model(k=k, conditional=True)
    x = torch.randn(6, 3, dtype=torch.float64) / 2
    mean = model.context_net(x)[..., 0]
    growth = k * (SIGMAS[0] - SIGMAS[1])
    base = torch.distributions.Normal(mean, (SIGMAS[0] / k) ** 0.5)
    expected = base.log_prob(mean + (x - mean) * math.exp(growth)) + growth
    found = model.log_density(x)
    assert (found.log_density - expected).abs().max() <= 1e-6
    last = torch.distributions.Normal(mean, (SIGMAS[1] / k) ** 0.5)
    torch.testing.assert_close(model.log_prob(x, "quadrature"), last.log_prob(x).sum(1), rtol=0, atol=1e-6)
    at_one = torch.distributions.Normal(mean, (SIGMAS[0] / k) ** 0.5).log_prob(x)
    torch.testing.assert_close(
        model.log_density(x, "quadrature", sigma=SIGMAS[0]).log_density, at_one, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_far_points_by_flow(dtype):
    """To the estimate, or none where no step of the flow is exact enough."""
    k, x = (
        2.0,
        torch.tensor([s * 10.0**e for e in (-1, 0, 1, 2, 3, 4, 6, 9, 30) for s in (1, -1)], dtype=dtype),
    )
    rows = Conditionals(heads.of(line_head(2, k, 1).to(dtype), True), SIGMAS, (-2.0, 2.0))
    found = rows.log_density(x.new_zeros(len(x), 2), x)
    growth = k * (SIGMAS[0] - SIGMAS[1])
    right = -0.5 * k * (x.double() * math.exp(growth)) ** 2 + 0.5 * math.log(k / (2 * math.pi)) + growth
    there = found.log_density.isfinite()
    assert there[:12].all()
    assert torch.equal(there, found.error.isfinite())
    off = (found.log_density.double() - right).abs()
    assert (off <= found.error + torch.finfo(dtype).eps * right.abs())[there].all()


@pytest.mark.parametrize("method", ["flow", "quadrature"])
def test_densities_have_mass_one(method):
    model, grid = wave_model(features=2), torch.linspace(-4, 4, 161, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    mass = model.log_prob(x, method, tolerance=1e-5).exp().sum() * (grid[1] - grid[0]) ** 2
    assert abs(mass - 1) <= 1e-3


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
@pytest.mark.parametrize("method", ["flow", "quadrature"])
def test_quantile_inverts_cdf(method, order):
    model = wave_model(order=order)
    u = torch.rand(20, 4, dtype=torch.float64)
    x = model.quantile(u, method, tolerance=1e-8)
    torch.testing.assert_close(model.cdf(x, method, tolerance=1e-8), u, rtol=0, atol=1e-5)
    assert x.shape == u.shape


@pytest.mark.parametrize("method", ["flow", "inverse_cdf"])
@pytest.mark.parametrize(("order", "residual"), [(None, False), ([2, 0, 3, 1], True)])
def test_fused_draws_are_the_quantiles(method, order, residual):
    model = wave_model(order=order, residual=residual)
    tight = {"tolerance": 1e-8, "flow_tolerance": 1e-8}
    x = model.sample(9, method, seed=5, first_sample=3, **tight)
    samples, dimensions = torch.arange(3, 12)[:, None], torch.arange(4)
    u = random.uniform(5, samples, dimensions, 0, torch.float64)
    expected = model.quantile(u, "quadrature" if method == "inverse_cdf" else "flow", tolerance=1e-8)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    generic = ARCSM(model.context_net, Any(model.head), noise=model.noise).double().eval()
    stepwise = generic.sample(9, method, seed=5, first_sample=3, **tight)
    torch.testing.assert_close(stepwise, expected, rtol=0, atol=1e-5)
    with fastcsm.backend("reference"):
        reference = model.sample(9, method, seed=5, first_sample=3, **tight)
    torch.testing.assert_close(reference, expected, rtol=0, atol=1e-5)


class Parts(backends.Reference):
    """Quantiles, flow and scores, but no draw of their own."""

    name = "parts"

    def refuses(self, op, request):
        return ["no draws"] if op.endswith("_draw") else super().refuses(op, request)


@pytest.fixture
def parts():
    backends.register(Parts())
    yield "parts"
    del backends.registry.known["parts"]


@pytest.mark.parametrize(
    ("order", "residual", "dtype"),
    [
        (None, False, torch.float64),
        ([2, 0, 3, 1], True, torch.float64),
        ([1, 3, 2, 0], False, torch.float32),
        (None, True, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("method", ["flow", "inverse_cdf"])
def test_draws_composed_of_parts(method, order, residual, dtype, parts):
    """Draws of a backend that has quantiles only; in 16 bits their contexts are rounded, no more."""
    model = wave_model(order=order, residual=residual, dtype=dtype)
    given = torch.zeros(5, 4, dtype=dtype)
    for options in ({}, {"denoise": True}, {"given": given, "known": 2}):
        with fastcsm.backend("reference"):
            expected = model.sample(5, method, seed=3, **options)
        with fastcsm.backend(parts):
            x = model.sample(5, method, seed=3, **options)
        bar = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
        torch.testing.assert_close(x, expected, rtol=0, atol=bar)
    with fastcsm.backend(parts):
        assert model.sample(0, method).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["flow", "inverse_cdf"])
def test_draws_of_every_dtype_denoise_and_keep_what_is_given(method, dtype):
    model = wave_model(dtype=dtype)
    x = model.sample(5, method, seed=2)
    assert x.dtype == dtype
    assert x.isfinite().all()
    torch.testing.assert_close(model.sample(5, method, seed=2, batch_size=2), x)
    clean = model.sample(5, method, seed=2, denoise=True)
    if dtype is torch.float64:
        expected = x + SIGMAS[1] ** 2 * model.score(x)
        torch.testing.assert_close(clean, expected, rtol=1e-6, atol=1e-6)
    given = torch.zeros(5, 4, dtype=dtype)
    kept = model.sample(5, method, seed=2, given=given, known=2)
    assert torch.equal(kept[:, :2], given[:, :2])
    assert (kept[:, 2:] != x[:, 2:]).any()


@pytest.mark.parametrize("method", ["flow", "inverse_cdf"])
def test_exact_draws(method):
    """Kolmogorov-Smirnov of draws under the model's own distribution: p-values uniform over 200 seeds."""
    model = wave_model(features=2, dtype=torch.float32)
    kind = "quadrature" if method == "inverse_cdf" else "flow"
    n, seeds = 300, 200
    x = torch.cat([model.sample(n, method, seed=seed) for seed in range(seeds)])
    u = model.double().cdf(x.double(), kind).reshape(seeds, n, 2)
    p = [[stats.kstest(u[seed, :, d].numpy(), "uniform").pvalue for seed in range(seeds)] for d in (0, 1)]
    for values in p:
        assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert stats.kstest(u.reshape(-1, 2)[:, 0].numpy(), "uniform").statistic < 0.01


def test_draws_differ_from_a_shifted_law():
    """The test above can fail: a hundredth of the range away it does."""
    model = wave_model(features=2, dtype=torch.float32)
    x = model.sample(60_000, "inverse_cdf", seed=0)
    u = model.double().cdf(x.double() + 0.01, "quadrature")
    assert stats.kstest(u[:, 0].numpy(), "uniform").pvalue < 1e-3


@pytest.mark.parametrize("method", ["quadrature", "flow"])
def test_any_head_has_a_density(method):
    model = wave_model()
    generic = ARCSM(model.context_net, Any(model.head), noise=model.noise).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64) / 2
    torch.testing.assert_close(generic.log_prob(x, method), model.log_prob(x, method), rtol=0, atol=1e-5)
    if method == "quadrature":
        grads = [
            torch.autograd.grad(m.log_prob(x, method).sum(), list(m.parameters())) for m in (generic, model)
        ]
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_densities_of_inference_mode_leave_training_as_it_was():
    model, x = wave_model(features=2), torch.zeros(2, 2, dtype=torch.float64)
    generic = ARCSM(model.context_net, Any(model.head), noise=model.noise).double().eval()
    rule.cache_clear()
    with torch.inference_mode():
        found = generic.log_prob(x, "quadrature")
    loss = generic.log_prob(x, "quadrature")
    assert torch.equal(loss, found)
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in generic.head.parameters())


def test_a_gradient_of_the_flow_is_refused():
    model = wave_model(features=3)
    x = torch.randn(3, 3, dtype=torch.float64) / 2
    loss = model.loss(x) - 0.1 * model.log_prob(x).mean()
    with pytest.raises(RuntimeError, match="method 'flow' is not differentiable: use method 'quadrature'"):
        loss.backward()
    with torch.no_grad():
        assert not model.log_prob(x).requires_grad


def test_likelihood_is_differentiable_through_the_network():
    model = wave_model(features=3)
    x = torch.randn(4, 3, dtype=torch.float64) / 2
    parameter = model.context_net.layers[0].weight
    (grad,) = torch.autograd.grad(model.log_prob(x, "quadrature", tolerance=1e-10).sum(), parameter)
    h, index = 1e-5, (3, 0)
    values = []
    with torch.no_grad():
        for step in (h, -2 * h):
            parameter[index] += step
            values.append(model.log_prob(x, "quadrature", tolerance=1e-10).sum())
    assert abs((values[0] - values[1]) / (2 * h) - grad[index]) <= 1e-5


def test_likelihood_trains():
    """Maximum likelihood moves an unfitted model to the data, with Adam and nothing else."""
    torch.manual_seed(0)
    model = gaussian_model(k=1.0, dtype=torch.float32)
    data = 0.5 + 0.25 * torch.randn(512, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -model.log_prob(data[torch.randint(512, (128,))], "quadrature", tolerance=1e-3).mean() / 3
        loss.backward()
        optimizer.step()
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25**2)
    with torch.no_grad():
        assert -model.log_prob(data, "quadrature").mean() / 3 < entropy + 0.1


def test_the_flow_may_begin_at_any_level():
    model, x = wave_model(), torch.randn(6, 4, dtype=torch.float64) / 3
    last = model.log_density(x, "flow", base=SIGMAS[1], tolerance=1e-9).log_density
    torch.testing.assert_close(last, model.log_density(x, "quadrature", tolerance=1e-9).log_density)
    middle = model.log_density(x, "flow", base=0.4, tolerance=1e-9).log_density
    assert (middle - last).abs().max() > 1e-3
    u = model.cdf(x, "flow", base=0.4, tolerance=1e-9)
    torch.testing.assert_close(model.quantile(u, "flow", base=0.4, tolerance=1e-9), x, rtol=0, atol=1e-5)
    tight = {"seed": 1, "tolerance": 1e-8, "flow_tolerance": 1e-8}
    drawn = model.sample(5, "flow", base=SIGMAS[1], **tight)
    torch.testing.assert_close(drawn, model.sample(5, "inverse_cdf", **tight), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"base is 0\.4, expected none with method 'quadrature'"):
        model.log_prob(x, "quadrature", base=0.4)
    with pytest.raises(ValueError, match="base must be a positive number, got 0"):
        model.log_prob(x, "flow", base=0)


def test_bits_per_dim():
    model = wave_model()
    x = torch.rand(6, 4, dtype=torch.float64) * 2 - 1
    nats = -model.log_prob(x) / 4
    torch.testing.assert_close(model.bits_per_dim(x), (nats + math.log(128)) / math.log(2))
    torch.testing.assert_close(
        model.bits_per_dim(x, 2, "quadrature"), -model.log_prob(x, "quadrature") / 4 / math.log(2)
    )


def test_the_default_device_has_no_part():
    model = wave_model(features=2, order=[1, 0])
    generic = ARCSM(model.context_net, Any(model.head), noise=model.noise).double().eval()
    u = torch.rand(3, 2, dtype=torch.float64)
    expected = model.quantile(u), generic.sample(2, "inverse_cdf")
    with torch.device("meta"):
        found = model.quantile(u), generic.sample(2, "inverse_cdf")
    assert all(map(torch.equal, found, expected))


def test_rows_without_a_density_are_not_numbers():
    model = gaussian_model(k=-4.0)
    found = model.log_density(torch.zeros(2, 3, dtype=torch.float64))
    assert found.log_density.isnan().all()
    assert found.error.isposinf().all()
    with pytest.warns(UserWarning, match="2 of 2 rows have no density"):
        assert model.log_prob(torch.zeros(2, 3, dtype=torch.float64)).isnan().all()


def test_staged_models_answer_for_their_level():
    torch.manual_seed(0)
    noise = NoiseSchedule(1.0, 0.1, 2, form="staged")
    model = ARCSM(MADE(2, (8,), 2), line_head(2, 4.0), noise=noise).double().eval()
    x = torch.randn(3, 2, dtype=torch.float64)
    mean = model.context_net(x)[..., 0]
    expected = torch.distributions.Normal(mean, 0.5).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="method is 'flow', expected a model whose noise schedule is cond"):
        model.log_prob(x, "flow")


def test_bad_arguments():
    model = wave_model()
    x = torch.zeros(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"sigma must be a positive number, got -1\.0"):
        model.log_prob(x, sigma=-1.0)
    with pytest.raises(
        ValueError, match=r"sigma is 0\.5, expected a model whose noise schedule is conditional"
    ):
        gaussian_model().log_prob(x[:, :3], sigma=0.5)
    with pytest.raises(ValueError, match="tolerance must be a positive number, got 0"):
        model.log_prob(x, tolerance=0)
    with pytest.raises(ValueError, match=r"x must have shape \(B, D\), got \(4,\)"):
        model.cdf(x[0])
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        model.sample(-1)
