"""Draws of a Gaussian autoregressive model whose law after finitely many Langevin steps is known exactly.

The conditionals are N(b_d + sum_j A_dj x_j, V). MADE and head are built so that their scores are exactly
linear: every linear function u passes a relu layer as the pair relu(u), relu(-u), whose difference is u. So
the chain of a variable given its context c is a linear recursion, y -> (1 - e / (2 V_i)) y + sqrt(e) z for
y = x - c, started from N(-c, 1): its law is N((1 - P) c, Q) with P and Q computed below, and that of all
variables is Gaussian.
"""

import pytest
import torch
from scipy import stats

from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead

D, V, SEEDS, N, STEPS = 4, 0.25, 20, 2000, 6
A = torch.tensor([[0, 0, 0, 0], [0.8, 0, 0, 0], [-0.5, 0.6, 0, 0], [0.3, 0, -0.9, 0]], dtype=torch.float64)
B = torch.tensor([0.7, -0.4, 0.2, 1.1], dtype=torch.float64)
ORDER = [2, 0, 3, 1]
RELATIVE_STEP = 0.3


def _made():
    """Contexts b_d + sum_j A_dj x_j, where the variables in the order of drawing are numbered by j."""
    made = MADE(D, [2 * (D - 1)] * 2, 1, order=ORDER)
    pairs = torch.eye(D - 1).repeat_interleave(2, 0)
    signs = torch.tensor([1.0, -1.0]).repeat(D - 1)
    values = {
        made.layers[0]: torch.zeros(2 * (D - 1), D).index_copy(
            1, torch.tensor(ORDER[:-1]), pairs * signs[:, None]
        ),
        made.layers[1]: torch.eye(2 * (D - 1)),
        made.output: torch.zeros(D, 2 * (D - 1)).index_copy(
            0, torch.tensor(ORDER), (A[:, :-1].float() @ pairs.T) * signs
        ),
    }
    with torch.no_grad():
        for layer, weight in values.items():
            layer.weight.copy_(weight)
            layer.bias.zero_()
        made.output.bias[ORDER] = B.float()
    return made


def _staged_head(variance):
    """s(c, x) = (c - x) / variance."""
    head = ScoreHead(1, (2,), "relu", frequencies=0)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        head.layers[1].weight.copy_(torch.tensor([[1.0, -1.0]]) / variance)
        for bias in head.biases:
            bias.zero_()
    return head


def _conditional_head(noise):
    """sigma (c - x) / (V + sigma^2) at the levels sigma of the schedule.

    Level i has a gate, relu(c - x + g) - relu(g) with g = 40 (log t_i - log sigma), which is c - x for sigma
    below the threshold t_i and 0 above; their coefficients add up to those of the levels.
    """
    sigmas = torch.tensor(noise.sigmas, dtype=torch.float64)
    levels = sigmas.log()
    thresholds = torch.cat([levels[:1] + 1, (levels[1:] + levels[:-1]) / 2])
    factors = sigmas / (V + sigmas**2)
    steps = torch.cat([factors[:1], factors.diff()])
    head = ScoreHead(2, (2 * len(sigmas),), "relu", frequencies=0)
    with torch.no_grad():
        open_, closed = torch.tensor([1.0, -40.0, -1.0]), torch.tensor([0.0, -40.0, 0.0])
        head.layers[0].weight.copy_(torch.stack([open_, closed]).repeat(len(sigmas), 1))
        head.layers[0].bias.copy_(40 * thresholds.repeat_interleave(2))
        head.layers[1].weight.copy_(torch.stack([steps, -steps], 1).flatten())
        head.layers[1].bias.zero_()
    return head


def _model(form):
    noise = NoiseSchedule(1.0, 0.2, 3, form=form)
    if form == "conditional":
        return ARCSM(_made(), _conditional_head(noise), noise=noise)
    model = ARCSM(_made(), _staged_head(V + noise.sigmas[0] ** 2), noise=noise)
    for sigma in noise.sigmas[1:]:
        model.advance_stage()
        model.head.load_state_dict(_staged_head(V + sigma**2).state_dict())
    return model


def _law(steps=STEPS):
    """Mean and covariance of the variables in the order of drawing, after the steps of the schedule."""
    kept, variance = 1.0, 1.0
    for sigma in NoiseSchedule(1.0, 0.2, 3).sigmas:
        size = RELATIVE_STEP * sigma**2
        factor = 1 - size / (2 * (V + sigma**2))
        for _ in range(steps):
            kept, variance = kept * factor, variance * factor**2 + size
    linear = torch.linalg.inv(torch.eye(D, dtype=torch.float64) - (1 - kept) * A)
    return (1 - kept) * linear @ B, variance * linear @ linear.T


def _draws(form, dtype, seeds):
    model = _model(form).to(dtype)
    size = RELATIVE_STEP * model.noise.sigma_min**2
    draws = [model.sample(N, seed=seed, steps=STEPS, step_size=size)[:, ORDER] for seed in seeds]
    return torch.stack(draws).double()


def _p_values(draws, mean, covariance):
    """Of the means and of the second moments over all seeds together, by their chi-square laws."""
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, (draws - mean).mT, upper=False).mT
    seeds, n, _ = white.shape
    of_means = n * white.mean(1).square().sum().item()
    error = white.mT @ white / n - torch.eye(D, dtype=torch.float64)
    of_moments = n / 2 * error.square().sum().item()
    return (
        stats.chi2.sf(of_means, seeds * D),
        stats.chi2.sf(of_moments, seeds * D * (D + 1) // 2),
    )


@pytest.mark.parametrize("form", ["conditional", "staged"])
def test_scores_are_linear(form):
    model = _model(form).double()
    x = torch.randn(50, D, dtype=torch.float64)
    context = model.context_net(x)[:, ORDER, 0]
    torch.testing.assert_close(context, B + x[:, ORDER] @ A.T, atol=1e-6, rtol=0)
    last = 0.2**2 + V
    torch.testing.assert_close(model.score(x)[:, ORDER], (context - x[:, ORDER]) / last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["conditional", "staged"])
def test_means_and_covariances_over_seeds(form, dtype):
    draws = _draws(form, dtype, range(SEEDS))
    assert min(_p_values(draws, *_law())) > 1e-3
    other_mean, other_covariance = _p_values(draws, *_law(steps=STEPS + 1))
    assert other_mean < 1e-6
    assert other_covariance < 1e-6


@pytest.mark.parametrize("form", ["conditional", "staged"])
def test_two_samples(form):
    """Kolmogorov-Smirnov tests against direct draws, of each variable and of random projections."""
    draws = _draws(form, torch.float32, range(SEEDS, SEEDS + 5)).flatten(0, 1)
    mean, covariance = _law()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(draws), D, generator=generator, dtype=torch.float64)
    direct = mean + noise @ torch.linalg.cholesky(covariance).T
    projections = torch.cat(
        [torch.eye(D, dtype=torch.float64), torch.randn(D, 8, generator=generator, dtype=torch.float64)], 1
    )
    pairs = zip((draws @ projections).T, (direct @ projections).T, strict=True)
    p_values = [stats.ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in pairs]
    assert min(p_values) > 1e-3 / len(p_values)
