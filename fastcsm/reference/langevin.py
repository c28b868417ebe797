"""langevin: annealed one-dimensional Langevin dynamics of independent rows, and of whole samples in order."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .. import activations, random
from .masked_linear import masked_linear
from .score_head import score_head


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
) -> Tensor:
    """For every stage i, ``steps`` times x <- x + (e_i / 2) score_scales_i s(c, x) + sqrt(e_i) z.

    The state is carried in float32 for 16-bit inputs and rounded at the end; the head reads it rounded.

    Args:
        context: (N, C), or (N, C - 1) when ``stage_features`` are given.
        x: (N,), the state at the start.
        weights, biases, frequencies, activation: as for :func:`fastcsm.reference.score_head.score_head`.
        step_sizes, score_scales: e_i and the factor of the head's output, one a stage.
        stage_features: empty, or one value a stage: the last context feature during that stage.
        steps: Langevin steps a stage.
        seed, samples, dimensions: the noise of global step k = first_step + i * steps + t is
            ``random.normal(seed, samples, dimensions, k)``; samples and dimensions are (N,) int64.
        first_step: global number of the first step.

    Returns:
        (N,), the state after the last step, in the dtype of x.
    """
    dtype = x.dtype
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    state, step = x.to(wide), first_step
    for i, (size, scale) in enumerate(zip(step_sizes, score_scales, strict=True)):
        c = context
        if len(stage_features) > 0:
            c = torch.cat([c, c.new_full((c.shape[0], 1), stage_features[i])], 1)
        for _ in range(steps):
            s, _ = score_head(c, state.to(dtype), weights, biases, frequencies, activation, False)
            z = random.normal(seed, samples, dimensions, step, wide)
            state = state + (0.5 * size * scale) * s.to(wide) + size**0.5 * z
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
        made_weights, made_biases: hidden layers, then the output layer (D * C rows, by variable), of one
            network or of all stages' in a row.
        degrees: of the units of each hidden layer, int64, sorted; variable order[k] has degree k + 1.
        order: (D,) int64.
        made_activation, residual: as in :class:`fastcsm.nn.MADE`.
        step_sizes, score_scales, stage_features, steps, seed: as for :func:`langevin`.
        samples: (B,) int64, the numbers of the samples.
        denoise: variance v; 0 for none.

    Returns:
        x with the variables drawn, and the same with x_d + v score_scales[-1] s(c_d, x_d) in their place
        (the mean of the noise-free value, Tweedie's formula, for v = sigma_L^2); equal when v = 0.
    """
    models = len(made_weights) // (len(degrees) + 1)
    head_layers = len(weights) // models
    x, clean = x.clone(), x.clone()
    network = made_weights, made_biases, degrees, order, made_activation, residual
    for d, contexts in contexts_in_order(x, *network, first, last):
        dimensions = torch.full_like(samples, d)
        value = random.normal(
            seed, samples, dimensions, 0, x.dtype if x.dtype.itemsize >= 4 else torch.float32
        )
        value = value.to(x.dtype)
        for m, c in enumerate(contexts):
            head_w, head_b = (part[m * head_layers : (m + 1) * head_layers] for part in (weights, biases))
            stage = slice(None) if models == 1 else slice(m, m + 1)
            value = langevin(
                c,
                value,
                head_w,
                head_b,
                frequencies,
                activation,
                step_sizes[stage],
                score_scales[stage],
                stage_features,
                steps,
                seed,
                samples,
                dimensions,
                1 + m * steps,
            )
        x[:, d] = clean[:, d] = value
        if denoise != 0:
            if len(stage_features) > 0:
                c = torch.cat([c, c.new_full((c.shape[0], 1), stage_features[-1])], 1)
            s, _ = score_head(c, value, head_w, head_b, frequencies, activation, False)
            clean[:, d] = value + denoise * score_scales[-1] * s
    return x, clean


def contexts_in_order(
    x: Tensor,
    made_weights: Sequence[Tensor],
    made_biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    order: Tensor,
    activation: str,
    residual: bool,
    first: int,
    last: int,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Variables d = order[k], k = first, ..., last - 1, and their contexts (B, C), one of each network.

    Arguments as for :func:`langevin_draw`; x is read again after each variable, when its value is there.
    """
    inputs = torch.empty_like(order)
    inputs[order] = torch.arange(1, len(order) + 1, device=order.device)
    layers = len(degrees) + 1
    features = made_weights[layers - 1].shape[0] // len(order)
    known = torch.zeros_like(x)
    known[:, order[:first]] = x[:, order[:first]]
    for k in range(first, last):
        d = int(order[k])
        rows, own = slice(d * features, (d + 1) * features), torch.full((features,), k, device=x.device)
        contexts = []
        for m in range(0, len(made_weights), layers):
            w, b = made_weights[m : m + layers], made_biases[m : m + layers]
            h = _hidden(known, w, b, [inputs, *degrees], activation, residual)
            contexts.append(masked_linear(h, w[-1][rows], b[-1][rows], degrees[-1], own, "identity")[0])
        yield d, contexts
        known[:, d] = x[:, d]


def _hidden(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    activation: str,
    residual: bool,
) -> Tensor:
    """Last hidden activations (B, H) of the network; the last of ``weights`` is not used."""
    f = activations.get(activation).f
    for l, (below, own) in enumerate(pairwise(degrees)):
        if not residual or l % 2 == 1:
            y = masked_linear(f(x) if residual else x, weights[l], biases[l], below, own, activation)[0]
        else:
            y = masked_linear(x if l == 0 else y, weights[l], biases[l], below, own, "identity")[0]
            y = x = y if l == 0 else x + y
        if not residual:
            x = y
    return f(x) if residual else x
