"""The normalised density of rows, and draws of whole samples as its quantiles."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..ops import conditional_density as op
from ..reference.network import Head, Network
from ..reference.quadrature import Density, Interval
from . import arguments, draws
from .draws import Draw

#: Defaults of draws by quantiles.
DRAW_TOLERANCE, FLOW_TOLERANCE = 0.2, 0.01


def conditional_density(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    low: float,
    high: float,
    score_scale: float = 1.0,
    stage_feature: float | None = None,
    tolerance: float | None = None,
    panels: int = 4,
    inverse: bool = False,
    squash: float | None = None,
) -> Density:
    """The normalised density q of every row that has a head's score: d log q / dx = score_scale s(c, x).

    The score is integrated by Gauss-Legendre panels, split where an error matters to the row's answer and
    added beyond both ends until the mass there does not. ``log_density`` is differentiable once, in context,
    x, weights and biases; the other results are not. With ``squash`` the head is preconditioned, x is v, and
    d log q / dv = rho s(c, u) - v.

    Args:
        context: (..., C), without the last feature where ``stage_feature`` gives it; with ``squash``
            (..., C), the last of which is -ln(tau).
        x: (...); where ``inverse``, probabilities in [0, 1].
        weights, biases, activation, frequencies: as for :func:`score_head`.
        low, high: an interval that holds most of the mass; the panels begin there.
        score_scale: factor of the head's output.
        stage_feature: last context feature, the same for all rows (log sigma, where the head reads it).
        tolerance: largest estimated error of log q in nats, or of the probability where ``inverse``; by
            default 1e-7 in float64 and 1e-4 otherwise.
        panels: number to begin with, of 16 evaluations each, 1 to 16.
        inverse: find the quantile of x.
        squash: u0 of a preconditioned head (:mod:`fastcsm.reference.preconditioning`).

    Returns:
        :class:`Density`: ``point`` (x or the quantile), ``log_density`` log q(point) in nats,
        ``log_normalizer`` log of the integral of exp(L), L the integral of the score from ``low``, ``cdf``
        P(X <= point), ``error`` the estimated error, and ``ends`` the probabilities left and right of all
        panels; of the dtype of x, float32 for 16-bit dtypes. A row is NaN and its error inf where the density
        does not exist (the score does not point back at the ends, however far out), where x is not finite or
        some 1e32 times the interval away, and where log q, or its error, is beyond the range of that dtype
        (the normal law's in float32 from 2.6e19 standard deviations on). An error above the tolerance means
        that 64 panels, or rounding, do not allow a better one.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device, shape or range.
    """
    features = [] if stage_feature is None else [float(stage_feature)]
    head = Head(weights, biases, frequencies, activation)
    squash = arguments.squash_of(squash, "stage_feature", len(features) == 1)
    rows, head = arguments.rows(context, x, head, 0 if squash else len(features), wide=True)
    interval = arguments.interval(Interval(low, high, tolerance, panels), rows.x)
    found = op.conditional_density(
        *rows.flat(), head, float(score_scale), features, *interval, squash, inverse
    )
    return Density._make([*(value.reshape(x.shape) for value in found[:-1]), found[-1].reshape(*x.shape, 2)])


def conditional_density_draw(
    x: Tensor,
    head: Head,
    network: Network,
    interval: Interval,
    *,
    sigmas: Sequence[float] = (),
    flow_tolerance: float = FLOW_TOLERANCE,
    draw: Draw = Draw(),  # noqa: B008 (immutable)
) -> tuple[Tensor, Tensor]:
    """Draw variables of every sample in the network's order, each as a quantile given those before it.

    The probability of variable d of sample n is ``fastcsm.random.uniform(seed, samples[n], d, 0)``. Not
    differentiable.

    Args:
        x, head, network, draw: as for :func:`langevin_draw`, with one head and one network.
        interval: where the quadrature begins. Its tolerance is of the probability, 0.2 by default: the
            estimate is that of rules of a lower order, and the draws themselves are then off by less than
            0.001.
        sigmas: empty for the density of the head's own score; one noise level of a conditional head; or two,
            the density of the first carried to the second by the probability flow.
        flow_tolerance: of a step of the flow, as for :func:`probability_flow`.

    Returns:
        x with the variables drawn, and the same with x_d + v s(x_d) in their place, v being ``draw.denoise``
        and s the score of the last level.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device, shape or range.
    """
    sigmas = [float(sigma) for sigma in sigmas]
    if len(sigmas) > 2 or not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
        raise ValueError(f"sigmas must be at most two positive numbers, got {sigmas}")
    low, high, tolerance, panels = arguments.interval(interval, x, DRAW_TOLERANCE)
    tolerances = tolerance, arguments.tolerance(flow_tolerance, x, "flow_tolerance")
    x, head, network, draw = draws.checked(x, head, network, draw, own=len(sigmas) > 0)
    return op.conditional_density_draw(x, *head, *network, sigmas, low, high, *tolerances, panels, *draw)
