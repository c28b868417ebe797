"""Two-dimensional toy distributions: draws, and exact log-densities of the draws with Gaussian noise added.

Points are in model space, which for these data sets is the space they are drawn in. A curve's density is a
Gauss-Legendre quadrature over its parameter, fine enough for the width of the noise that the error is that of
float64; the others are closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_MODES, _MODE_RADIUS, _MODE_WIDTH = 8, 0.7, 0.09
_RINGS, _RING_STEP, _RING_WIDTH = 4, 0.2, 0.02
_SPIRAL_TURN, _SPIRAL_SCALE, _SPIRAL_WIDTH = 3.0 * np.pi, 3.5 * np.pi, 0.03
_MOON_SCALE, _MOON_WIDTH = 0.55, 0.05
_BLADES, _BLADE_SCALE, _BLADE_RADIAL, _BLADE_TANGENTIAL, _BLADE_RATE = 5, 0.5, 0.3, 0.1, 0.25
_PANEL_NODES = 16
_CHUNK = 1 << 19


def names() -> list[str]:
    """The toy distributions."""
    return list(_TOYS)


def sample(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n points (n, 2), float64.

    Raises:
        ValueError: unknown name.
    """
    return _toy(name)[0](n, rng)


def log_density(name: str, x: Tensor, sigma: float) -> Tensor:
    """Log-density, in nats, of a toy distribution convolved with N(0, sigma^2 I).

    Args:
        name: one of :func:`names`.
        x: points (..., 2) in model space.
        sigma: standard deviation of the noise, positive, in units of x.

    Returns:
        (...), float64, on the device of x.

    Raises:
        ValueError: unknown name, x not of shape (..., 2), sigma not a positive number.
    """
    density = _toy(name)[1]
    if x.dim() == 0 or x.shape[-1] != 2:
        raise ValueError(f"x must have shape (..., 2), got {tuple(x.shape)}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be a positive number, got {sigma}")
    return density(x.reshape(-1, 2).double(), sigma).reshape(x.shape[:-1])


def _toy(name: str) -> tuple[_Sampler, _Density]:
    if name not in _TOYS:
        raise ValueError(f"name must be one of {', '.join(_TOYS)}, got {name!r}")
    return _TOYS[name]


def _in_chunks(density: Callable[[Tensor], Tensor], x: Tensor, nodes: int) -> Tensor:
    """Log-density (N,) of x (N, 2), a part of the rows at a time so that (rows, nodes) arrays stay small."""
    return torch.cat([density(part) for part in x.split(max(_CHUNK // nodes, 1))])


def _panels(low: float, high: float, width: float) -> tuple[Tensor, Tensor]:
    """Nodes and log weights of composite Gauss-Legendre quadrature with panels no longer than ``width``."""
    count = math.ceil((high - low) / width)
    node, weight = np.polynomial.legendre.leggauss(_PANEL_NODES)
    half = (high - low) / count / 2
    middles = low + half * (2 * np.arange(count) + 1)
    nodes = (middles[:, None] + half * node).reshape(-1)
    return torch.from_numpy(nodes), torch.from_numpy(np.log(half * np.tile(weight, count)))


def _gaussians(x: Tensor, centres: Tensor, log_weights: Tensor, variance: float) -> Tensor:
    """Log-density (N,) of isotropic Gaussians at centres (K, 2) with log weights (K,)."""
    centres, log_weights = centres.to(x.device), log_weights.to(x.device)

    def density(part: Tensor) -> Tensor:
        squares = (part[:, None] - centres).square().sum(-1)  # (rows, K)
        return torch.logsumexp(log_weights - squares / (2 * variance), 1) - math.log(2 * math.pi * variance)

    return _in_chunks(density, x, len(centres))


def _eight_gaussians(n: int, rng: np.random.Generator) -> np.ndarray:
    angle = rng.integers(0, _MODES, n) * (2 * np.pi / _MODES)
    centre = _MODE_RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centre + _MODE_WIDTH * rng.standard_normal((n, 2))


def _eight_gaussians_density(x: Tensor, sigma: float) -> Tensor:
    angle = torch.arange(_MODES, dtype=torch.float64) * (2 * math.pi / _MODES)
    centres = _MODE_RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.full((_MODES,), -math.log(_MODES), dtype=torch.float64)
    return _gaussians(x, centres, weights, _MODE_WIDTH**2 + sigma**2)


def _checkerboard(n: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.uniform(-2.0, 2.0, n)
    y = rng.uniform(0.0, 1.0, n) - 2.0 * rng.integers(0, 2, n) + np.floor(x) % 2
    return 0.5 * np.stack([x, y], 1)


def _checkerboard_density(x: Tensor, sigma: float) -> Tensor:
    columns = torch.arange(-2, 2, device=x.device)
    low = torch.stack([columns, columns % 2], 1).double().repeat(2, 1)  # corners (8, 2) of unit squares
    low[4:, 1] -= 2
    low = 0.5 * low
    sides = _log_interval((low - x[:, None]) / sigma, (low + 0.5 - x[:, None]) / sigma)  # (N, 8, 2)
    return torch.logsumexp(sides.sum(-1), 1) + math.log(4 / 8)


def _log_interval(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a < b, Phi the standard normal distribution function."""
    a, b = torch.where(a > 0, -b, a), torch.where(a > 0, -a, b)
    upper = torch.special.log_ndtr(b)
    return upper + torch.log(-torch.expm1(torch.special.log_ndtr(a) - upper))


def _rings(n: int, rng: np.random.Generator) -> np.ndarray:
    radius, angle = rng.integers(1, _RINGS + 1, n) * _RING_STEP, rng.uniform(0.0, 2.0 * np.pi, n)
    circle = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return circle + _RING_WIDTH * rng.standard_normal((n, 2))


def _rings_density(x: Tensor, sigma: float) -> Tensor:
    variance, radius = _RING_WIDTH**2 + sigma**2, x.norm(dim=1, keepdim=True)
    ring = _RING_STEP * torch.arange(1, _RINGS + 1, dtype=torch.float64, device=x.device)
    bessel = torch.special.i0e(radius * ring / variance).log()
    terms = bessel - (radius - ring).square() / (2 * variance)
    return torch.logsumexp(terms, 1) - math.log(2 * math.pi * variance * _RINGS)


def _two_spirals(n: int, rng: np.random.Generator) -> np.ndarray:
    turn, sign = _SPIRAL_TURN * np.sqrt(rng.uniform(size=n)), 2 * rng.integers(0, 2, n) - 1
    curve = np.stack([-np.cos(turn), np.sin(turn)], 1) * (sign * turn / _SPIRAL_SCALE)[:, None]
    return curve + _SPIRAL_WIDTH * rng.standard_normal((n, 2))


def _two_spirals_density(x: Tensor, sigma: float) -> Tensor:
    variance = _SPIRAL_WIDTH**2 + sigma**2
    speed = math.hypot(_SPIRAL_TURN, 1) / _SPIRAL_SCALE
    turn, log_weights = _panels(0.0, _SPIRAL_TURN, 2 * math.sqrt(variance) / speed)
    curve = torch.stack([-turn.cos(), turn.sin()], 1) * (turn / _SPIRAL_SCALE)[:, None]
    log_weights = log_weights + torch.log(turn / _SPIRAL_TURN**2)  # density 2 t / T^2, half of it each arm
    return _gaussians(x, torch.cat([curve, -curve]), log_weights.repeat(2), variance)


def _moons(n: int, rng: np.random.Generator) -> np.ndarray:
    angle, lower = rng.uniform(0.0, np.pi, n), rng.integers(0, 2, n)
    x = np.where(lower, 1.0 - np.cos(angle), np.cos(angle)) - 0.5
    y = np.where(lower, 0.5 - np.sin(angle), np.sin(angle)) - 0.25
    return _MOON_SCALE * np.stack([x, y], 1) + _MOON_WIDTH * rng.standard_normal((n, 2))


def _moons_density(x: Tensor, sigma: float) -> Tensor:
    variance = _MOON_WIDTH**2 + sigma**2
    angle, log_weights = _panels(0.0, math.pi, 2 * math.sqrt(variance) / _MOON_SCALE)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    centres = _MOON_SCALE * torch.cat([upper, -upper])
    return _gaussians(x, centres, log_weights.repeat(2) - math.log(2 * math.pi), variance)


def _pinwheel(n: int, rng: np.random.Generator) -> np.ndarray:
    blade = rng.integers(0, _BLADES, n) * (2.0 * np.pi / _BLADES)
    radius = 1.0 + _BLADE_RADIAL * rng.standard_normal(n)
    offset = _BLADE_TANGENTIAL * rng.standard_normal(n)
    angle = blade + _BLADE_RATE * np.exp(radius)
    cos, sin = np.cos(angle), np.sin(angle)
    return _BLADE_SCALE * np.stack([cos * radius - sin * offset, sin * radius + cos * offset], 1)


def _pinwheel_density(x: Tensor, sigma: float) -> Tensor:
    along = sigma**2
    across = along + (_BLADE_SCALE * _BLADE_TANGENTIAL) ** 2
    low, high = 1.0 - 8 * _BLADE_RADIAL, 1.0 + 8 * _BLADE_RADIAL
    radius, log_weights = _panels(low, high, min(sigma / _BLADE_SCALE, 0.1))
    log_weights = log_weights - (radius - 1.0).square() / (2 * _BLADE_RADIAL**2)
    log_weights = log_weights - math.log(_BLADE_RADIAL * math.sqrt(2 * math.pi) * _BLADES)
    log_weights = (log_weights - math.log(2 * math.pi * math.sqrt(along * across))).to(x.device)
    radius = radius.to(x.device)
    turned = _BLADE_RATE * radius.exp()

    def density(part: Tensor) -> Tensor:
        terms = []
        for blade in range(_BLADES):
            angle = turned + blade * (2 * math.pi / _BLADES)
            axes = torch.stack([angle.cos(), angle.sin()])  # (2, nodes), the blade's direction at a radius
            radial = part @ axes - _BLADE_SCALE * radius
            tangential = part[:, 1:] * axes[0] - part[:, :1] * axes[1]
            exponent = radial.square() / (2 * along) + tangential.square() / (2 * across)
            terms.append(torch.logsumexp(log_weights - exponent, 1))
        return torch.logsumexp(torch.stack(terms), 0)

    return _in_chunks(density, x, len(radius))


_Sampler = Callable[[int, np.random.Generator], np.ndarray]
_Density = Callable[[Tensor, float], Tensor]
_TOYS: dict[str, tuple[_Sampler, _Density]] = {
    "eight_gaussians": (_eight_gaussians, _eight_gaussians_density),
    "checkerboard": (_checkerboard, _checkerboard_density),
    "rings": (_rings, _rings_density),
    "two_spirals": (_two_spirals, _two_spirals_density),
    "moons": (_moons, _moons_density),
    "pinwheel": (_pinwheel, _pinwheel_density),
}
