"""csm_loss on rows, forward and backward, against autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastcsm import functional

from ..baselines import head
from ..baselines.head import Rows
from ..harness.case import Contender, Outputs, own_contenders
from .rows import WAYS, RowsCase, fused, gradients

SAMPLE_DIMENSIONS = 784


def _call(loss: Callable[..., Tensor], rows: Rows, *factors: Any) -> Outputs:
    value = loss(rows, *factors)
    return {"loss": value.detach(), **gradients([value], [torch.ones_like(value)], rows)}


def _own(rows: Rows, alpha: float, beta: float, gamma: Tensor | None) -> Tensor:
    return fused(functional.csm_loss, rows, alpha=alpha, beta=beta, gamma=gamma)


@dataclass(frozen=True)
class CsmLoss(RowsCase):
    """csm_loss forward and backward: the loss and the gradients of context, weights and biases.

    The coefficients are those of the mean over samples of 784 dimensions: alpha = beta = 784 / N, gamma = 0;
    or, ``denoising``, alpha as before, beta = 0, and gamma = alpha times noise of its own a row.
    """

    dtype: str = "float32"
    denoising: bool = False

    op = "csm_loss"
    slow = ("compile_jvp",)

    def title(self) -> str:
        extra = ", denoising" if self.denoising else ""
        return super().title() + extra + ("" if self.dtype == "float32" else f", {self.dtype}")

    def variants(self) -> Sequence[CsmLoss]:
        return [self, replace(self, activation="silu", frequencies=16), replace(self, denoising=True)]

    def operations(self) -> float:
        """2 (3 C H_1 + 6 sum H_k H_{k+1}) a row, and 2 * 4 * 2E H_1 with E frequencies.

        Denoising, 2 (3 C H_1 + 3 sum H_k H_{k+1}), and 2 * 2 * 2E H_1.
        """
        return self.operations_of("denoising" if self.denoising else "loss")

    def bytes(self) -> float:
        """c and x read, the gradient of c written; parameters read, their gradients written.

        Denoising reads gamma as well.
        """
        numbers = self.rows * (2 * self.context + 1 + self.denoising) + 2 * self.parameters()
        return float(getattr(torch, self.dtype).itemsize * numbers)

    def inputs(self) -> tuple[Rows, float, float, Tensor | None]:
        """The rows, alpha, beta and gamma."""
        dtype = getattr(torch, self.dtype)
        rows, generator = self.head(self.context)
        alpha = 1.0 / max(1, self.rows // SAMPLE_DIMENSIONS)
        if not self.denoising:
            return rows.to(dtype, gradients=True), alpha, alpha, None
        wide = torch.float32 if dtype.itemsize < 4 else dtype
        gamma = alpha * torch.randn(self.rows, generator=generator).to(wide)
        return rows.to(dtype, gradients=True), alpha, 0.0, gamma

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        inputs = self.inputs()
        own = partial(_call, _own, *inputs)
        precisions = precisions if self.dtype == "float32" else ["highest"]

        def plain(label: str, loss: Callable[..., Tensor], name: str = "", **options: Any) -> Contender:
            compiles = name.startswith("compile")
            loss = torch.compile(loss, dynamic=False) if compiles else loss
            return Contender(label, partial(_call, loss, *inputs), compiled=compiles, **options)

        if self.denoising:
            found = {"eager": plain("eager", head.csm_denoising)}
            if compiled:
                found["compile"] = plain("torch.compile", head.csm_denoising, "compile")
            return found | own_contenders(own, precisions)
        names = [name for name in WAYS if compiled or not name.startswith("compile")]
        found = {name: plain(*WAYS[name], name) for name in names}
        if "medium" in precisions:
            label = 'eager double backward, "medium"'
            found["double_backward_medium"] = plain(label, head.csm_double_backward, precision="medium")
        found |= own_contenders(own, precisions)
        if self.dtype == "float32":
            return found
        return {name: replace(entry, limit=self._limit(name)) for name, entry in found.items()}

    def _limit(self, name: str) -> float | None:
        """Of errors, where that of float32 does not fit; None: twice plain PyTorch's."""
        return 1e-10 if self.dtype == "float64" else 0.1 if name == "double_backward" else None

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        rows, alpha, beta, gamma = self.inputs()
        rows = rows.to(torch.float64, gradients=True)
        total: Outputs = {}
        context_grads, scale = [], 0.0
        gammas = (torch.zeros(self.rows) if gamma is None else gamma).double().split(4096)
        for c, x, g in zip(rows.context.detach().split(4096), rows.x.split(4096), gammas, strict=True):
            chunk = rows._replace(context=c.requires_grad_(), x=x)
            part = _call(head.csm_double_backward, chunk, alpha, beta, g)
            square = head.csm_double_backward(chunk, alpha, 0.0).item()
            scale += square + abs(part["loss"].item() - square)
            context_grads.append(part.pop("grad_context"))
            total = {name: total[name] + value for name, value in part.items()} if total else part
        return {**total, "grad_context": torch.cat(context_grads)}, {"loss": scale}
