"""Rows in three splits, and the transform that takes raw values to model space and back."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transform:
    """The map between raw rows and model space.

    Grey values v in 0..grey_levels-1 become 2 (v + u) / grey_levels - 1 with u uniform on [0, 1)
    (dequantisation); with ``grey_levels = 0`` the map is (v - shift) / scale per feature, in float64: a shift
    may be far larger than the scale.

    Args:
        shape: shape of one raw sample; its product is the number of features D.
        grey_levels: number of levels of an image, or 0.
        shift, scale: (D,) tuples of floats; empty for images.
    """

    shape: tuple[int, ...]
    grey_levels: int = 0
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def features(self) -> int:
        return int(np.prod(self.shape))

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 2 or (len(self.shape) == 3 and self.shape[-1] in (1, 3))

    @property
    def log_volume(self) -> float:
        """Log of the volume that a unit of model space has among rows as given: -log q of a row as given is
        that of the same row in model space and this."""
        if self.grey_levels:
            return self.features * math.log(self.grey_levels / 2)
        return sum(map(math.log, self.scale))

    @property
    def space(self) -> str:
        """What model space is, in words."""
        if self.grey_levels:
            return f"grey values v as 2 (v + u) / {self.grey_levels} - 1"
        if not any(self.shift) and set(self.scale) == {1.0}:
            return "rows as given"
        return "every column less its mean, over its deviation"

    def encode(self, rows: Tensor, uniform: Tensor) -> Tensor:
        """Raw rows (B, D) and uniforms (B, D) on [0, 1) to float32 model space (B, D)."""
        if self.grey_levels:
            return (rows.float() + uniform) * (2.0 / self.grey_levels) - 1.0
        shift, scale = self._shift_and_scale(rows.device)
        return ((rows.double() - shift) / scale).float()

    def decode(self, x: Tensor) -> np.ndarray:
        """Model space (B, D) to raw values (B, *shape): whole grey values (uint8), or float64."""
        x = x.detach().cpu()
        if self.grey_levels:
            x = x.float()
            values = ((x + 1.0) * (self.grey_levels / 2.0)).floor().clamp(0, self.grey_levels - 1)
            return values.to(torch.uint8).numpy().reshape(-1, *self.shape)
        shift, scale = self._shift_and_scale(x.device)
        values = x.double() * scale + shift
        return values.numpy().reshape(-1, *self.shape)

    def _shift_and_scale(self, device: torch.device) -> tuple[Tensor, ...]:
        return torch.tensor([self.shift, self.scale], dtype=torch.float64, device=device).unbind()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transform:
        return cls(
            tuple(int(v) for v in values["shape"]),
            int(values["grey_levels"]),
            tuple(float(v) for v in values["shift"]),
            tuple(float(v) for v in values["scale"]),
        )


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
