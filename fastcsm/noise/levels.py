"""Noise levels of annealed training and sampling."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


class Levels:
    """Geometric noise levels sigma_1 > ... > sigma_L.

    Args:
        sigma_max, sigma_min: the first and the last level, in units of x.
        levels: L.
        continuous: draw sigma log-uniformly between the ends, not from the levels.
        power: where continuous, draw log sigma at u^power of the way from the smallest level to the largest,
            u uniform: more often where it is small, the larger the power. :meth:`weight` is what keeps means
            over log sigma unbiased.

    Attributes:
        sigmas: the L levels, a decreasing list of floats.

    Raises:
        ValueError: if the levels are not positive and decreasing, or power is below 1, or not 1 where levels
            are not continuous.
    """

    def __init__(
        self,
        sigma_max: float = 1.0,
        sigma_min: float = 0.04,
        levels: int = 10,
        continuous: bool = False,
        power: float = 1.0,
    ):
        if not 0 < sigma_min <= sigma_max:
            raise ValueError(f"sigma_min must be in (0, sigma_max = {sigma_max}], got {sigma_min}")
        if levels < 1 or (levels == 1) != (sigma_min == sigma_max):
            raise ValueError(
                f"levels must be 1 if sigma_max = sigma_min and at least 2 otherwise, got {levels}"
            )
        if not 1 <= power < math.inf or (power != 1 and not continuous):
            raise ValueError(f"power must be at least 1, and 1 unless levels are continuous, got {power}")
        self.sigma_max = sigma_max
        self.sigma_min = sigma_min
        self.levels = levels
        self.continuous = continuous
        self.power = power
        ratio = sigma_min / sigma_max
        self.sigmas = [sigma_max * ratio ** (i / max(levels - 1, 1)) for i in range(levels - 1)] + [sigma_min]

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent random noise levels, one an element of ``shape``."""
        if not self.continuous:
            index = torch.randint(self.levels, tuple(shape), generator=generator, device=device)
            # A constant made in a mode of fake tensors would outlive it.
            kept = type(index) is Tensor and not torch.compiler.is_compiling()
            make = _constant if kept else torch.tensor
            dtype = dtype or torch.get_default_dtype()
            return make(tuple(self.sigmas), dtype=dtype, device=index.device)[index]
        u = torch.rand(tuple(shape), generator=generator, device=device, dtype=dtype)
        if self.power != 1:
            return self.sigma_min * (self.sigma_max / self.sigma_min) ** (u**self.power)
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** u

    def weight(self, sigma: Tensor) -> float | Tensor:
        """The density of log-uniform levels over that of :meth:`sample` at sigma, like sigma, or 1."""
        if self.power == 1 or self.sigma_min == self.sigma_max:
            return 1.0
        part = (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)
        return self.power * part.clamp_min(0.0) ** (1 - 1 / self.power)


@cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor kept for the life of the process: a captured graph may hold its address."""
    return torch.tensor(values, dtype=dtype, device=device)
