"""The map between raw rows and model space, and its log-determinant."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Transform:
    """The map between raw rows and model space. Random u are uniform on [0, 1) (dequantisation).

    ==============  ======================================  ==================================================
    rows            fields                                  model space
    ==============  ======================================  ==================================================
    grey values v   grey_levels G                           2 (v + u) / G - 1
    grey values v   grey_levels, logit_alpha, shift, scale  (logit(alpha + (1 - 2 alpha) (v + u) / G) - shift)
                                                            / scale (Papamakarios et al. 2017)
    numbers v       shift, scale, step and origin           (v + step u - shift) / scale
    ==============  ======================================  ==================================================

    All but the first are computed in float64: a shift may be far larger than the scale.

    Args:
        shape: shape of one raw sample; its product is the number of features D.
        grey_levels: number of levels of an image, or 0.
        shift, scale: (D,) tuples of floats; empty for images without logits.
        logit_alpha: alpha in (0, 0.5), or 0 for no logits.
        step, origin: (D,) tuples of floats: feature d has the values origin + k step of whole k; 0 for step
            where it is not dequantised. Empty where none is.
    """

    shape: tuple[int, ...]
    grey_levels: int = 0
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    logit_alpha: float = 0.0
    step: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()

    @property
    def features(self) -> int:
        return int(np.prod(self.shape))

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 2 or (len(self.shape) == 3 and self.shape[-1] in (1, 3))

    @property
    def log_scale(self) -> float:
        """Log of the volume that a unit of model space has among numbers, or among logits, as they are."""
        return sum(map(math.log, self.scale))

    def log_volume(self, x: Tensor) -> Tensor:
        """Log of the volume that a unit of model space has among rows as given, around rows x (B, D).

        It is -log |det dx / dy| of the map from values y, of which grey ones count 1 a level, to model space:
        -log q of rows as given is that of the same rows in model space and this. (B,), float64.
        """
        found = torch.full((len(x),), self.log_scale, dtype=torch.float64, device=x.device)
        if self.logit_alpha:
            logits = self._unscaled(x)
            found -= (softplus(logits) + softplus(-logits)).sum(1)
            found += self.features * (math.log(self.grey_levels) - math.log1p(-2 * self.logit_alpha))
        elif self.grey_levels:
            found += self.features * math.log(self.grey_levels / 2)
        return found

    @property
    def data_range(self) -> tuple[float, float]:
        """The interval of model space that holds all grey values, or the bulk of a table's numbers."""
        if not self.logit_alpha:
            return -1.0, 1.0
        end = math.log1p(-self.logit_alpha) - math.log(self.logit_alpha)
        both = list(zip(self.shift, self.scale, strict=True))
        return min((-end - a) / b for a, b in both), max((end - a) / b for a, b in both)

    @property
    def space(self) -> str:
        """What model space is, in words."""
        if self.logit_alpha:
            alpha, levels = self.logit_alpha, self.grey_levels
            inner = f"{alpha:g} + {1 - 2 * alpha:.9g} (v + u) / {levels}"
            return f"grey values v as logit({inner}), less their mean, over their deviation"
        if self.grey_levels:
            return f"grey values v as 2 (v + u) / {self.grey_levels} - 1"
        words = "every column less its mean, over its deviation"
        if not any(self.shift) and set(self.scale) == {1.0}:
            words = "rows as given"
        columns = [f"{d} ({step:.6g})" for d, step in enumerate(self.step) if step]
        if not columns:
            return words
        shown = ", ".join(columns[:6]) + (f" and {len(columns) - 6} more" if len(columns) > 6 else "")
        return f"{words}, with uniform noise in columns (steps) {shown}"

    def encode(self, rows: Tensor, uniform: Tensor) -> Tensor:
        """Raw rows (B, D) and uniforms (B, D) on [0, 1) to float32 model space (B, D)."""
        if self.grey_levels and not self.logit_alpha:
            return (rows.float() + uniform) * (2.0 / self.grey_levels) - 1.0
        shift, scale = self._pair(self.shift, self.scale, rows.device)
        values = rows.double()
        if self.logit_alpha:
            share = (values + uniform) / self.grey_levels
            values = torch.logit(self.logit_alpha + (1 - 2 * self.logit_alpha) * share) - shift
        else:
            values = values - shift
            if self.step:
                values += uniform * torch.tensor(self.step, dtype=torch.float64, device=rows.device)
        return (values / scale).float()

    def decode(self, x: Tensor, whole: bool = True) -> np.ndarray:
        """Model space (B, D) to raw values (B, *shape): grey values in uint8, others in float64.

        The inverse of :meth:`encode`, without u: the grey level, or the value on a column's grid, at or below
        x. Where ``whole`` is False, with u, all in float64.
        """
        x = x.detach().cpu()
        # What was rounded down to float32 from the lower end of a value's interval lies just above x.
        above = torch.nextafter(x.float(), torch.tensor(torch.inf)) if whole else x
        if self.grey_levels:
            values = self._grey(above)
            if whole:
                values = values.floor().clamp(0, self.grey_levels - 1).to(torch.uint8)
        else:
            values = self._unscaled(x)
            if whole and self.step:
                step, origin = self._pair(self.step, self.origin, x.device)
                shift, scale = self._pair(self.shift, self.scale, x.device)
                steps = ((above.double() * scale + (shift - origin)) / step).floor()
                values = torch.where(step > 0, origin + steps * step, values)
        return values.numpy().reshape(-1, *self.shape)

    def _grey(self, x: Tensor) -> Tensor:
        """Grey values with u, in float64."""
        if not self.logit_alpha:
            return (x.double() + 1.0) * (self.grey_levels / 2.0)
        share = (self._unscaled(x).sigmoid() - self.logit_alpha) / (1 - 2 * self.logit_alpha)
        return share * self.grey_levels

    def _unscaled(self, x: Tensor) -> Tensor:
        shift, scale = self._pair(self.shift, self.scale, x.device)
        return x.double() * scale + shift

    @staticmethod
    def _pair(a: tuple[float, ...], b: tuple[float, ...], device: torch.device) -> tuple[Tensor, ...]:
        return torch.tensor([a, b], dtype=torch.float64, device=device).unbind()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transform:
        """The inverse of :meth:`to_dict`; what an older checkpoint does not have has its default."""
        return cls(
            tuple(int(v) for v in values["shape"]),
            int(values["grey_levels"]),
            tuple(float(v) for v in values["shift"]),
            tuple(float(v) for v in values["scale"]),
            float(values.get("logit_alpha", 0.0)),
            tuple(float(v) for v in values.get("step", ())),
            tuple(float(v) for v in values.get("origin", ())),
        )
