"""langevin in both forms: schemas and fakes; not differentiable."""

from typing import Any

import torch

from ..backends import Request
from .library import define

#: As :func:`fastcsm.reference.langevin.langevin`.
langevin = define(
    "langevin(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, float[] step_sizes, float[] score_scales, float[] stage_features,"
    " int steps, int seed, Tensor samples, Tensor dimensions, int first_step,"
    " float squash) -> Tensor",
    lambda context, x, *args: torch.empty_like(x),
    gradient=False,
)

#: What all draws have in common.
DRAW = (
    "Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies, str activation,"
    " Tensor[] made_weights, Tensor[] made_biases, Tensor[] degrees, Tensor order, str made_activation,"
    " bool residual"
)


def draw_request(args: tuple[Any, ...]) -> Request:
    """The sizes of one head: the staged form passes those of all stages in a row."""
    x, weights, *_, made_weights, _, degrees = args[:8]
    layers = len(weights) * (len(degrees) + 1) // max(len(made_weights), 1)
    widths = tuple(weight.shape[0] for weight in weights[:layers])
    return Request(x.device.type, x.dtype, widths, weights[0].shape[1])


def fake_draw(x, *args):
    """The results of a draw of x as empty tensors of the right shapes."""
    return torch.empty_like(x), torch.empty_like(x)


#: As :func:`fastcsm.reference.langevin.langevin_draw`.
langevin_draw = define(
    f"langevin_draw({DRAW}, float[] step_sizes, float[] score_scales, float[] stage_features, int steps,"
    " int seed, Tensor samples, int first, int last, float denoise) -> (Tensor, Tensor)",
    fake_draw,
    draw_request,
    gradient=False,
)
