"""Annealed autoregressive Langevin sampling (paper, appendix C.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import functional, losses, random

if TYPE_CHECKING:
    from .nn import ARCSM

Progress = Callable[[int, int], None]

#: Default step size e_0, in units of sigma_L^2.
RELATIVE_STEP = 0.2


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
    denoise: bool = False,
    progress: bool | Progress | None = None,
) -> Tensor:
    """Draw n samples, one dimension after the other, each by Langevin dynamics through all noise levels.

    At level i, ``steps`` times: x <- x + (e_i / 2) s(c, x) + sqrt(e_i) z with e_i = e_0 sigma_i^2 /
    sigma_L^2. The start and every z are ``fastcsm.random.normal(seed, sample, dimension, step)``, so a seed
    means the same samples whatever the batch size, up to rounding. The model's mode (train or eval) is
    restored afterwards.

    Args:
        model: a trained model; the staged form must have reached its last stage.
        n: number of samples.
        seed: integer in [0, 2^64).
        steps: Langevin steps T per noise level.
        step_size: e_0, the step size at the smallest level; 0.2 sigma_L^2 by default. A model without noise
            has one level and needs it given.
        batch_size: samples drawn together; all by default.
        first_sample: number of the first sample: ``first_sample=k`` continues a draw of k samples.
        denoise: return x_d + sigma_L^2 s(c_d, x_d), the mean of the noise-free value (Tweedie), while later
            dimensions still depend on the noisy one, as in training.
        progress: called with (dimensions done, dimensions in all); True for a bar on standard error.

    Returns:
        (n, D) in the model's dtype, on its device.

    Raises:
        ValueError: a size is out of range, the step size is needed, or stages are missing.
    """
    for name, value, least in (("n", n, 0), ("steps", steps, 1), ("first_sample", first_sample, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    features = getattr(model.context_net, "features", None)
    if features is None:
        raise ValueError("model.context_net must have the attribute features, the number of variables")
    sizes = _step_sizes(model, step_size)
    if model.staged and model.stage + 1 < len(sizes):
        raise ValueError(f"the model has finished {model.stage} of {len(sizes)} stages, expected all of them")
    if denoise and model.noise is None:
        raise ValueError("denoise is True, expected a model with a noise schedule")

    parameter = next(model.parameters())
    samples = torch.arange(first_sample, first_sample + n, device=parameter.device)
    batches = samples.split(batch_size or max(n, 1))
    report = _reporter(progress)
    was_training = model.training
    model.eval()
    try:
        parts = []
        for index, numbers in enumerate(batches):

            def tell(done: int, index: int = index) -> None:
                report(index * features + done, len(batches) * features)

            parts.append(_draw(model, numbers, features, seed, steps, sizes, denoise, parameter.dtype, tell))
    finally:
        model.train(was_training)
    return torch.cat(parts)


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


def _draw(
    model: ARCSM,
    samples: Tensor,
    features: int,
    seed: int,
    steps: int,
    sizes: list[float],
    denoise: bool,
    dtype: torch.dtype,
    tell: Callable[[int], None],
) -> Tensor:
    x = torch.zeros(len(samples), features, dtype=dtype, device=samples.device)
    clean = torch.zeros_like(x) if denoise else x
    parts: list[Any] = [*model.stages, model]
    order = getattr(model.context_net, "order", range(features))
    for done, d in enumerate(order, start=1):
        dimension = torch.full_like(samples, d)
        value = random.normal(seed, samples, dimension, 0, dtype)
        if model.staged:
            for stage, part in enumerate(parts):
                context = _context(part.context_net, x, d)
                first = 1 + stage * steps
                value = _langevin(
                    part.head, context, value, [sizes[stage]], steps, seed, samples, dimension, first, None
                )
        else:
            context = _context(model.context_net, x, d)
            sigmas = model.noise.sigmas if model.conditional else None
            value = _langevin(model.head, context, value, sizes, steps, seed, samples, dimension, 1, sigmas)
        x[:, d] = value
        if denoise:
            clean[:, d] = value + model.noise.sigma_min**2 * _score(model, context, value)
        tell(done)
    return clean


def _context(net: nn.Module, x: Tensor, d: int) -> Tensor:
    one = getattr(net, "context_of", None)
    return one(x, d) if one is not None else net(x)[:, d]


def _score(model: ARCSM, context: Tensor, x: Tensor) -> Tensor:
    """Score of the smallest noise level at x (n,), given contexts (n, C) without log sigma."""
    if not model.conditional:
        return losses.score_and_derivative(model.head, context, x)[0]
    sigma = model.noise.sigma_min
    level = context.new_full((len(x), 1), math.log(sigma))
    return losses.score_and_derivative(model.head, torch.cat([context, level], 1), x)[0] / sigma


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
            score = scale * losses.score_and_derivative(head, c, x)[0]
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
