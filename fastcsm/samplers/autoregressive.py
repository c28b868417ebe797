"""Drawing variable after variable: by annealed Langevin (paper, appendix C.3), or exactly, by quantiles."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from ..densities import Accuracy, Conditionals
from ..functional.arguments import at_least, positive
from ..functional.conditional_density import DRAW_TOLERANCE, FLOW_TOLERANCE
from ..networks.context import order_of, places_of
from ..networks.heads import Part
from ..progress import Bar
from . import fused, variables
from .batch import Batch

Progress = Callable[[int, int], None]

#: Where the quadrature of exact draws begins: panels, sigmas outside the data.
_DRAW_PANELS, _DRAW_MARGIN = 2, 3.0
#: Default step size e_0, in units of sigma_L^2.
RELATIVE_STEP = 0.2


class Drawing(NamedTuple):
    """What is drawn.

    Attributes:
        n: number of samples.
        seed: integer in [0, 2^64); a seed means the same samples whatever the batch size, up to rounding.
        batch_size: samples drawn together; by default all, or on processors 256 where the draw is fused.
        first_sample: number of the first sample: ``first_sample=k`` continues a draw of k samples.
        given, known: the first ``known`` variables of the order are those of ``given``, (n, D) or (D,), and
            are returned as they are; contexts see them with noise sigma_L, as in training.
        denoise: return x_d + sigma_L^2 s(c_d, x_d), the mean of the noise-free value (Tweedie), while later
            variables still depend on the noisy one, as in training.
        progress: called with (variables done, variables in all); True for a bar on standard error.
    """

    n: int
    seed: int = 0
    batch_size: int | None = None
    first_sample: int = 0
    given: Tensor | None = None
    known: int = 0
    denoise: bool = False
    progress: bool | Progress | None = None


@torch.no_grad()
def langevin(
    parts: Sequence[Part],
    drawing: Drawing,
    data_range: tuple[float, float] | None = None,
    *,
    steps: int = 20,
    step_size: float | None = None,
) -> Tensor:
    """Draw samples, one variable after the other, each by Langevin dynamics through all noise levels.

    At level i, ``steps`` times: x <- x + (e_i / 2) s(c, x) + sqrt(e_i) z with e_i = e_0 sigma_i^2 /
    sigma_L^2. The start and every z are ``fastcsm.random.normal(seed, sample, variable, step)``. Where the
    context networks are MADEs and the heads run fused, a whole draw costs one masked forward pass
    (``functional.langevin_draw``).

    Args:
        parts, drawing, data_range: as for any sampler; the last is not used.
        steps: Langevin steps T per noise level.
        step_size: e_0, the step size at the smallest level; 0.2 sigma_L^2 by default. A model without noise
            has one level and needs it given.
    """
    at_least(1, steps=steps)
    sizes = _step_sizes(parts, step_size)
    stages = [part.head.stages(own, steps, part.sigmas) for part, own in zip(parts, sizes, strict=True)]
    return _draw(parts, drawing, fused.langevin(parts, stages) or variables.langevin(parts, stages))


@torch.no_grad()
def inverse_cdf(
    parts: Sequence[Part],
    drawing: Drawing,
    data_range: tuple[float, float],
    *,
    tolerance: float = DRAW_TOLERANCE,
    flow_tolerance: float = FLOW_TOLERANCE,
) -> Tensor:
    """Draw samples of the density at the smallest level: each variable is the quantile of a uniform number.

    Arguments as for :func:`flow`.
    """
    accuracy = Accuracy(tolerance, flow_tolerance, _DRAW_PANELS, _DRAW_MARGIN)
    return _exact(parts[-1], drawing, data_range, "quadrature", accuracy=accuracy)


@torch.no_grad()
def flow(
    parts: Sequence[Part],
    drawing: Drawing,
    data_range: tuple[float, float],
    *,
    base: float | None = None,
    tolerance: float = DRAW_TOLERANCE,
    flow_tolerance: float = FLOW_TOLERANCE,
) -> Tensor:
    """Draw samples of the flow's density: quantiles at the largest level, carried down the probability flow.

    The number of variable d is ``fastcsm.random.uniform(seed, sample, d, 0)``.

    Args:
        parts, drawing, data_range: as for any sampler; of several parts, the last one is used.
        base: the noise level at which the flow begins, the first by default.
        tolerance, flow_tolerance: as for :func:`fastcsm.functional.conditional_density_draw`.

    Raises:
        ValueError: the head does not read log sigma.
    """
    accuracy = Accuracy(tolerance, flow_tolerance, _DRAW_PANELS, _DRAW_MARGIN)
    return _exact(parts[-1], drawing, data_range, "flow", base=base, accuracy=accuracy)


def _exact(
    part: Part, drawing: Drawing, data_range: tuple[float, float], method: str, **options: Any
) -> Tensor:
    rows = Conditionals(part.head, part.sigmas, data_range, method, **options)
    return _draw([part], drawing, fused.exact(part, rows) or variables.quantiles(part, rows))


def _draw(parts: Sequence[Part], drawing: Drawing, draw: Any) -> Tensor:
    """Draw the samples batch by batch."""
    n, seed, batch_size, first_sample, given, known, denoise, progress = drawing
    at_least(0, n=n, first_sample=first_sample)
    if batch_size is not None:
        at_least(1, batch_size=batch_size)
    net, sigmas = parts[-1].context_net, parts[-1].sigmas
    features = getattr(net, "features", None)
    if features is None:
        raise ValueError("model.context_net must have the attribute features, the number of variables")
    if denoise and not sigmas:
        raise ValueError("denoise is True, expected a model with a noise schedule")
    like = next(chain(net.parameters(), parts[-1].head.parameters()), torch.empty(0))
    start = _start(n, features, given, known, like)
    samples = torch.arange(first_sample, first_sample + n, device=like.device)
    batches = range(0, n, batch_size or draw.batch_size or max(n, 1))
    report: Any = Bar("sampling", unit="dim").to if progress is True else progress
    order = order_of(net, features)
    places = places_of(net, order[:known], like.device)
    sigma = sigmas[-1] if sigmas else 0.0
    drawn = [start[:0]]
    for index, begin in enumerate(batches):
        chosen = slice(begin, begin + batches.step)

        def tell(done: int, index: int = index) -> None:
            report(index * features + done, len(batches) * features)

        x = _noisy(start[chosen], sigma, order[:known], seed, samples[chosen])
        variance = sigma**2 if denoise else 0.0
        x = draw(Batch(x, samples[chosen], seed, order, known, variance, tell if progress else None))
        if known:
            x[:, places] = start[chosen][:, places]
        drawn.append(x)
    return torch.cat(drawn)


def _start(n: int, features: int, given: Tensor | None, known: int, like: Tensor) -> Tensor:
    if given is None:
        if known:
            raise ValueError(f"known is {known}, expected given to hold the values of those variables")
        return torch.zeros(n, features, dtype=like.dtype, device=like.device)
    if not 0 <= known <= features:
        raise ValueError(f"known must be in [0, {features}], got {known}")
    if tuple(given.shape) not in {(features,), (n, features)}:
        raise ValueError(
            f"given must have shape ({n}, {features}) or ({features},), got {tuple(given.shape)}"
        )
    return given.to(like).detach().expand(n, features).clone()


def _noisy(x: Tensor, sigma: float, given: list[int], seed: int, samples: Tensor) -> Tensor:
    """The given variables as contexts see them in training, with noise of the smallest level; others are 0.

    What stands in their place is not read, not even where a mask would multiply it: it may be NaN.
    """
    seen = torch.zeros_like(x)
    for d in given:
        seen[:, d] = x[:, d]
        if sigma:
            seen[:, d] += sigma * random.normal(seed, samples, torch.full_like(samples, d), 0, x.dtype)
    return seen


def _step_sizes(parts: Sequence[Part], step_size: float | None) -> list[list[float]]:
    """e_i of every level of every part."""
    if step_size is not None:
        positive("step_size", step_size)
    if not parts[-1].sigmas:
        if step_size is None:
            raise ValueError("step_size must be given for a model without a noise schedule")
        return [[step_size]]
    relative = RELATIVE_STEP if step_size is None else step_size / parts[-1].sigmas[-1] ** 2
    return [[relative * sigma**2 for sigma in part.sigmas] for part in parts]
