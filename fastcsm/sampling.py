"""Drawing samples: annealed autoregressive Langevin (paper, appendix C.3), and exactly, by quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import functional, losses, random
from .density import Conditionals
from .draws import DRAW_TOLERANCE, FLOW_TOLERANCE
from .nn.made import MADE

if TYPE_CHECKING:
    from .nn import ARCSM

Progress = Callable[[int, int], None]

#: Where the quadrature of exact draws begins: panels, sigmas outside the data.
_DRAW_PANELS, _DRAW_MARGIN = 2, 3.0
#: Default step size e_0, in units of sigma_L^2.
RELATIVE_STEP = 0.2
#: Samples of one fused call and parts of its dimensions: between two calls progress is told and Ctrl-C heard.
_ROWS, _PARTS, _EXACT_PARTS = 256, 20, 4
#: On other devices one call draws all, as far as the values of the networks' units fit in so many bytes; and
#: where progress is wanted so many parts: each computes anew the units that are known before it.
_DEVICE_BYTES, _DEVICE_PARTS = 512 << 20, 4


@torch.no_grad()
def annealed_langevin(
    model: ARCSM,
    n: int,
    *,
    seed: int = 0,
    steps: int = 20,
    step_size: float | None = None,
    batch_size: int | None = None,
    first_sample: int = 0,
    given: Tensor | None = None,
    known: int = 0,
    denoise: bool = False,
    progress: bool | Progress | None = None,
) -> Tensor:
    """Draw n samples, one dimension after the other, each by Langevin dynamics through all noise levels.

    At level i, ``steps`` times: x <- x + (e_i / 2) s(c, x) + sqrt(e_i) z with e_i = e_0 sigma_i^2 /
    sigma_L^2. The start and every z are ``fastcsm.random.normal(seed, sample, dimension, step)``, so a seed
    means the same samples whatever the batch size, up to rounding. Where the context network is a MADE and
    the head can run fused, a whole draw costs one masked forward pass (``functional.langevin_draw``). The
    model's mode (train or eval) is restored afterwards.

    Args:
        model: a trained model; the staged form must have reached its last stage.
        n: number of samples.
        seed: integer in [0, 2^64).
        steps: Langevin steps T per noise level.
        step_size: e_0, the step size at the smallest level; 0.2 sigma_L^2 by default. A model without noise
            has one level and needs it given.
        batch_size: samples drawn together; by default all, or on processors 256 where the draw is fused.
        first_sample: number of the first sample: ``first_sample=k`` continues a draw of k samples.
        given, known: the first ``known`` variables of the model's order are those of ``given``, (n, D) or
            (D,), and are returned as they are; contexts see them with noise sigma_L, as in training.
        denoise: return x_d + sigma_L^2 s(c_d, x_d), the mean of the noise-free value (Tweedie), while later
            dimensions still depend on the noisy one, as in training.
        progress: called with (dimensions done, dimensions in all); True for a bar on standard error.

    Returns:
        (n, D) in the model's dtype, on its device.

    Raises:
        ValueError: a size is out of range, the step size is needed, or stages are missing.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    sizes = _step_sizes(model, step_size)
    if model.staged and model.stage + 1 < len(sizes):
        raise ValueError(f"the model has finished {model.stage} of {len(sizes)} stages, expected all of them")
    draw = _Fused.langevin(model, sizes, steps) or _Stepwise(model, sizes, steps)
    if batch_size is None and isinstance(draw, _Fused):
        batch_size = draw.batch_size()
    return _draw(model, n, draw, seed, batch_size, first_sample, given, known, denoise, progress)


@torch.no_grad()
def exact(
    model: ARCSM,
    n: int,
    method: str = "flow",
    *,
    seed: int = 0,
    tolerance: float = DRAW_TOLERANCE,
    flow_tolerance: float = FLOW_TOLERANCE,
    base: float | None = None,
    batch_size: int | None = None,
    first_sample: int = 0,
    given: Tensor | None = None,
    known: int = 0,
    denoise: bool = False,
    progress: bool | Progress | None = None,
) -> Tensor:
    """Draw n samples of a normalised density: each dimension is the quantile of one uniform number.

    The number is ``fastcsm.random.uniform(seed, sample, dimension, 0)``, so a seed means the same samples
    whatever the batch size, up to rounding.

    Args:
        model: a trained model; of a staged one the current parameters are used.
        method: "flow" or "inverse_cdf", as for :meth:`fastcsm.nn.ARCSM.sample`.
        tolerance, flow_tolerance: as for :func:`fastcsm.functional.conditional_density_draw`.
        base: noise level at which the flow begins; the first by default.
        n, seed, batch_size, first_sample, given, known, denoise, progress: as for :func:`annealed_langevin`.

    Returns:
        (n, D) in the model's dtype, on its device.

    Raises:
        ValueError: a size is out of range, or the method needs a conditional model.
    """
    rows = Conditionals(
        model,
        "quadrature" if method == "inverse_cdf" else method,
        tolerance=tolerance,
        flow_tolerance=flow_tolerance,
        base=base,
        panels=_DRAW_PANELS,
        margin=_DRAW_MARGIN,
    )
    draw = _Fused.exact(model, rows) or _Exact(model, rows)
    if batch_size is None and isinstance(draw, _Fused):
        batch_size = draw.batch_size()
    return _draw(model, n, draw, seed, batch_size, first_sample, given, known, denoise, progress)


def _draw(
    model: ARCSM,
    n: int,
    draw: _Fused | _Stepwise | _Exact,
    seed: int,
    batch_size: int | None,
    first_sample: int,
    given: Tensor | None,
    known: int,
    denoise: bool,
    progress: bool | Progress | None,
) -> Tensor:
    """Draw n samples batch by batch."""
    for name, value, least in (("n", n, 0), ("first_sample", first_sample, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    features = getattr(model.context_net, "features", None)
    if features is None:
        raise ValueError("model.context_net must have the attribute features, the number of variables")
    if denoise and model.noise is None:
        raise ValueError("denoise is True, expected a model with a noise schedule")
    parameter = next(model.parameters())
    start = _start(n, features, given, known, parameter)
    samples = torch.arange(first_sample, first_sample + n, device=parameter.device)
    batches = range(0, n, batch_size or max(n, 1))
    report = _reporter(progress)
    order = list(getattr(model.context_net, "order", range(features)))
    places = _places(model.context_net, order[:known], parameter.device)
    was_training = model.training
    model.eval()
    try:
        parts = [start[:0]]
        for index, begin in enumerate(batches):
            chosen = slice(begin, begin + batches.step)

            def tell(done: int, index: int = index) -> None:
                report(index * features + done, len(batches) * features)

            x = _noisy(model, start[chosen], order[:known], seed, samples[chosen])
            x = draw(x, order, known, seed, samples[chosen], denoise, tell if progress else None)
            if known:
                x[:, places] = start[chosen][:, places]
            parts.append(x)
    finally:
        model.train(was_training)
    return torch.cat(parts)


def _places(net: nn.Module, order: list[int], device: torch.device) -> Tensor:
    """The first variables of a network's order on the device, where a MADE has them already."""
    return net.places[: len(order)] if isinstance(net, MADE) else torch.tensor(order, device=device)


def _start(n: int, features: int, given: Tensor | None, known: int, like: Tensor) -> Tensor:
    if given is None:
        if known:
            raise ValueError(f"known is {known}, expected given to hold the values of those variables")
        return like.new_zeros(n, features)
    if not 0 <= known <= features:
        raise ValueError(f"known must be in [0, {features}], got {known}")
    if tuple(given.shape) not in {(features,), (n, features)}:
        raise ValueError(
            f"given must have shape ({n}, {features}) or ({features},), got {tuple(given.shape)}"
        )
    return given.to(like).detach().expand(n, features).clone()


def _noisy(model: ARCSM, x: Tensor, variables: list[int], seed: int, samples: Tensor) -> Tensor:
    """The given variables as contexts see them in training, with noise of the smallest level."""
    x = x.clone()
    if model.noise is not None:
        for d in variables:
            z = random.normal(seed, samples, torch.full_like(samples, d), 0, x.dtype)
            x[:, d] += model.noise.sigma_min * z
    return x


def _step_sizes(model: ARCSM, step_size: float | None) -> list[float]:
    if step_size is not None and not (step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"step_size must be a positive number, got {step_size}")
    if model.noise is None:
        if step_size is None:
            raise ValueError("step_size must be given for a model without a noise schedule")
        return [step_size]
    last = model.noise.sigma_min
    relative = RELATIVE_STEP if step_size is None else step_size / last**2
    return [relative * sigma**2 for sigma in model.noise.sigmas]


class _Fused:
    """Draws by one function for all: the contexts of a MADE and heads that run fused."""

    def __init__(self, model: ARCSM, function: Callable[..., Any], arguments: dict[str, Any], parts: int):
        self._model, self._function, self._arguments, self._parts = model, function, arguments, parts

    @classmethod
    def langevin(cls, model: ARCSM, sizes: list[float], steps: int) -> _Fused | None:
        """By ``functional.langevin_draw``; None if the model is not of that kind."""
        found = _layers(model, [*model.stages, model])
        if found is None:
            return None
        sigmas = model.noise.sigmas if model.conditional and model.noise is not None else None
        found |= {
            "step_sizes": sizes,
            "steps": steps,
            "score_scales": [1 / sigma for sigma in sigmas] if sigmas else None,
            "stage_features": [math.log(sigma) for sigma in sigmas] if sigmas else None,
        }
        return cls(model, functional.langevin_draw, found, _PARTS)

    @classmethod
    def exact(cls, model: ARCSM, rows: Conditionals) -> _Fused | None:
        """By ``functional.conditional_density_draw``; None if the model is not of that kind."""
        found = _layers(model, [model])
        if found is None:
            return None
        one = {name: found[name][0] for name in ("weights", "biases", "made_weights", "made_biases")}
        return cls(model, functional.conditional_density_draw, found | one | rows.options(), _EXACT_PARTS)

    def batch_size(self) -> int:
        """Samples to draw together."""
        degrees, device = self._arguments["degrees"], self._arguments["order"].device
        if device.type == "cpu":
            return _ROWS
        models = [self._model, *self._model.stages]
        units = (len(models) + 1) * sum(map(len, degrees))  # and the sums of a residual network
        return max(_DEVICE_BYTES // (4 * units), 1)

    def __call__(
        self,
        x: Tensor,
        order: list[int],
        known: int,
        seed: int,
        samples: Tensor,
        denoise: bool,
        tell: Callable[[int], None] | None,
    ) -> Tensor:
        variance = self._model.noise.sigma_min**2 if denoise and self._model.noise else 0.0
        parts, places = self._parts, self._arguments["order"]
        if x.device.type != "cpu":
            parts = _DEVICE_PARTS if tell else 1
        clean, size = x, max(len(order) // parts, 1)
        for first in range(known, len(order), size):
            last = min(first + size, len(order))
            x, part = self._function(
                x, **self._arguments, seed=seed, samples=samples, first=first, last=last, denoise=variance
            )
            if first == known:
                clean = part
            else:
                clean[:, places[first:last]] = part[:, places[first:last]]
            if tell:
                if x.is_cuda:
                    torch.cuda.current_stream(x.device).synchronize()
                tell(last)
        return clean


def _layers(model: ARCSM, parts: Sequence[Any]) -> dict[str, Any] | None:
    """The parameters of all parts as a fused draw takes them; None if it cannot."""
    heads: list[Any] = [losses.head_parameters(part.head) for part in parts]
    made = model.context_net
    if not isinstance(made, MADE) or any(isinstance(head, str) for head in heads):
        return None
    layers = [[*part.context_net.layers, part.context_net.output] for part in parts]
    return {
        "weights": [head.weights for head in heads],
        "biases": [head.biases for head in heads],
        "made_weights": [[layer.weight for layer in network] for network in layers],
        "made_biases": [[layer.bias for layer in network] for network in layers],
        "degrees": [layer.out_degrees for layer in layers[-1][:-1]],
        "order": made.places,
        "made_activation": made.activation,
        "residual": made.residual,
        "activation": heads[-1].activation,
        "frequencies": heads[-1].frequencies,
    }


class _Stepwise:
    """Draws dimension by dimension: any context network, any head."""

    def __init__(self, model: ARCSM, sizes: list[float], steps: int):
        self._model, self._sizes, self._steps = model, sizes, steps

    def __call__(
        self,
        x: Tensor,
        order: list[int],
        known: int,
        seed: int,
        samples: Tensor,
        denoise: bool,
        tell: Callable[[int], None] | None,
    ) -> Tensor:
        model, sizes, steps = self._model, self._sizes, self._steps
        parts: list[Any] = [*model.stages, model] if model.staged else [model]
        contexts = [_contexts(part.context_net, x) for part in parts]
        clean = x.clone()
        for k, d in enumerate(order):
            if k >= known:
                dimension = torch.full_like(samples, d)
                value = random.normal(seed, samples, dimension, 0, x.dtype)
                for stage, (part, context_of) in enumerate(zip(parts, contexts, strict=True)):
                    context = context_of(k, d)
                    levels = sizes[stage : stage + 1] if model.staged else sizes
                    sigmas = model.noise.sigmas if model.conditional else None
                    first = 1 + stage * steps
                    value = _langevin(
                        part.head, context, value, levels, steps, seed, samples, dimension, first, sigmas
                    )
                x[:, d] = clean[:, d] = value
                if denoise:
                    clean[:, d] += model.noise.sigma_min**2 * _score(model, context, value)
            if tell:
                tell(k + 1)
        return clean


class _Exact:
    """Draws dimension by dimension as quantiles of uniform numbers."""

    def __init__(self, model: ARCSM, rows: Conditionals):
        self._model, self._rows = model, rows

    def __call__(
        self,
        x: Tensor,
        order: list[int],
        known: int,
        seed: int,
        samples: Tensor,
        denoise: bool,
        tell: Callable[[int], None] | None,
    ) -> Tensor:
        model, clean = self._model, x.clone()
        for k, (d, context) in enumerate(ordered_contexts(model.context_net, x)):
            if k >= known:
                u = random.uniform(seed, samples, torch.full_like(samples, d), 0, x.dtype)
                x[:, d] = clean[:, d] = self._rows.quantile(context, u)
                if denoise and model.noise is not None:
                    clean[:, d] += model.noise.sigma_min**2 * _score(model, context, x[:, d])
            if tell:
                tell(k + 1)
        return clean


def ordered_contexts(net: nn.Module, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Variables d in the order of drawing and their contexts (B, C), from x (B, D) as it is filled."""
    context = _contexts(net, x)
    for k, d in enumerate(getattr(net, "order", range(x.shape[1]))):
        yield d, context(k, d)


def _contexts(net: nn.Module, x: Tensor) -> Callable[[int, int], Tensor]:
    """Context of the variable d drawn k-th, from the values in x of those before it."""
    if not isinstance(net, MADE):
        return lambda k, d: net(x)[:, d]
    units = net.incremental(len(x), x.dtype, x.device)

    def context(k: int, d: int) -> Tensor:
        while units.known < k:
            units.feed(x[:, net.order[units.known]])
        return units.context(k)

    return context


def _score(model: ARCSM, context: Tensor, x: Tensor) -> Tensor:
    """Score of the smallest noise level at x (n,), given contexts (n, C) without log sigma."""
    if not model.conditional:
        return losses.score(model.head, context, x)
    sigma = model.noise.sigma_min
    level = context.new_full((len(x), 1), math.log(sigma))
    return losses.score(model.head, torch.cat([context, level], 1), x) / sigma


def _langevin(
    head: nn.Module,
    context: Tensor,
    x: Tensor,
    sizes: list[float],
    steps: int,
    seed: int,
    samples: Tensor,
    dimension: Tensor,
    first_step: int,
    sigmas: list[float] | None,
) -> Tensor:
    """The levels of ``sizes`` on rows x (n,); ``sigmas`` are those of the conditional form."""
    found = losses.head_parameters(head)
    if isinstance(found, losses.HeadParameters):
        return functional.langevin(
            context,
            x,
            found.weights,
            found.biases,
            activation=found.activation,
            frequencies=found.frequencies,
            step_sizes=sizes,
            steps=steps,
            score_scales=[1 / sigma for sigma in sigmas] if sigmas else None,
            stage_features=[math.log(sigma) for sigma in sigmas] if sigmas else None,
            seed=seed,
            samples=samples,
            dimensions=dimension,
            first_step=first_step,
        )
    step = first_step
    for index, size in enumerate(sizes):
        c, scale = context, 1.0
        if sigmas:
            c = torch.cat([context, context.new_full((len(x), 1), math.log(sigmas[index]))], 1)
            scale = 1 / sigmas[index]
        for _ in range(steps):
            score = scale * losses.score(head, c, x)
            x = (
                x
                + size / 2 * score
                + math.sqrt(size) * random.normal(seed, samples, dimension, step, x.dtype)
            )
            step += 1
    return x


def _reporter(progress: bool | Progress | None) -> Progress:
    if progress is True:
        from .progress import Bar

        bar = Bar("sampling", unit="dim")
        return bar.to
    return progress if callable(progress) else lambda done, total: None
