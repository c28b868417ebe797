"""Small preconditioned models with random weights, and their scores written out."""

import math

import torch
from torch import nn

from fastcsm.networks.preconditioned import initialise
from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead

LEVELS = 20.0, 0.05
CONTEXT = 3


def score_head(weights=1.0, levels=LEVELS, frequencies=0):
    """A head in float64 that is no Gaussian, the less so the smaller ``weights``, 0 being one."""
    head = ScoreHead(CONTEXT + 1, (12, 10), "silu", frequencies)
    initialise(head, levels)
    with torch.no_grad():
        head.weights[-1].mul_(10 * weights)
    return head.double()


def model(precondition="standard", weights=1.0, objective="denoising", features=2, levels=LEVELS, **schedule):
    """A model in float64; its MADE says moments of the order of 1."""
    torch.manual_seed(2)
    moments = 2 * (precondition == "moments")
    made = MADE(features, (16, 16), CONTEXT + moments, activation="silu")
    with torch.no_grad():
        made.output.weight.mul_(2.0)
        made.output.bias.normal_()
    noise = NoiseSchedule(*levels, 10, **({"continuous": True} | schedule))
    head = score_head(weights, levels)
    options = {"noise": noise, "objective": objective, "precondition": precondition}
    return ARCSM(made, head, **options).double()


class Called(nn.Module):
    """A head no kernel knows, with the parameters of one without frequencies that they do."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, h):
        *hidden, last = self.head.layers
        for layer in hidden:
            h = nn.functional.silu(layer(h))
        return last(h)


def moments_of(context, precondition):
    """The features a head reads, m and ln(tau), of contexts (..., C)."""
    if precondition == "standard":
        zero = torch.zeros_like(context[..., 0])
        return context, zero, zero
    return context[..., :-2], context[..., -2], 6 * torch.tanh(context[..., -1] / 6)


def written(head, context, y, sigma, squash=2.0):
    """s and s' of rows in their own units, by autograd, of contexts without log sigma."""
    y = y if y.requires_grad else y.detach().requires_grad_()
    sigma = torch.as_tensor(sigma, dtype=y.dtype).expand_as(y)
    kappa = 1 / (sigma**2 + 1).sqrt()
    u = squash * torch.asinh(kappa * y / squash)
    inputs = torch.cat([context, sigma.log()[..., None], u[..., None]], -1)
    s = kappa / sigma * Called(head)(inputs)[..., 0] - kappa**2 * y
    (ds,) = torch.autograd.grad(s.sum(), y, create_graph=True)
    return s, ds


class TwoGaussians(nn.Module):
    """The exact head of two normals of means -0.8 and 0.8 and deviation 0.6: mean 0, deviation 1."""

    def forward(self, h):
        level, u = h[..., -2].exp(), h[..., -1]
        kappa = 1 / (level**2 + 1).sqrt()
        y = 2 * torch.sinh(u / 2) / kappa
        return ((self.score(y, level) + kappa**2 * y) * level / kappa)[..., None]

    @staticmethod
    def score(y, sigma):
        variance = 0.36 + sigma**2
        return (0.8 * torch.tanh(0.8 * y / variance) - y) / variance

    @staticmethod
    def log_density(y, sigma):
        scale, means = y.new_tensor(math.sqrt(0.36 + sigma**2)), y.new_tensor([-0.8, 0.8])
        parts = [torch.distributions.Normal(mean, scale).log_prob(y) for mean in means]
        return torch.logaddexp(*parts) - math.log(2)
