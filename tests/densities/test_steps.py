import math

import pytest
import torch
from preconditioned_models import CONTEXT, LEVELS, score_head

from fastcsm import functional
from fastcsm.densities import Accuracy, Conditionals, steps
from fastcsm.networks import heads
from fastcsm.networks.preconditioned import Preconditioned


def preconditioned(weights=1.0):
    return Preconditioned(heads.of(score_head(weights), True))


class Recording(Preconditioned):
    """Keeps the levels at which its output was asked for."""

    def __init__(self, head):
        super().__init__(head)
        self.levels = []

    def output(self, context, v, sigma):
        self.levels.append(sigma)
        return super().output(context, v, sigma)


def test_many_steps_are_the_flow():
    """The error falls with the square of the number of steps."""
    head, context = preconditioned(), torch.randn(12, CONTEXT).double()
    y = 1.5 * torch.randn(12).double()
    rows = Conditionals(head, LEVELS, (-1.0, 1.0), accuracy=Accuracy(1e-10, 1e-10))
    with torch.no_grad():
        expected = rows.log_density(context, y).log_density
        off = [
            (steps.log_density(head, context, y, LEVELS, steps=n) - expected).abs().max() for n in (100, 200)
        ]
    assert off[1] < 1e-3
    assert 3 < off[0] / off[1] < 5


@pytest.mark.parametrize("jitter", [None, torch.tensor([0.9, 0.1, 0.4, 0.7])])
def test_the_map_of_few_steps_has_mass_one(jitter):
    """However few the steps, where the map increases: there the density is exact."""
    head, grid = preconditioned(0.3), torch.linspace(-12, 12, 2401, dtype=torch.float64)
    for context in torch.randn(3, 1, CONTEXT).double():
        with torch.no_grad():
            found = steps.log_density(head, context.expand(2401, -1), grid, LEVELS, jitter).exp()
        assert abs(torch.trapezoid(found, grid) - 1) <= 1e-6
        normal = torch.distributions.Normal(0.0, math.hypot(1.0, LEVELS[1])).log_prob(grid).exp()
        assert (found - normal).abs().max() > 0.02


def test_gradients_are_those_of_finite_differences():
    head, jitter = score_head(), torch.rand(steps.STEPS - 1)
    weights = [weight.detach().requires_grad_() for weight in (*head.weights, *head.biases)]
    context, y = torch.randn(3, CONTEXT).double().requires_grad_(), torch.randn(3).double().requires_grad_()

    def value(context, y, *weights):
        layers = functional.Head(weights[:3], weights[3:], head.frequencies, "silu")
        found = Preconditioned(heads.Fused(layers, True))
        return steps.log_density(found, context, y, LEVELS, jitter)

    assert torch.autograd.gradcheck(value, (context, y, *weights), fast_mode=True)


def test_a_jitter_moves_the_levels_between_the_ends():
    context, y, n = torch.randn(2, CONTEXT).double(), torch.randn(2).double(), steps.STEPS

    def levels(jitter, n=n):
        head = Recording(heads.of(score_head(), True))
        steps.log_density(head, context, y, LEVELS, jitter, n)
        assert head.levels[1:-1:2] == head.levels[2::2]
        return torch.tensor([*head.levels[::2], head.levels[-1]]).log().double()

    plain, size = levels(None), math.log(LEVELS[0] / LEVELS[1]) / n
    torch.testing.assert_close(plain.diff(), torch.full((n,), size).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(levels(torch.full((n - 1,), 0.5)), plain)
    for part in (0.0, 1.0 - 1e-7):
        moved = levels(torch.full((n - 1,), part)) - plain
        assert moved[0] == moved[-1] == 0
        expected = torch.full((n - 1,), 0.4 * size * (2 * part - 1)).double()
        torch.testing.assert_close(moved[1:-1], expected, rtol=1e-4, atol=1e-5)
    assert (levels(torch.tensor([0.0, 1.0, 0.0, 1.0])).diff() > 0.15 * size).all()
    assert len(levels(torch.empty(0), 1)) == 2


def test_results_are_at_least_float32():
    head, context, y = score_head().float(), torch.randn(4, CONTEXT), torch.randn(4)
    found = steps.log_density(Preconditioned(heads.of(head, True)), context, y, LEVELS)
    assert found.dtype == torch.float32
    rows = Preconditioned(heads.of(head.double(), True)), context.double(), y.double()
    torch.testing.assert_close(found.double(), steps.log_density(*rows, LEVELS), rtol=1e-4, atol=1e-4)
