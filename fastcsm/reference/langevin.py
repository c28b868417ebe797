"""langevin: annealed one-dimensional Langevin dynamics of independent rows, and of whole samples in order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import random
from . import preconditioning
from .network import Network, contexts_in_order
from .score_head import score_head, with_features


def langevin(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    step_sizes: Sequence[float],
    score_scales: Sequence[float],
    stage_features: Sequence[float],
    steps: int,
    seed: int,
    samples: Tensor,
    dimensions: Tensor,
    first_step: int,
    squash: float = 0.0,
) -> Tensor:
    """For every stage i, ``steps`` times x <- x + (e_i / 2) score_scales_i s(c, x) + sqrt(e_i) z.

    The state is carried in float32 for 16-bit inputs and rounded at the end; the head reads it rounded. z of
    global step k = first_step + i * steps + t is ``random.normal(seed, samples, dimensions, k)``. With
    ``squash`` the head is preconditioned: x is y, in units of tau, ``stage_features`` are ln(sigma_i), e_i is
    e_i / tau^2 of each row, and ``score_scales`` are not read.

    Args: as for :func:`fastcsm.functional.langevin`, none left out: context (N, C), or (N, C - 1) with
        ``stage_features``, which are empty otherwise, unless there is ``squash``; x (N,); samples and
        dimensions (N,) int64.

    Returns:
        (N,), the state after the last step, in the dtype of x.
    """
    dtype = x.dtype
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    state, step = x.to(wide), first_step
    for i, (size, scale) in enumerate(zip(step_sizes, score_scales, strict=True)):
        drift: float | Tensor = 0.5 * size * scale
        spread: float | Tensor = size**0.5
        if squash:
            c = preconditioning.at_level(context, stage_features[i])
            rho, tau = (preconditioning.rho(context, level) for level in (stage_features[i], 0.0))
            rho, kappa = rho.to(wide), preconditioning.kappa(rho).to(wide)
            drift, spread = (0.5 * size / tau.square()).to(wide), (size**0.5 / tau).to(wide)
        else:
            c = with_features(context, stage_features[i : i + 1])
        for _ in range(steps):
            v = preconditioning.squashed(kappa * state, squash).u if squash else state
            s = score_head(c, v.to(dtype), weights, biases, frequencies, activation, False)[0].to(wide)
            if squash:
                s = kappa * (rho * s - kappa * state)
            state = state + drift * s + spread * random.normal(seed, samples, dimensions, step, wide)
            step += 1
    return state.to(dtype, copy=True)


def langevin_draw(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    made_weights: Sequence[Tensor],
    made_biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    order: Tensor,
    made_activation: str,
    residual: bool,
    step_sizes: Sequence[float],
    score_scales: Sequence[float],
    stage_features: Sequence[float],
    steps: int,
    seed: int,
    samples: Tensor,
    first: int,
    last: int,
    denoise: float,
) -> tuple[Tensor, Tensor]:
    """The whole autoregressive draw: variable order[k], k = first, ..., last - 1, by :func:`langevin`.

    The context of each variable comes from a MADE on those before it, and the chain starts from
    ``random.normal(seed, samples, order[k], 0)``. With one network it serves all stages; with one network and
    head a stage (the staged form), stage i continues with those of stage i.

    Args:
        x: (B, D); the variables order[:first] are given.
        weights, biases: of the head, or of all stages' heads in a row; frequencies and activation are shared.
        made_weights, ..., residual: as for :class:`fastcsm.reference.network.Network`, the weights and biases
            of one network or of all stages' in a row.
        step_sizes, score_scales, stage_features, steps, seed: as for :func:`langevin`.
        samples: (B,) int64, the numbers of the samples.
        denoise: variance v; 0 for none.

    Returns:
        As :func:`fastcsm.functional.langevin_draw`; the two are equal when v = 0.
    """
    network = Network(made_weights, made_biases, degrees, order, made_activation, residual)
    models = len(made_weights) // (len(degrees) + 1)
    layers, wide = len(weights) // models, x.dtype if x.dtype.itemsize >= 4 else torch.float32
    x, clean = x.clone(), x.clone()
    for d, contexts in contexts_in_order(x, network, first, last):
        rows = samples, torch.full_like(samples, d)
        value = random.normal(seed, *rows, 0, wide).to(x.dtype)
        for m, c in enumerate(contexts):
            own = slice(m * layers, (m + 1) * layers)
            head = weights[own], biases[own], frequencies, activation
            stage = slice(None) if models == 1 else slice(m, m + 1)
            levels = step_sizes[stage], score_scales[stage], stage_features
            value = langevin(c, value, *head, *levels, steps, seed, *rows, 1 + m * steps)
        x[:, d] = clean[:, d] = value
        if denoise != 0:
            s, _ = score_head(with_features(c, stage_features[-1:]), value, *head, False)
            clean[:, d] = value + denoise * score_scales[-1] * s
    return x, clean
