"""Rows in three splits, and what batches are made of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .transform import Transform


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """The same numbers whatever the defaults of torch are."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=generator.device)


@dataclass(frozen=True)
class Dataset:
    """Raw rows (uint8, float32 or float64, (N, D)) in three splits and their transform.

    ``val`` is watched during training and ``test`` is what ``fastcsm evaluate`` reports; where a source has
    only one held-out split both names mean that split, unless part of the training rows is set aside for
    ``val`` (see :func:`fastcsm.data.load`).
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor
    transform: Transform

    @property
    def features(self) -> int:
        return self.train.shape[1]

    @property
    def has_validation(self) -> bool:
        """Whether ``val`` holds other rows than ``test``."""
        return self.val.data_ptr() != self.test.data_ptr()

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Training rows ``indices`` (B,) in model space (B, D), dequantised afresh from ``generator``."""
        rows = self.train[indices]
        return self.transform.encode(rows, _uniform(rows.shape, generator))

    def held_out(self, split: str, seed: int, limit: int | None = None) -> Tensor:
        """Split "val" or "test" in model space, at most ``limit`` rows, dequantised once from ``seed``."""
        rows = {"val": self.val, "test": self.test}[split][:limit]
        generator = torch.Generator().manual_seed(seed)
        return self.transform.encode(rows, _uniform(rows.shape, generator))

    def fingerprint(self, split: str = "train") -> str:
        """SHA-256 over a split's raw rows, shape and type: a resumed run must see the same data."""
        rows = {"train": self.train, "val": self.val, "test": self.test}[split]
        digest = hashlib.sha256(f"{tuple(rows.shape)} {rows.dtype}".encode())
        digest.update(rows.contiguous().numpy().data)
        return digest.hexdigest()

    def is_of(self, fingerprint: str) -> bool:
        """Whether a fingerprint is that of the training rows, or of what float32 makes of them."""
        same = fingerprint == self.fingerprint()
        if same or self.train.dtype != torch.float64:
            return same
        return fingerprint == dataclasses.replace(self, train=self.train.float()).fingerprint()
