"""A linear layer whose mask is a staircase of degrees."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import activations, functional
from .constants import Constants
from .readable import Readable


class MaskedLinear(Constants, Readable):
    """f((W * M) x + b), with an edge from input i to output o iff in_degrees[i] <= out_degrees[o].

    Args:
        in_degrees, out_degrees: degrees of the inputs (I,) and outputs (O,).
        activation: name of f as for :class:`fastcsm.nn.ScoreHead`, or None for the identity.
        bias: whether there is a bias.

    Attributes:
        weight: (O, I), initialised as nn.Linear's, zero where there is no edge, and left there by training.
        bias: (O,) or None.
        in_degrees, out_degrees: int64, part of the state_dict; constants, not buffers.
    """

    in_degrees: Tensor
    out_degrees: Tensor

    def __init__(
        self,
        in_degrees: Sequence[int] | Tensor,
        out_degrees: Sequence[int] | Tensor,
        *,
        activation: str | None = None,
        bias: bool = True,
    ):
        super().__init__()
        if activation is not None:
            activations.get(activation)
        self.constant("in_degrees", torch.as_tensor(in_degrees, dtype=torch.int64).clone())
        self.constant("out_degrees", torch.as_tensor(out_degrees, dtype=torch.int64).clone())
        self.activation = activation
        template = nn.Linear(self.in_degrees.numel(), self.out_degrees.numel(), bias=bias)
        self.weight, self.bias = template.weight, template.bias
        with torch.no_grad():
            self.weight.masked_fill_(self.in_degrees > self.out_degrees[:, None], 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        device = x.device if isinstance(x, Tensor) else self.in_degrees.device
        degrees = self.degrees(device)
        return functional.masked_linear(x, self.weight, self.bias, *degrees, activation=self.activation)

    def degrees(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """in_degrees and out_degrees on a device; nn.DataParallel, as one, moves parameters and buffers."""
        if self.in_degrees.device == device:
            return self.in_degrees, self.out_degrees
        return self.in_degrees.to(device), self.out_degrees.to(device)

    called = forward, degrees

    def settings(self) -> dict[str, str | None]:
        return {"activation": self.activation}

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, activation={self.activation!r}, bias={self.bias is not None}"
