"""The exact densities of the toys against draws, against total mass 1 and against their own far field."""

import math

import numpy as np
import pytest
import torch

from fastcsm import data
from fastcsm.data import toys

NAMES = toys.names()


def _grid(low, high, points):
    """Midpoints (points^2, 2) of a square grid and the area of a cell."""
    step = (high - low) / points
    line = low + step * (torch.arange(points, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(line, line), step**2


@pytest.mark.parametrize("sigma", [0.05, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_total_mass_is_one(name, sigma):
    x, area = _grid(-1.6 - 6 * sigma, 1.6 + 6 * sigma, 120)
    assert (toys.log_density(name, x, sigma).exp().sum() * area).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.06, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_draws_fall_where_the_density_says(name, sigma):
    n, cells, fine, rng = 200_000, 16, 6, np.random.default_rng(5)
    drawn = toys.sample(name, n, rng) + sigma * rng.standard_normal((n, 2))
    edges = np.linspace(-1.6, 1.6, cells + 1)
    counts = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=[edges, edges])[0]
    x, area = _grid(-1.6, 1.6, cells * fine)
    mass = (toys.log_density(name, x, sigma).exp() * area).reshape(cells, fine, cells, fine).sum((1, 3))
    expected = n * mass.numpy()
    used = expected > 10
    statistic = ((counts - expected) ** 2 / expected.clip(min=1e-300))[used].sum()
    cells_used = used.sum()
    assert cells_used > 60
    # chi-square with as many degrees of freedom has this mean and deviation; a density off by 3% gives +900.
    assert abs(statistic - cells_used) < 5 * math.sqrt(2 * cells_used)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_log_density_of_other_noise_is_lower(name):
    """Gibbs' inequality: no density scores draws at a noise level as well as that level's own."""
    rng = np.random.default_rng(1)
    x = torch.from_numpy(toys.sample(name, 4000, rng) + 0.1 * rng.standard_normal((4000, 2)))
    means = [toys.log_density(name, x, sigma).mean().item() for sigma in (0.05, 0.1, 0.2)]
    assert means[1] > max(means[0], means[2])


@pytest.mark.parametrize("name", NAMES)
def test_far_away_and_nearly_without_noise_it_is_finite(name):
    x = torch.tensor([[0.0, 0.0], [30.0, -40.0], [-1e3, 1e3]])
    found = toys.log_density(name, x, 0.02)
    assert torch.isfinite(found).all()
    assert found[1] > found[2]
    # Of noise alone, at distance r: -r^2 / (2 sigma^2) to within the data's extent.
    sigma = 20.0
    expected = -x.double().square().sum(1) / (2 * sigma**2) - math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(toys.log_density(name, x, sigma)[:2], expected[:2], atol=0.3, rtol=0)


def test_shapes_types_and_space():
    toy = data.load("rings")
    assert torch.equal(toy.transform.encode(toy.train[:5], torch.zeros(5, 2)), toy.train[:5])
    x = torch.zeros(3, 4, 2)
    found = toys.log_density("rings", x, 0.1)
    assert found.shape == (3, 4)
    assert found.dtype is torch.float64
    assert toys.log_density("rings", x[:0], 0.1).shape == (0, 4)
    single = toys.log_density("moons", torch.tensor([0.3, -0.1]), 0.1)
    torch.testing.assert_close(single, toys.log_density("moons", torch.tensor([[0.3, -0.1]]), 0.1)[0])


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of eight_gaussians, .*, got 'x'"):
        toys.log_density("x", torch.zeros(1, 2), 0.1)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 2\), got \(2, 3\)"):
        toys.log_density("moons", torch.zeros(2, 3), 0.1)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma must be a positive number"):
            toys.log_density("moons", torch.zeros(1, 2), sigma)
