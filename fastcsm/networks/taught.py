"""Heads that know mixtures before they see data: where the training of a preconditioned head may begin.

What a head has to compute is one function for all data: from the description of a density, a noise level and
v it gives r. A head is therefore taught once, on random mixtures of three Gaussians whose parameters are its
first nine context features, for which r is known: with y of the density sum_k w_k N(m_k, t_k^2),
theta = atan(sigma) and v = cos(theta) y + sin(theta) z, z standard normal,

    r(v) = sum_k p_k (sin(theta) m_k + sin(theta) cos(theta) (t_k^2 - 1) (v - cos(theta) m_k) / S_k),
    S_k = cos(theta)^2 t_k^2 + sin(theta)^2,    p_k = w_k N(v; cos(theta) m_k, S_k) / sum of these.

A context network then learns to describe its variables in that language, and the head goes on learning.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..noise.levels import Levels
from ..reference.preconditioning import SQUASH, squashed
from . import heads
from .made import MADE
from .preconditioned import initialise
from .score_head import ScoreHead

#: The head that comes with the package; its context features but log sigma, widths, activation, frequencies.
FILE = Path(__file__).with_name("taught.npz")
SIZES = 32, (64, 64), "silu", 0
COMPONENTS = 3
#: Of the random mixtures: deviations of logits and means, and the range of ln(t).
_LOGITS, _MEANS, _LOG_SCALES = 1.5, 1.0, (-3.5, 0.5)


def exact(description: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """r of mixtures of Gaussians.

    Args:
        description: (N, 9), logits, means and log deviations of three components.
        v, sigma: (N,).

    Returns:
        (N,).
    """
    logits, m, log_t = description.unflatten(1, (3, COMPONENTS)).unbind(1)
    theta, variance = torch.atan(sigma)[:, None], (2 * log_t).exp()
    c, s = theta.cos(), theta.sin()
    spread, off = c * c * variance + s * s, v[:, None] - c * m
    p = (logits - off.square() / spread / 2 - spread.log() / 2).softmax(1)
    return (p * (s * m + s * c * (variance - 1) / spread * off)).sum(1)


def teach(
    head: ScoreHead, levels: tuple[float, float], *, steps: int = 12000, rows: int = 2048, lr: float = 5e-3
) -> float:
    """Train a head on random mixtures.

    Args:
        head: reads at least 9 context features, ln(sigma), u; those beyond the 9 stay all but unread.
        levels: the largest and the smallest.
        steps, rows, lr: of AdamW under a cosine; the head has the average of its weights in the end.

    Returns:
        What is left: nats of a variable over the exact r, a running mean.

    Raises:
        ValueError: the head has fewer context features.

    Random numbers are those of torch's global generator.
    """
    described, c = 3 * COMPONENTS, head.context_features - 1
    if c < described:
        raise ValueError(f"head must have at least {described} context features and log sigma, got {c}")
    initialise(head, levels)
    with torch.no_grad():
        head.weights[0][:, :described].normal_(0.0, 1.8 / described**0.5)
        head.weights[0][:, described:c].zero_()
        head.weights[-1].mul_(5.0)
    parameters: list[Tensor] = list(head.parameters())
    left = math.nan
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.0)
    for step in range(steps):
        loss, least = _loss(head, Levels(*levels, continuous=True, power=2.0), rows)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2 * min(1.0, (step + 1) / 100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(0.999, (step + 1) / (step + 10)))
            over = math.log(levels[0] / levels[1]) * float(loss - least)
        left = over if step == 0 else 0.99 * left + 0.01 * over
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
        head.weights[0][:, described:c].normal_(0.0, 0.3 / max(c, 1) ** 0.5)
    return left


def _loss(head: ScoreHead, noise: Levels, rows: int) -> tuple[Tensor, Tensor]:
    """The mean of kappa^2 (F^2 / 2 - F r) over random mixtures and log sigma, and its least value."""
    logits, m = _LOGITS * torch.randn(rows, COMPONENTS), _MEANS * torch.randn(rows, COMPONENTS)
    low, high = _LOG_SCALES
    log_t = low + (high - low) * torch.rand(rows, COMPONENTS)
    chosen = torch.multinomial(logits.softmax(1), 1)
    y = (m + log_t.exp() * torch.randn(rows, COMPONENTS)).gather(1, chosen)[:, 0]
    sigma = noise.sample((rows,))
    kappa = torch.rsqrt(1 + sigma.square())
    v = kappa * (y + sigma * torch.randn(rows))
    description = torch.cat([logits, m, log_t], 1)
    r, weight = exact(description, v, sigma), noise.weight(sigma) * kappa.square() / rows
    rest = torch.zeros(rows, head.context_features - 1 - description.shape[1])
    context = torch.cat([description, rest, sigma.log()[:, None]], 1)
    loss = heads.of(head).csm_loss(context, squashed(v, SQUASH).u, (weight, 0.0, -weight * r))
    return loss, -(weight * r.square()).sum() / 2


def save(head: ScoreHead, file: Path = FILE) -> None:
    """Write a taught head's tensors."""
    tensors: dict[str, Any] = {name: tensor.detach().numpy() for name, tensor in _tensors(head).items()}
    np.savez_compressed(file, **tensors)


def _tensors(head: ScoreHead) -> dict[str, Tensor]:
    """A head's weights and biases by name."""
    layers = list(zip(head.weights, head.biases, strict=True))
    return {f"{name}{k}": t for k, layer in enumerate(layers) for name, t in zip("wb", layer, strict=True)}


@torch.no_grad()
def load(head: ScoreHead) -> None:
    """Give a head the weights of the one that comes with the package, taught at levels from 20 to 0.01.

    Args:
        head: of its sizes, activation and number of frequencies.

    Raises:
        ValueError: the head is another.
    """
    context, widths, activation, frequencies = SIZES
    sizes = head.context_features - 1, head.hidden_features, head.activation, len(head.frequencies)
    if sizes != SIZES:
        raise ValueError(
            f"head must be ScoreHead({context + 1}, {widths}, {activation!r}, {frequencies}) to begin taught,"
            f" got ScoreHead({head.extra_repr()})"
        )
    with np.load(FILE) as known:
        for name, tensor in _tensors(head).items():
            tensor.copy_(torch.from_numpy(known[name]))


@torch.no_grad()
def describe(net: MADE) -> None:
    """Let all contexts begin with one mixture, its means apart, in the language of a taught head."""
    bias = net.output.bias.view(net.features, -1)
    bias.zero_()
    bias[:, COMPONENTS : 2 * COMPONENTS] = torch.linspace(-1.0, 1.0, COMPONENTS)
    bias[:, 2 * COMPONENTS : 3 * COMPONENTS] = -0.5
