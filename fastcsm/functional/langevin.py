"""Langevin dynamics of rows with fixed context, and draws of whole samples by it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import langevin as op
from ..reference.network import Head, Network
from . import arguments, draws
from .arguments import Stages
from .draws import Draw


def langevin(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    step_sizes: Sequence[float],
    steps: int,
    score_scales: Sequence[float] | None = None,
    stage_features: Sequence[float] | None = None,
    seed: int = 0,
    samples: Tensor | None = None,
    dimensions: Tensor | None = None,
    first_step: int = 1,
    squash: float | None = None,
) -> Tensor:
    """Annealed Langevin dynamics of one-dimensional rows with fixed context; not differentiable.

    For every stage i, ``steps`` times: x <- x + (e_i / 2) score_scales[i] s(c, x) + sqrt(e_i) z, where z of
    global step k is ``fastcsm.random.normal(seed, samples, dimensions, k)``. With ``squash`` the head is
    preconditioned, x is y = (x - m) / tau, and a row's step sizes are e_i / tau^2.

    Args:
        context: (..., C), or (..., C - 1) when ``stage_features`` are given; with ``squash`` (..., C), the
            last of which is -ln(tau).
        x: (...), the states at the start.
        weights, biases, activation, frequencies: as for :func:`score_head`.
        step_sizes: e_i >= 0, one a stage.
        steps: Langevin steps a stage.
        score_scales: factors of the head's output, one a stage; 1 by default.
        stage_features: one value a stage, the last context feature of every row during that stage; with
            ``squash`` ln(sigma_i).
        seed: integer in [0, 2^64).
        samples, dimensions: integer tensors of the shape of x that identify each row's noise; by default
            rows are samples 0, 1, ... of dimension 0. In [0, 2^48) and [0, 2^32).
        first_step: global number k of the first step; 0 is the prior draw.
        squash: u0 of a preconditioned head (:mod:`fastcsm.reference.preconditioning`), None for a plain one.

    Returns:
        The states after the last step, of the shape and dtype of x.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    stages = Stages(step_sizes, steps, score_scales, stage_features)
    stages, seed = arguments.stages(stages, "stage_features"), arguments.signed_seed(seed)
    if not 0 <= first_step < 2**32:
        raise ValueError(f"first_step must be in [0, 2^32), got {first_step}")
    head = Head(weights, biases, frequencies, activation)
    squash = arguments.squash_of(squash, "stage_features", bool(stages.features))
    rows, head = arguments.rows(context, x, head, int(bool(stages.features) and not squash), wide=True)
    if samples is None:
        samples = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    if dimensions is None:
        dimensions = torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    noise = arguments.integers("samples", samples, x), arguments.integers("dimensions", dimensions, x)
    result = op.langevin(*rows.flat(), *head, *arguments.flat(stages), seed, *noise, first_step, squash)
    return result.reshape(x.shape)


def langevin_draw(
    x: Tensor,
    head: Head | Sequence[Head],
    network: Network | Sequence[Network],
    stages: Stages,
    draw: Draw = Draw(),  # noqa: B008 (immutable)
) -> tuple[Tensor, Tensor]:
    """Draw variables of every sample in the network's order, each by Langevin dynamics given those before it.

    The chain of variable d of sample n starts from ``fastcsm.random.normal(seed, samples[n], d, 0)``; its
    steps count from 1. Each hidden unit of the network is computed once, when the variables up to its degree
    are known: a whole draw costs one masked forward pass. Not differentiable.

    Args:
        x: (B, D); the variables order[:first] are given, those that are drawn are not read.
        head, network: one of each; or, in the staged form, sequences of one a stage, which differ in weights
            and biases only.
        stages: of every chain.
        draw: which samples and variables.

    Returns:
        x with the variables drawn, and the same with x_d + v score_scales[-1] s(c_d, x_d) in their place, v
        being ``draw.denoise``: the mean of the noise-free value for v = sigma_L^2 (Tweedie).

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    stages = arguments.stages(stages)
    own = bool(stages.features)
    x, head, network, draw = draws.checked(x, head, network, draw, len(stages.step_sizes), own)
    return op.langevin_draw(x, *head, *network, *arguments.flat(stages), *draw)
