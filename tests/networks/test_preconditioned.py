import math

import pytest
import torch
from preconditioned_models import CONTEXT, LEVELS, Called, model, moments_of, score_head, written

from fastcsm import functional, objectives
from fastcsm.functional import Interval
from fastcsm.networks import heads
from fastcsm.networks.any_head import Own
from fastcsm.networks.context import LinearContext
from fastcsm.networks.preconditioned import Preconditioned, initialise
from fastcsm.nn import ScoreHead

pytestmark = pytest.mark.filterwarnings("ignore:the score head runs")

KINDS = {"fused": lambda head: head, "called": Called}


def preconditioned(head, **options):
    return Preconditioned(heads.of(head, True), **options)


def rows(*shape, context=CONTEXT):
    return torch.randn(*shape, context).double(), 2 * torch.randn(*shape).double()


def levels_of(*shape):
    """Log-uniform levels, one a row."""
    return (math.log(LEVELS[1]) + torch.rand(*shape).double() * math.log(LEVELS[0] / LEVELS[1])).exp()


def same(got, expected, rtol=1e-9, atol=1e-10):
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def same_gradients(got, expected, targets):
    for a, b in zip(*(torch.autograd.grad(value, targets, retain_graph=True) for value in (got, expected))):
        same(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("squash", [2.0, 0.5])
def test_the_score_of_a_level_is_the_formula(kind, squash):
    head, (context, y) = score_head(), rows(5, 3)
    found = preconditioned(KINDS[kind](head), squash=squash)
    for sigma in (0.05, 3.0, 20.0, levels_of(5, 3)):
        s, ds = written(head, context, y, sigma, squash)
        got = found.at(sigma).score_and_derivative(context, y)
        same(got[0], s)
        same(got[1], ds)
        same(found.at(sigma).score(context, y), s)


@pytest.mark.parametrize("precondition", ["standard", "moments"])
def test_an_output_of_nothing_is_the_score_of_a_normal(precondition):
    found, x = model(precondition, weights=0.0), torch.randn(6, 2).double()
    _, m, log_scale = moments_of(found.context_net(x), precondition)
    for sigma in (0.05, 0.7, 20.0):
        law = torch.distributions.Normal(m, log_scale.exp() * math.hypot(1.0, sigma))
        same(found.score(x, sigma), (m - x) / law.variance)
        for method in found.density_methods:
            density = found.log_density(x, method, sigma=sigma, tolerance=1e-9).log_density
            same(density, law.log_prob(x), atol=1e-8)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("objective", ["csm", "denoising"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_formulas(kind, objective, reduction):
    head, (context, y), sigma = score_head(), rows(5, 3), levels_of(5, 3)
    z, weight, scale = torch.randn(5, 3).double(), torch.rand(3).double(), 1 + torch.rand(5, 1).double()
    context.requires_grad_()
    s, ds = written(head, context, y, sigma)
    values = (scale * s) ** 2 / 2 + scale * ds if objective == "csm" else (scale * s + z / sigma) ** 2 / 2
    values = (weight * values).sum(-1)
    expected = {"mean": values.mean(), "sum": values.sum(), "none": values}[reduction]
    options = {"row_weight": weight, "score_scale": scale, "reduction": reduction}
    found = preconditioned(KINDS[kind](head)).at(sigma)
    loss = objectives.BY_NAME[objective](found, context, y, z, sigma, **options)
    same(loss, expected)
    upstream = torch.randn_like(expected)
    same_gradients((loss * upstream).sum(), (expected * upstream).sum(), [context, *head.parameters()])


@pytest.mark.parametrize("objective", ["csm", "denoising"])
@pytest.mark.parametrize("draws", [1, 3])
def test_contexts_that_are_not_computed_yet(draws, objective):
    head, hidden = score_head(), torch.randn(5, 8).double().requires_grad_()
    weight, bias = (torch.randn(2 * CONTEXT, *size).double().requires_grad_() for size in ((8,), ()))
    layer = (hidden, weight, bias, torch.arange(8) // 4, torch.arange(2 * CONTEXT) // CONTEXT)
    whole = functional.masked_linear(*layer).unflatten(-1, (2, CONTEXT))
    shape = (5, 3, 2) if draws > 1 else (5, 2)
    if draws > 1:
        whole = whole.unsqueeze(1).expand(5, 3, 2, CONTEXT)
    y, z, sigma = torch.randn(shape).double(), torch.randn(shape).double(), levels_of(*shape)
    function, found = objectives.BY_NAME[objective], preconditioned(head).at(sigma)
    loss, expected = (
        function(found, context, y, z, sigma, row_weight=sigma**2)
        for context in (LinearContext(layer, draws=draws), whole)
    )
    same(loss, expected)
    same_gradients(loss, expected, [hidden, weight, bias, *head.parameters()])


@pytest.mark.parametrize("squash", [2.0, 0.5])
def test_a_called_head_is_the_fused_one(squash):
    head, (context, y) = score_head(), rows(6)
    fused, called = (preconditioned(kind(head), squash=squash) for kind in KINDS.values())
    assert isinstance(fused._head, heads.Fused)
    assert not isinstance(called._head, heads.Fused)
    for inverse, x in ((False, y), (True, torch.rand(6).double())):
        found = [each.density(context, x, Interval(-1, 1, 1e-9, 4), inverse, 0.3) for each in (fused, called)]
        for a, b in zip(*(each[:3] for each in found)):
            same(a, b, atol=1e-6)
    for levels in (LEVELS, LEVELS[::-1]):
        found = [each.flow(context, y, levels, 1e-9, True) for each in (fused, called)]
        same(found[0].point, found[1].point, atol=1e-6)
        same(found[0].change, found[1].change, atol=1e-6)
    stages = fused.stages([0.5, 0.01], 3, [2.0, 0.3])
    numbers = {"seed": 3, "samples": torch.arange(6), "dimensions": torch.ones(6, dtype=torch.int64)}
    drawn = [each.langevin(context, y, stages, first_step=1, **numbers) for each in (fused, called)]
    same(*drawn)
    assert (drawn[0] - y).abs().min() > 1e-6


def test_the_flow_follows_its_output():
    """dv / d theta = -r at v = kappa y: what a step of either flow takes from the head."""
    head, (context, y) = score_head(), rows(6)
    found, sigma, h = preconditioned(head), 0.8, 1e-4
    v = y / math.hypot(1.0, sigma)
    r, dr = found.output(context, v, sigma)
    theta = math.atan(sigma)
    ends = []
    for at in (theta - h, theta + h):
        carried = found.flow(context, y, (sigma, math.tan(at)), 1e-12, True)
        ends.append((carried.point * math.cos(at), carried.change + math.log(math.cos(theta) / math.cos(at))))
    same((ends[0][0] - ends[1][0]) / (2 * h), r, atol=1e-5)
    same((ends[1][1] - ends[0][1]) / (2 * h), dr, atol=1e-5)


def test_units_bend_inside_the_inputs_range():
    levels, c = (20.0, 0.01), 6
    torch.manual_seed(5)
    head = ScoreHead(c + 1, (400, 8), "silu", 0)
    before = head.weights[-1].clone()
    initialise(head, levels)
    weight, bias = head.weights[0].detach(), head.biases[0].detach()
    ends = torch.tensor([math.log(level) for level in levels])
    # u at which a unit bends, at the first and the last level and no context.
    u = -(bias[:, None] + weight[:, c : c + 1] * ends) / weight[:, c + 1 :]
    inside = torch.where(u.sign().prod(1) < 0, 0.0, u.abs().amin(1))
    assert inside.max() < 6
    far = bias.abs() / weight[:, c:].norm(dim=1)
    assert far.median() > 0.7, "all bends pass where u and log sigma are 0"
    assert (weight[:, :c].std() * c**0.5 - 1).abs() < 0.1
    assert (weight[:, c].square().mean().sqrt() / 0.5 - 1).abs() < 0.1
    torch.testing.assert_close(head.weights[-1], 0.1 * before)
    assert not head.biases[-1].any()


class TestOwn:
    def test_units_there_and_back(self):
        context = torch.randn(7, CONTEXT + 2).double()
        context[0, -1], context[1, -1] = 1e3, -1e3
        own = preconditioned(score_head(), moments=True).own(context, 1)
        c, m, log_scale = moments_of(context, "moments")
        assert torch.equal(own.context, c)
        assert torch.equal(own.centre, m)
        assert torch.equal(own.log_scale, log_scale)
        assert own.log_scale.abs().max() <= 6
        x = torch.randn(7).double()
        same(own.back(own.of(x)), x)
        same(own.of(x), (x - m) / log_scale.exp())
        assert own.of(x.float()).dtype == torch.float32

    def test_densities_and_scores_are_of_the_given_units(self):
        m, log_scale = torch.randn(5).double(), torch.randn(5).double()
        own = Own(None, m, log_scale)
        x = torch.randn(5).double().requires_grad_()
        unit = torch.distributions.Normal(torch.zeros_like(m), 1.0)
        log_density = own.density(unit.log_prob(own.of(x)))
        same(log_density, torch.distributions.Normal(m, log_scale.exp()).log_prob(x))
        same(own.score(-own.of(x)), torch.autograd.grad(log_density.sum(), x)[0])

    def test_rows_as_they_are(self):
        own, x = Own(None), torch.randn(4)
        assert all(call(x) is x for call in (own.of, own.back, own.density, own.score))
        assert own.detached() is own

    def test_detached_units_have_no_gradient(self):
        context = torch.randn(4, CONTEXT + 2).requires_grad_()
        own = preconditioned(score_head(), moments=True).own(context, 1)
        assert own.of(torch.zeros(4)).requires_grad
        assert not own.detached().of(torch.zeros(4)).requires_grad
        assert own.detached().context.requires_grad
