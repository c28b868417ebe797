"""Densities of preconditioned heads, whose flow starts from a Gaussian."""

import math

import pytest
import torch
from preconditioned_models import CONTEXT, LEVELS, TwoGaussians, model

import fastcsm
from fastcsm.densities import Accuracy, Conditionals
from fastcsm.networks import heads
from fastcsm.networks.preconditioned import Preconditioned

pytestmark = pytest.mark.filterwarnings("ignore:the score head runs")


@pytest.fixture(scope="module")
def trained():
    """Models by how they are preconditioned, after a few steps on two modes."""
    found = {}
    for precondition in ("standard", "moments"):
        net = model(precondition, draws=4, power=2.0)
        x = 0.2 * torch.randn(400, 2).double() + torch.randint(0, 2, (400, 2)) * 2 - 1
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for part in x.repeat(8, 1).split(80):
            optimizer.zero_grad()
            net.loss(part, torch.Generator().manual_seed(1)).backward()
            optimizer.step()
        found[precondition] = net.eval()
    return found


@pytest.fixture(params=["random", "trained"])
def nets(request, trained):
    if request.param == "trained":
        return trained
    return {name: model(name, weights=2.0) for name in trained}


def contexts(net, rows=3):
    """Contexts of the second variable."""
    return net.context_net(torch.randn(rows, 2).double())[:, 1].detach()


def exact(levels=LEVELS, method="flow", **options):
    found = Preconditioned(heads.of(TwoGaussians(), True))
    return Conditionals(found, levels, (-1.0, 1.0), method, accuracy=Accuracy(1e-10, 1e-10), **options)


@pytest.mark.parametrize("precondition", ["standard", "moments"])
def test_the_mass_is_one(nets, precondition):
    net = nets[precondition]
    rows, context = net.conditionals(tolerance=1e-6), contexts(net)
    tails = torch.tensor([1e-7, 1 - 1e-7]).double().expand(len(context), 2)
    low, high = rows.quantile(context[:, None].expand(-1, 2, -1), tails).unbind(1)
    assert (low < high).all()
    t = torch.linspace(0, 1, 1500, dtype=torch.float64)
    x = low[:, None] + (high - low)[:, None] * t
    density = rows.log_density(context[:, None].expand(-1, len(t), -1), x).log_density.exp()
    # The density is smooth at the smallest level, and of those outside are 2e-7.
    mass = torch.trapezoid(density.detach(), x, dim=1)
    assert (mass - 1).abs().max() <= 1e-4
    assert density.detach().std() > 0.1 * density.detach().mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("precondition", ["standard", "moments"])
def test_every_finite_row_has_a_density(nets, precondition, dtype):
    net = nets[precondition].to(dtype)
    far = torch.tensor([1.0, 30.0, 1e3, 1e6], dtype=dtype)
    x = torch.cat([far, -far])[:, None] * torch.ones(2, dtype=dtype)
    with torch.no_grad():
        found = net.log_density(x)
        assert found.log_density.isfinite().all()
        assert found.error.isfinite().all()
        assert not net.cdf(x).isnan().any()
        lost = net.log_density(torch.tensor([[math.inf, 0.0], [math.nan, 0.0]], dtype=dtype))
    assert lost.log_density[:, 0].isnan().all()
    assert lost.error[:, 0].isinf().all()
    net.double()


@pytest.mark.parametrize("precondition", ["standard", "moments"])
def test_quantile_inverts_cdf(nets, precondition):
    net = nets[precondition]
    u = torch.cat([torch.rand(6, 2), torch.tensor([[1e-6, 1 - 1e-6]])]).double()
    x = net.quantile(u, tolerance=1e-9)
    torch.testing.assert_close(net.cdf(x, tolerance=1e-9), u, rtol=0, atol=1e-7)
    context, h = contexts(net, 2), 1e-4
    with torch.no_grad():
        rows = net.conditionals(tolerance=1e-10)
        x = torch.tensor([0.3, -0.4]).double()
        slope = (rows.cdf(context, x + h) - rows.cdf(context, x - h)) / (2 * h)
        density = rows.log_density(context, x).log_density.exp()
    torch.testing.assert_close(slope, density, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_probabilities_0_and_1_are_at_the_ends(backend):
    net = model("moments")
    with fastcsm.backend(backend):
        ends = net.conditionals().quantile(contexts(net, 2), torch.tensor([0.0, 1.0]).double())
    assert ends.tolist() == [-math.inf, math.inf]


def test_an_exact_score_has_the_exact_density():
    """But for the Gaussian it starts from, whose error falls with the fourth power of the largest level."""
    y = torch.linspace(-4, 4, 41, dtype=torch.float64)
    context, off = y.new_zeros(41, CONTEXT), []
    expected = TwoGaussians.log_density(y, LEVELS[1])
    for rows in (exact(), exact((40.0, LEVELS[1])), exact(method="quadrature")):
        off.append((rows.log_density(context, y).log_density - expected).abs().max())
    assert off[0] <= 2e-4
    assert 12 < off[0] / off[1] < 20
    assert off[2] <= 1e-8


@pytest.mark.parametrize("sigma", [0.5, 5.0])
def test_the_derivative_of_the_density_is_the_score(sigma):
    y, h = torch.linspace(-4, 4, 21, dtype=torch.float64), 1e-3
    context, rows = y.new_zeros(21, CONTEXT), exact(sigma=sigma)
    up, down = (rows.log_density(context, y + step).log_density for step in (h, -h))
    score = Preconditioned(heads.of(TwoGaussians(), True)).at(sigma).score(context, y)
    torch.testing.assert_close(score, TwoGaussians.score(y, sigma))
    torch.testing.assert_close((up - down) / (2 * h), score, rtol=0, atol=1e-4)


def test_the_largest_level_is_the_gaussian():
    net, x = model("moments"), torch.randn(4, 2).double()
    own = net.parts()[0].head.own(net.context_net(x), 2)
    for level in ({"sigma": LEVELS[0]}, {"sigma": 0.3, "base": 0.3}):
        scale = own.log_scale.exp() * math.hypot(1, level["sigma"])
        law = torch.distributions.Normal(own.centre, scale)
        found = net.log_density(x, **level)
        torch.testing.assert_close(found.log_density, law.log_prob(x))
        assert not found.error.any()
        torch.testing.assert_close(net.cdf(x, **level), law.cdf(x))
    lost = net.log_density(torch.full((1, 2), math.inf).double(), sigma=LEVELS[0])
    assert lost.log_density.isnan().all()
    assert lost.error.isinf().all()


def test_backends_agree():
    net, x = model("moments"), torch.randn(5, 2).double()
    found = net.log_density(x, tolerance=1e-9)
    with fastcsm.backend("reference"):
        expected = net.log_density(x, tolerance=1e-9)
    torch.testing.assert_close(found.log_density, expected.log_density, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precondition", ["standard", "moments"])
def test_a_gradient_of_the_flow_is_refused(precondition):
    net, x = model(precondition), torch.randn(3, 2).double()
    loss = net.loss(x) - 0.1 * net.log_prob(x).mean()
    with pytest.raises(RuntimeError, match="method 'flow' is not differentiable: use method 'quadrature'"):
        loss.backward()
    with torch.no_grad():
        assert not net.log_prob(x).requires_grad
