"""AR-CSMs with preconditioned heads, end to end on few columns."""

import math

import pytest
import torch
from preconditioned_models import LEVELS, Called, model, moments_of, written
from torch import nn

from fastcsm import functional, random
from fastcsm.densities import steps
from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead

KINDS = "standard", "moments"
OBJECTIVES = "csm", "denoising"


class Around(nn.Module):
    """A context network that is no MADE to look at."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def same(got, expected, rtol=1e-9, atol=1e-10):
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def normals(centres, log_scales, levels=(20.0, 0.1)):
    """A model of independent normals: F = 0, and the context network says nothing but moments."""
    found = model("moments", weights=0.0, features=len(centres), levels=levels)
    with torch.no_grad():
        found.context_net.output.weight.zero_()
        bias = found.context_net.output.bias.view(len(centres), -1)
        bias[:, -2] = torch.tensor(centres)
        bias[:, -1] = 6 * torch.atanh(torch.tensor(log_scales) / 6)
    return found.eval()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("precondition", KINDS)
@pytest.mark.parametrize("draws", [1, 3])
def test_the_loss_is_the_formula(draws, precondition, objective, monkeypatch):
    """Rows in units of the moments, which learn by a likelihood of their own; one context a variable."""
    calls, fused = [], functional.linear_csm_loss
    monkeypatch.setattr(functional, "linear_csm_loss", lambda *a, **k: calls.append(1) or fused(*a, **k))
    found = model(precondition, objective=objective, features=4, draws=draws, power=2.0)
    x = torch.randn(5, 4).double().requires_grad_()
    noise = found.draw_noise(x.shape, dtype=torch.float64)
    z_hat, z, sigma = noise
    assert z_hat.shape == x.shape
    assert z.shape == sigma.shape == ((5, 3, 4) if draws > 1 else (5, 4))
    loss = found.loss(x, noise=noise)
    assert len(calls) == (precondition == "standard")
    context, m, log_scale = moments_of(found.context_net(x + LEVELS[1] * z_hat), precondition)
    y = (x - m.detach()) * (-log_scale.detach()).exp()
    if draws > 1:
        y, context = y.unsqueeze(1), context.unsqueeze(1).expand(-1, draws, -1, -1)
    s, ds = written(found.head, context, y + sigma * z, sigma)
    rows = s**2 / 2 + ds if objective == "csm" else (s + z / sigma) ** 2 / 2
    expected = (found.noise.weight(sigma) * sigma**2 * rows).sum() / (5 * draws)
    if precondition == "moments":
        student = torch.distributions.StudentT(4.0, m, log_scale.exp()).log_prob(x)
        at_zero = torch.distributions.StudentT(4.0).log_prob(torch.zeros(()))
        expected = expected - (student - at_zero).sum() / 5
    same(loss, expected, atol=1e-6)  # the constant is in float32
    leaves = [x, *found.parameters()]
    for a, b in zip(*(torch.autograd.grad(value, leaves) for value in (loss, expected))):
        same(a, b)
        assert a.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("precondition", KINDS)
def test_several_draws_are_the_mean_of_one_each(precondition, objective):
    found = model(precondition, objective=objective, draws=4)
    whole = ARCSM(
        Around(found.context_net),
        found.head,
        noise=found.noise,
        objective=objective,
        precondition=precondition,
    )
    x = torch.randn(6, 2).double()
    z_hat, z, sigma = found.draw_noise(x.shape, dtype=torch.float64)
    loss, by_whole = (each.loss(x, noise=(z_hat, z, sigma)) for each in (found, whole))
    single = [found.loss(x, noise=(z_hat, z[:, k], sigma[:, k])) for k in range(4)]
    parameters = list(found.parameters())
    same(loss, sum(single) / 4)
    same(loss, by_whole)
    expected = torch.autograd.grad(sum(single) / 4, parameters)
    for value in (loss, by_whole):
        for a, b in zip(torch.autograd.grad(value, parameters), expected):
            same(a, b)


@pytest.mark.parametrize("objective", [*OBJECTIVES, "likelihood"])
def test_csm_loss_is_that_whatever_the_objective(objective):
    found, plain = model("moments", objective=objective), model("moments", objective="csm")
    x = torch.randn(5, 2).double()
    noise = plain.draw_noise(x.shape, dtype=torch.float64)
    assert torch.equal(found.csm_loss(x, noise=noise), plain.loss(x, noise=noise))


@pytest.mark.filterwarnings("ignore:the score head runs")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("precondition", KINDS)
def test_scores_are_in_units_of_x(precondition, called):
    """Those of the density by quadrature, with the contexts as they are."""
    found, x = model(precondition, features=3), torch.randn(5, 3).double()
    if called:
        found = ARCSM(
            found.context_net, Called(found.head), noise=found.noise, precondition=precondition
        ).double()
    context = found.context_net(x).detach()
    for sigma in (None, 0.4, 20.0):
        rows = found.conditionals("quadrature", sigma=sigma, tolerance=1e-10)
        moved = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(rows.log_density(context, moved).log_density.sum(), moved)
        score = found.score(x, sigma)
        same(score, slope, rtol=1e-6, atol=1e-7)
        h = 1e-4
        up, down = (rows.log_density(context, x + step).log_density for step in (h, -h))
        same((up - down) / (2 * h), score, rtol=1e-4, atol=1e-4)
    same(found.score(x), found.score(x, found.noise.sigma_min))


def test_flow_draws_of_normals_are_their_quantiles():
    found = normals([3.0, -1.0], [1.5, -2.0])
    m, tau = torch.tensor([3.0, -1.0]).double(), torch.tensor([1.5, -2.0]).double().exp()
    x = found.sample(200, seed=4, first_sample=1)
    u = random.uniform(4, torch.arange(1, 201)[:, None], torch.arange(2), 0, torch.float64)
    law = torch.distributions.Normal(m, tau * math.hypot(1.0, 0.1))
    same(x, law.icdf(u), rtol=1e-4, atol=1e-3)
    clean = found.sample(200, seed=4, first_sample=1, denoise=True)
    same(clean, m + (x - m) / (1 + 0.1**2), atol=1e-6)
    exact = found.sample(200, "inverse_cdf", seed=4, first_sample=1)
    same(exact, x, rtol=1e-3, atol=1e-3)


def test_langevin_draws_of_normals_have_their_moments():
    """Each step of a linear score multiplies the deviation from m and adds a known variance."""
    found, n = normals([3.0, -1.0], [1.5, -2.0]), 8000
    x = found.sample(n, "langevin", seed=4, steps=5)
    variance = 1 + 20.0**2
    for sigma in found.noise.sigmas:
        size = 0.2 * sigma**2
        for _ in range(5):
            variance = (1 - size / 2 / (1 + sigma**2)) ** 2 * variance + size
    m, tau = torch.tensor([3.0, -1.0]).double(), torch.tensor([1.5, -2.0]).double().exp()
    y = (x - m) / tau
    assert (y.mean(0).abs() < 4 * math.sqrt(variance / n)).all()
    assert (y.var(0) / variance - 1).abs().max() < 4 * math.sqrt(2 / n)
    torch.testing.assert_close(found.sample(50, "langevin", seed=4, steps=5, batch_size=7), x[:50])


@pytest.mark.parametrize("precondition", KINDS)
def test_the_likelihood_is_of_the_flow_by_steps(precondition):
    """The more steps, the closer to the adaptive one; the same for one row as among many."""
    found, x = model(precondition, objective="likelihood", features=3), torch.randn(7, 3).double()
    noise = found.draw_noise(x.shape, dtype=torch.float64)
    loss = found.likelihood_loss(x, noise, "none")
    same(found.loss(x, noise=noise), loss.mean())
    context, m, log_scale = moments_of(found.context_net(x), precondition)
    jitter = torch.special.ndtr(noise[1].flatten()[: steps.STEPS - 1])
    head, y = found.parts()[0].head, (x - m) / log_scale.exp()
    rows = steps.log_density(head, context, y, LEVELS, jitter) - log_scale
    same(loss, -rows.sum(1))
    plain = found.likelihood_loss(x, (), "none")
    same(plain, -(steps.log_density(head, context, y, LEVELS) - log_scale).sum(1))
    parameters = list(found.parameters())
    for a in torch.autograd.grad(loss.mean(), parameters):
        assert a.any()
    for rows in (x[:1, :], x[:0]):
        own = found.draw_noise(rows.shape, dtype=torch.float64)
        assert found.likelihood_loss(rows, own, "none").shape == (len(rows),)


@pytest.mark.parametrize("precondition", KINDS)
def test_likelihood_trains(precondition):
    """From no fit to within a tenth of a nat a variable of the entropy of a correlated normal."""
    found = model(precondition, objective="likelihood", weights=0.1)
    z = torch.randn(256, 2).double()
    x = torch.stack([z[:, 0], 0.9 * z[:, 0] + math.sqrt(1 - 0.81) * z[:, 1]], 1)
    entropy = math.log(2 * math.pi * math.e) + math.log(1 - 0.81) / 2
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(found.parameters(), lr=0.01)
    for step in range(100):
        optimizer.zero_grad()
        found.loss(x[step % 2 :: 2], generator).backward()
        optimizer.step()
    with torch.no_grad():
        assert -found.log_prob(x).mean() < entropy + 0.2


@pytest.mark.parametrize("objective", ["likelihood", "csm"])
def test_denoising_comes_first_where_it_is_told_how_far_training_is(objective):
    found = model("moments", objective=objective, draws=3, power=2.0)
    found.denoise_first = 0.25
    x = torch.randn(9, 2).double()
    noise = found.draw_noise(x.shape, dtype=torch.float64)
    own, denoising = (found._loss(name, x, None, noise) for name in (objective, "denoising"))
    assert abs(own - denoising) > 0.1
    assert torch.equal(found.loss(x, noise=noise), own)
    for fraction, expected in ((0.0, denoising), (0.2, denoising), (0.25, own), (1.0, own)):
        found.go_on(fraction)
        assert torch.equal(found.loss(x, noise=noise), expected)
        watched = -found.log_prob(x).mean() if objective == "likelihood" else own
        assert torch.equal(found.held_out_loss(x, noise=noise), watched)


@pytest.mark.parametrize("precondition", KINDS)
def test_the_training_step_compiles_whole(precondition):
    found = model(precondition, draws=2, power=2.0)
    x = torch.randn(6, 2).double()
    noise = found.draw_noise(x.shape, dtype=torch.float64)
    parameters = list(found.parameters())
    expected = torch.autograd.grad(found.loss(x, noise=noise), parameters)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, noise: found.loss(x, noise=noise), fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(x, noise), parameters), expected):
        torch.testing.assert_close(a, b)


def test_a_state_of_another_precondition_is_refused():
    states = {}
    for precondition in (None, "standard", "moments"):
        extra = 2 * (precondition == "moments")
        head = ScoreHead(4, (8,), frequencies=0)
        states[precondition] = ARCSM(
            MADE(2, (8,), 3 + extra), head, noise=NoiseSchedule(), precondition=precondition
        )
    for precondition, other in ((None, "standard"), ("standard", None), ("moments", "standard")):
        message = f"precondition of the state is '{precondition or 'none'}', expected '{other or 'none'}'"
        with pytest.raises(RuntimeError, match=message):
            states[other].load_state_dict(states[precondition].state_dict())
        states[other].load_state_dict(states[other].state_dict())


def test_bad_arguments():
    made, head, noise = MADE(2, (8,), 5), ScoreHead(4, (8,)), NoiseSchedule()
    with pytest.raises(ValueError, match="precondition must be 'standard' or 'moments', got 'mean'"):
        ARCSM(made, head, noise=noise, precondition="mean")
    for other in (None, NoiseSchedule(form="staged")):
        with pytest.raises(ValueError, match="precondition needs a NoiseSchedule of form 'conditional'"):
            ARCSM(made, head, noise=other, precondition="standard")
    with pytest.raises(ValueError, match="precondition must be given when objective is 'likelihood'"):
        ARCSM(made, head, noise=noise, objective="likelihood")
    with pytest.raises(ValueError, match="noise must be a NoiseSchedule when objective is 'likelihood'"):
        ARCSM(made, head, objective="likelihood", precondition="standard")
    for share, given in ((0.5, None), (1.0, noise), (-0.1, noise)):
        with pytest.raises(ValueError, match=rf"denoise_first must be in \[0, 1\), 0 without .* got {share}"):
            ARCSM(MADE(2, (8,), 4), head, noise=given, denoise_first=share)
    message = r"head must have 6 context features \(the context network's 5 and log sigma\), got 4"
    with pytest.raises(ValueError, match=message):
        ARCSM(made, head, noise=noise, precondition="standard")
    message = r"4 context features \(the context network's 5 less two moments and log sigma\), got 7"
    with pytest.raises(ValueError, match=message):
        ARCSM(made, ScoreHead(7, (8,)), noise=noise, precondition="moments")
    assert "precondition='moments'" in repr(ARCSM(made, head, noise=noise, precondition="moments"))
