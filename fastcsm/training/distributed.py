"""Data parallelism under torchrun: gloo on processors, NCCL on GPUs.

Every process draws the randomness of the global batch and computes on its slice, and gradients are averaged,
so the loss curve is that of one process with the same global batch, to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..progress import Bar
from .folder import TrainingError

#: What the environment holds beside WORLD_SIZE where there are several processes.
_TOGETHER = ("RANK", "MASTER_ADDR", "MASTER_PORT")


class Group:
    """The processes of this run: one, unless torchrun started several.

    Attributes:
        rank, size: of this process, and how many there are.

    Raises:
        TrainingError: the environment holds a part of what torchrun sets, or numbers that are none.
    """

    def __init__(self, device: torch.device, quiet: bool = False):
        self._device, self._ours = device, False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
            return
        self.rank, self.size = _from_environment()
        if self.size > 1:
            with Bar(f"waiting for {self.size} processes", quiet=quiet):
                torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            self._ours = True

    def close(self) -> None:
        if self._ours:
            torch.distributed.destroy_process_group()

    def barrier(self) -> None:
        if self.size > 1:
            self.sum([0.0])

    def slice(self, batch: int) -> slice:
        """This process's rows of a global batch."""
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Sums of numbers over the processes, the same on each."""
        if self.size == 1:
            return [float(value) for value in values]
        packed = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(packed)
        return packed.tolist()


def _from_environment() -> tuple[int, int]:
    """Rank and number of the processes, from what torchrun sets."""
    text = os.environ.get("WORLD_SIZE", "1")
    size = int(text) if text.isdecimal() else 0
    if size < 1:
        raise TrainingError(f"the environment's WORLD_SIZE is '{text}', expected a positive whole number")
    if size == 1:
        return 0, 1
    missing = [name for name in _TOGETHER if not os.environ.get(name)]
    if missing:
        raise TrainingError(
            f"the environment's WORLD_SIZE is {size} without {' and '.join(missing)}, expected all that "
            "torchrun sets, or no WORLD_SIZE for one process"
        )
    rank = os.environ["RANK"]
    if not rank.isdecimal() or int(rank) >= size:
        raise TrainingError(
            f"the environment's RANK is '{rank}', expected a whole number below WORLD_SIZE = {size}"
        )
    return int(rank), size


class SlicedDropout(nn.Module):
    """Dropout that draws the mask of the global batch and applies this process's slice of it."""

    def __init__(self, p: float, group: Group):
        super().__init__()
        self.p, self._group = p, group

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        batch = len(x) * self._group.size
        mask = F.dropout(torch.ones(batch, *x.shape[1:], dtype=x.dtype, device=x.device), self.p)
        return x * mask[self._group.slice(batch)]


def slice_dropout(module: nn.Module, group: Group) -> None:
    """Replace every nn.Dropout below ``module`` by :class:`SlicedDropout`."""
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, SlicedDropout(child.p, group))
        else:
            slice_dropout(child, group)
