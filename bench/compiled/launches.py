"""What the ops launch, by the package's own choice of configurations, on tensors that have no memory."""

import os
import sys
from itertools import pairwise
from typing import NamedTuple

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("TRITON_INTERPRET=1 is set: kernels that are interpreted cannot be compiled; unset it.")

import torch
from torch import Tensor

from fastcsm.kernels import (
    conditional_density,
    csm_loss,
    langevin,
    launch,
    masked_linear,
    probability_flow,
    score_head,
)


class Head(NamedTuple):
    """Context features, of which the last is a conditional head's own; frequencies, and hidden widths."""

    context: int = 32
    frequencies: int = 0
    widths: tuple[int, ...] = (128, 128)

    def activation(self) -> str:
        return "silu" if self.frequencies else "softplus"


class Network(NamedTuple):
    """A MADE, or as many as a staged model has."""

    models: int = 1
    variables: int = 784
    hidden: tuple[int, ...] = (512, 512)
    residual: bool = False


MADE = Network()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layers(sizes: list[int], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases."""
    weights = [empty(o, i, dtype=dtype) for i, o in pairwise(sizes)]
    return weights, [empty(o, dtype=dtype) for o in sizes[1:]]


def of_heads(
    dtype: torch.dtype,
    head: Head,
    rows: int = 1 << 20,
    backward: bool = False,
    judge: launch.Judge = lambda _: launch.Fit(),
) -> list[launch.Launch]:
    """The launches of the head's ops.

    Without ``backward`` those are left out that do another's work: score_head's backward pass, quantiles, and
    the nodes of the quadrature.
    """
    context, frequencies, widths = head
    parameters = layers([context + 1 + 2 * frequencies, *widths, 1], dtype)
    x = empty(rows, dtype=dtype)
    rest = x, *parameters, empty(frequencies, dtype=dtype), head.activation()
    whole = empty(rows, context, dtype=dtype), *rest
    # A conditional head's last context feature is not in memory.
    given = empty(rows, max(context - 1, 0), dtype=dtype), *rest
    one, number = empty(1), empty(rows, dtype=torch.int64)
    options = 25.0, [-3.2] * min(context, 1), -1.2, 1.2, 1e-4, 4, 0.0
    with launch.recorded(judge) as launches:
        score_head.score_head(*whole)
        if backward:
            score_head.score_head_backward(x, x, *whole, True, True, True)
        csm_loss.csm_loss(*whole, one, one, one, True, backward, True)
        langevin.langevin(*whole, [0.1], [1.0], [], 20, 0, number, number, 1, 0.0)
        conditional_density.conditional_density(*given, *options, False)
        if backward:
            conditional_density.conditional_density(*given, *options, True)
            conditional_density.conditional_density_nodes(*given, *options)
        if context > 0:
            probability_flow.probability_flow(*given, 0.04, 1.0, 1e-4, True, 0.0)
    return launches


def of_preconditioned(
    dtype: torch.dtype, head: Head, rows: int = 1 << 20, judge: launch.Judge = lambda _: launch.Fit()
) -> list[launch.Launch]:
    """The launches of the ops that know a preconditioned head, by contexts that end with -ln(tau)."""
    context, frequencies, widths = head
    x, number = empty(rows, dtype=dtype), empty(rows, dtype=torch.int64)
    parameters = layers([context + 1 + 2 * frequencies, *widths, 1], dtype)
    last = empty(frequencies, dtype=dtype), head.activation()
    given = empty(rows, context, dtype=dtype), x, *parameters, *last
    with launch.recorded(judge) as launches:
        langevin.langevin(*given, [0.1], [1.0], [-1.0], 20, 0, number, number, 1, 3.0)
        conditional_density.conditional_density(*given, 1.0, [-1.0], -6.0, 6.0, 1e-4, 4, 3.0, False)
        probability_flow.probability_flow(*given, 0.04, 20.0, 1e-4, True, 3.0)
    return launches


def of_draw(
    dtype: torch.dtype,
    head: Head,
    network: Network = MADE,
    rows: int = 512,
    judge: launch.Judge = lambda _: launch.Fit(),
) -> list[launch.Launch]:
    """The launches of a draw, conditional by one model or staged by several: contexts of 32 features."""
    models, variables, hidden, residual = network
    context, stage = 32, int(models == 1)
    weights, biases = layers([context + stage + 1 + 2 * head.frequencies, *head.widths, 1], dtype)
    network_weights, network_biases = layers([variables, *hidden, variables * context], dtype)
    with launch.recorded(judge) as launches:
        langevin.langevin_draw(
            empty(rows, variables, dtype=dtype),
            weights * models,
            biases * models,
            empty(head.frequencies, dtype=dtype),
            head.activation(),
            network_weights * models,
            network_biases * models,
            [empty(width, dtype=torch.int64) for width in hidden],
            empty(variables, dtype=torch.int64),
            "silu",
            residual,
            *([0.1] * 10, [1.0] * 10, [0.0] * 10 * stage, 20, 0),
            empty(rows, dtype=torch.int64),
            *(0, variables, 0.01),
        )
    return launches


def of_layers(dtype: torch.dtype, rows: int = 1024) -> list[launch.Launch]:
    """The launches of a masked layer 4096 x 4096."""
    x, weight = empty(rows, 4096, dtype=dtype), empty(4096, 4096, dtype=dtype)
    degrees = empty(4096, dtype=torch.int64)
    with launch.recorded() as launches:
        masked_linear.masked_linear(x, weight, empty(4096, dtype=dtype), degrees, degrees, "silu")
        masked_linear.masked_linear_backward(x, x, x, weight, degrees, degrees, "silu", True, True, True)
    return launches
