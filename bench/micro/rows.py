"""What the cases of a head on rows share: sizes, inputs, and the operations that a head needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..baselines import head
from ..baselines.head import Rows
from ..harness.case import Case, Outputs, widths

#: Label and baseline of the CSM loss by each way to the derivative.
WAYS = {
    "double_backward": ("eager double backward", head.csm_double_backward),
    "tangent": ("hand-written tangent, eager", head.csm_tangent),
    "jvp": ("torch.func.jvp", head.csm_jvp),
    "compile_tangent": ("torch.compile of the tangent", head.csm_tangent),
    "compile_jvp": ("torch.compile of func.jvp", head.csm_jvp),
}


@dataclass(frozen=True)
class RowsCase(Case):
    """Sizes of a head on rows: N rows, C context features, hidden widths, activation, E frequencies."""

    rows: int = 50176
    context: int = 32
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "softplus"
    frequencies: int = 0

    suite_rows = 12544
    quick_sizes: ClassVar = {"rows": 4096}
    warm_sizes: ClassVar = {"rows": 64}

    def parameters(self) -> int:
        """Weights and biases of the head."""
        return head_numbers(self.context, self.hidden, self.frequencies)

    def title(self) -> str:
        extra = f", {self.frequencies} frequencies" if self.frequencies else ""
        head = f"head {widths(self.hidden)} {self.activation}{extra}"
        return f"{self.op}: N = {self.rows}, C = {self.context}, {head}"

    def matrix_shape(self) -> tuple[int, int, int]:
        return self.rows, max(self.hidden), max(self.hidden)

    def operations_of(self, kind: str) -> float:
        """:func:`head_operations` of all rows."""
        return self.rows * head_operations(kind, self.context, self.hidden, self.frequencies)

    def operations_of_scores(self, scores: int) -> float:
        """2 sum H_k H_{k+1} a row and score (2 * 2E H_1 more with E frequencies), 2 C H_1 once a row."""
        count = scores * head_operations("score", 0, self.hidden, self.frequencies)
        return self.rows * (count + 2.0 * self.context * self.hidden[0])

    def suite(self) -> Sequence[Case]:
        return [case._at_most({"rows": self.suite_rows}) for case in self.variants()]

    def head(self, context: int) -> tuple[Rows, torch.Generator]:
        """A random head and rows of ``context`` features; and the generator, for more."""
        generator = torch.Generator().manual_seed(0)
        widths = [self.context + 1 + 2 * self.frequencies, *self.hidden, 1]
        weights, biases = [], []
        for fan_in, fan_out in pairwise(widths):
            bound = fan_in**-0.5
            weights.append(torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator))
            biases.append(torch.empty(fan_out).uniform_(-bound, bound, generator=generator))
        frequencies = 3 * torch.randn(self.frequencies, generator=generator)
        c = torch.randn(self.rows, context, generator=generator)
        x = torch.randn(self.rows, generator=generator)
        return Rows(c, x, weights, biases, frequencies, self.activation), generator

    def restoring_head(self) -> Rows:
        """A head that reads log sigma last and whose densities exist, with points near the mass."""
        rows, _ = self.head(self.context - 1)
        restoring(rows.weights, rows.biases)
        return rows._replace(x=0.2 * rows.x)

    def preconditioned_head(self) -> Rows:
        """The same of a preconditioned one: contexts end with -ln(tau), half a normal number."""
        rows, _ = self.head(self.context)
        restoring(rows.weights, rows.biases)
        rows.context[:, -1] /= 2
        return rows


def restoring(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Add the line -x to a random softplus head, so that its densities exist: two units a layer pass x on."""
    with torch.no_grad():
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            weight[:2], bias[:2] = 0.0, 0.0
        weights[0][:2, -1] = torch.tensor([1.0, -1.0])
        for weight in weights[1:-1]:
            weight[:2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        weights[-1][0, :2] = torch.tensor([-1.0, 1.0])


def fused(function: Callable[..., Any], rows: Rows, **options: Any) -> Any:
    """A function of :mod:`fastcsm.functional` on the rows."""
    context, x, weights, biases, frequencies, activation = rows
    return function(context, x, weights, biases, activation=activation, frequencies=frequencies, **options)


def gradients(outputs: Sequence[Tensor], upstream: Sequence[Tensor], rows: Rows) -> Outputs:
    """Of context, weights and biases, by name."""
    grads = torch.autograd.grad(outputs, [rows.context, *rows.weights, *rows.biases], upstream)
    layers = range(len(rows.weights))
    names = [f"grad_{kind}[{k}]" for kind in ("weights", "biases") for k in layers]
    return dict(zip(["grad_context", *names], grads, strict=True))


def head_numbers(context: int, hidden: Sequence[int], frequencies: int = 0) -> int:
    """Weights and biases of a head."""
    return sum((a + 1) * b for a, b in pairwise([context + 1 + 2 * frequencies, *hidden, 1]))


#: How often a row needs the products with the context, those between hidden layers, and those with sines and
#: cosines, forward and backward.
PRODUCTS = {
    "score": (0, 1, 1),  # s, the context's part of the first layer left out
    "scores": (1, 2, 2),  # (s, s'): the context once, primal and tangent of each other layer
    "denoising": (3, 3, 2),  # a loss of s: a product and its two gradients, and none for the features of x
    "loss": (3, 6, 4),  # a loss of (s, s'), all but the context's by primal and tangent
}


def head_operations(kind: str, context: int, hidden: Sequence[int], frequencies: int = 0) -> float:
    """Operations a row of what ``PRODUCTS`` has under this name."""
    first, pairs, features = PRODUCTS[kind]
    count = first * context * hidden[0] + pairs * sum(a * b for a, b in pairwise(hidden))
    return 2.0 * (count + features * 2 * frequencies * hidden[0])
