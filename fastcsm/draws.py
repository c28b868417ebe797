"""Draws of whole samples in one call: the functions of ``functional`` that take a network and a head.

The contexts come from a MADE whose hidden units are each computed once, when the variables up to their degree
are known: a whole draw costs one masked forward pass. Not differentiable.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import arguments
from .ops import conditional_density as _conditional_density
from .ops import langevin as _langevin

#: Defaults of draws by quantiles.
DRAW_TOLERANCE, FLOW_TOLERANCE = 0.2, 0.01


def langevin_draw(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Sequence[Tensor | None]],
    made_weights: Sequence[Sequence[Tensor]],
    made_biases: Sequence[Sequence[Tensor | None]],
    degrees: Sequence[Tensor],
    *,
    order: Sequence[int] | Tensor | None = None,
    made_activation: str = "relu",
    residual: bool = False,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    step_sizes: Sequence[float],
    steps: int,
    score_scales: Sequence[float] | None = None,
    stage_features: Sequence[float] | None = None,
    seed: int = 0,
    samples: Tensor | None = None,
    first: int = 0,
    last: int | None = None,
    denoise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Draw the variables order[first:last] of every sample, each by Langevin dynamics given those before it.

    The chain of variable d of sample n starts from ``fastcsm.random.normal(seed, samples[n], d, 0)``; its
    steps count from 1.

    Args:
        x: (B, D); the variables order[:first] are given, the others are not read.
        weights, biases: one head's, as for :func:`fastcsm.functional.score_head`, in a list of one entry;
            or, in the staged form, one entry a stage.
        made_weights, made_biases: for each head those of its network: the hidden layers, then the output
            layer, whose D * C rows are the contexts by variable.
        degrees: int64 (H_l,) for each hidden layer, sorted, at least 1; variable order[k] has degree k + 1.
        order: permutation of range(D); in sequence by default. An int64 tensor on the device of x is read by
            the host once; integers are copied to the device at every call, which a GPU waits for.
        made_activation, residual: as for :class:`fastcsm.nn.MADE`.
        activation, frequencies: of the heads.
        step_sizes, steps, score_scales, stage_features, seed: as for :func:`fastcsm.functional.langevin`.
        samples: (B,) integers that number the samples; 0, 1, ... by default.
        first, last: the places in the order to draw; all by default.
        denoise: variance v of the noise that the second result is freed of.

    Returns:
        x with the variables drawn, and the same with x_d + v score_scales[-1] s(c_d, x_d) in their place: the
        mean of the noise-free value for v = sigma_L^2 (Tweedie).

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    stages = arguments.stages(step_sizes, score_scales, stage_features, steps, seed)
    network: tuple[Any, Any, Any, Any, Any, Any] = (
        made_weights,
        made_biases,
        degrees,
        order,
        made_activation,
        residual,
    )
    head: tuple[Any, Any, Any, Any] = weights, biases, frequencies, activation
    own = len(stages.features) > 0
    draw = arguments.draw(x, *head, *network, len(stages.sizes), own, samples, first, last)
    return _langevin.langevin_draw(*draw.model, *stages, *draw.range, float(denoise))


def conditional_density_draw(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    made_weights: Sequence[Tensor],
    made_biases: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    *,
    order: Sequence[int] | Tensor | None = None,
    made_activation: str = "relu",
    residual: bool = False,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    sigmas: Sequence[float] = (),
    low: float,
    high: float,
    tolerance: float = DRAW_TOLERANCE,
    flow_tolerance: float = FLOW_TOLERANCE,
    panels: int = 2,
    seed: int = 0,
    samples: Tensor | None = None,
    first: int = 0,
    last: int | None = None,
    denoise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Draw the variables order[first:last] of every sample, each as a quantile given those before it.

    The probability of variable d of sample n is ``fastcsm.random.uniform(seed, samples[n], d, 0)``.

    Args:
        x, degrees, order, made_activation, residual, activation, frequencies, samples, first, last: as for
            :func:`langevin_draw`.
        weights, biases, made_weights, made_biases: of one head and one network, as lists of their layers.
        sigmas: empty for the density of the head's own score; one noise level of a conditional head; or two,
            the density of the first carried to the second by the probability flow.
        low, high, panels: as for :func:`fastcsm.functional.conditional_density`.
        tolerance: largest estimated error of a probability. The estimate is that of rules of a lower order:
            by default the draws themselves are off by less than 0.001.
        flow_tolerance: of a step of the flow, as for :func:`fastcsm.functional.probability_flow`.
        seed: in [0, 2^64).
        denoise: variance v of the noise that the second result is freed of.

    Returns:
        x with the variables drawn, and the same with x_d + v s(x_d) in their place, s the score of the last
        level.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device, shape or range.
    """
    sigmas = [float(sigma) for sigma in sigmas]
    if len(sigmas) > 2 or not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
        raise ValueError(f"sigmas must be at most two positive numbers, got {sigmas}")
    interval = arguments.interval(low, high, panels)
    network: tuple[Any, Any, Any, Any, Any, Any] = (
        [made_weights],
        [made_biases],
        degrees,
        order,
        made_activation,
        residual,
    )
    head: tuple[Any, Any, Any, Any] = [weights], [biases], frequencies, activation
    draw = arguments.draw(x, *head, *network, 1, len(sigmas) > 0, samples, first, last)
    low, high, panels = interval
    tolerances = [arguments.tolerance(value, x) for value in (tolerance, flow_tolerance)]
    options = sigmas, low, high, *tolerances, panels, arguments.signed_seed(seed)
    return _conditional_density.conditional_density_draw(*draw.model, *options, *draw.range, float(denoise))
