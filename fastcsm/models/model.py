"""What every model answers: all that training, evaluation and the command line know of one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..densities import LogDensity
from ..functional.arguments import one_of
from ..networks.heads import Part

#: All randomness of one loss; empty for a loss that has none.
Noise = tuple[Tensor, ...]


class Model(nn.Module):
    """A model of x (B, D).

    Attributes:
        density_methods: words for ``method`` of :meth:`log_density`, the best first; empty without a density.
        sample_methods: words for ``method`` of :meth:`sample`, the best first.
        sigma_min: smallest noise level that the model is trained at, 0 without noise.
        row_noise: noise level of the rows whose density the model is taken for, 0 for rows as they are.
        data_range: the interval that holds the data's values.
        by_likelihood: whether :meth:`loss` is -log q.
        stage: which of the parameter sets that are trained one after the other is trained.
    """

    density_methods: tuple[str, ...] = ()
    sample_methods: tuple[str, ...] = ()
    sigma_min: float = 0.0
    data_range: tuple[float, float] = (-1.0, 1.0)
    by_likelihood: bool = False
    stage: int = 0

    def draw_noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Noise:
        """All randomness of one loss of x of the given shape (B, D), each tensor with B rows."""
        return ()

    def loss(
        self, x: Tensor, generator: torch.Generator | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """What training minimises: mean over samples, sum over variables; a scalar.

        Args:
            x: data (B, D).
            generator: source of the noise, on the device of x; torch's global one by default.
            noise: what :meth:`draw_noise` returns, to use instead of fresh noise.
        """
        raise NotImplementedError

    def held_out_loss(self, x: Tensor, *, noise: Noise | None = None) -> Tensor:
        """What training watches on held-out rows: :meth:`loss`, unless something else decides."""
        return self.loss(x, noise=noise)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """:meth:`loss`, so that what wraps the call of a module (data parallelism, hooks) trains it."""
        return self.loss(x, *args, **options)

    def likelihood_loss(self, x: Tensor, noise: Noise = (), reduction: str = "mean") -> Tensor:
        """What fine-tuning minimises: -log q of x (B, D), in nats.

        Args:
            x: data (B, D).
            noise: what :meth:`draw_noise` returns; without it the density is that of x as it is.
            reduction: "mean", or "none" for one value a sample (B,).

        Raises:
            ValueError: the reduction is another word.
            NotImplementedError: the model has no density.
        """
        one_of("reduction", reduction, ("mean", "none"))
        rows = -self.noisy_log_prob(x, noise)
        return rows.mean() if reduction == "mean" else rows

    def noisy_log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """log q (B,), in nats, of x (B, D) with the noise that :meth:`draw_noise` returned, or none."""
        return self.log_prob(x)

    def go_on(self, fraction: float) -> None:
        """Take note that this part of the training is done; a model of stages goes on to the one it means."""

    def to_stage(self, stage: int) -> None:
        """Go on to a stage, as the model of a checkpoint had."""

    def stage_fraction(self, fraction: float) -> float:
        """How much of the current stage is done when this part of the training is."""
        return fraction

    def parts(self) -> list[Part]:
        """Parameter sets and the noise levels they serve; none of a model without score heads on contexts."""
        return []

    def score(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Scores of all variables at x (B, D), at a noise level; (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no score")

    def log_density(self, x: Tensor, method: str | None = None, **options: Any) -> LogDensity:
        """log q of every variable of x (B, D) given those before it."""
        raise NotImplementedError(f"{type(self).__name__} has no density")

    def log_prob(self, x: Tensor, method: str | None = None, **options: Any) -> Tensor:
        """log q(x) of every sample (B,) in nats: the sum of :meth:`log_density`, with its arguments.

        In the model's dtype, at least float32; x may be of any floating dtype. A row without a density is
        NaN, and a warning counts them.
        """
        found = self.log_density(x, method, **options).log_density.sum(1)
        if not torch.compiler.is_compiling():
            missing = int(found.isnan().sum())
            if missing:
                warnings.warn(no_density(missing, len(found)), stacklevel=2)
        return found

    def bits_per_dim(self, x: Tensor, grey_levels: int = 256, method: str | None = None) -> Tensor:
        """Negative log-likelihood of dequantised grey values, in bits a dimension.

        Args:
            x: (B, D), 2 (v + u) / grey_levels - 1 for values v in 0 ... grey_levels - 1 and u uniform on
                [0, 1); the result bounds that of v from above.
            grey_levels: number of levels.
            method: as for :meth:`log_density`.

        Returns:
            (B,).
        """
        nats = -self.log_prob(x, method) / x.shape[1] + math.log(grey_levels / 2)
        return nats / math.log(2)

    def sample(self, n: int, method: str | None = None, seed: int = 0, **options: Any) -> Tensor:
        """n samples (n, D)."""
        raise NotImplementedError(f"{type(self).__name__} draws no samples")

    @property
    def row_noise(self) -> float:
        """Noise level of the rows whose density the model is taken for."""
        return self.sigma_min

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside the ``with`` block."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)


def no_density(missing: int, rows: int) -> str:
    """What is to be said of rows whose log q is NaN."""
    return (
        f"{missing} of {rows} rows have no density (NaN): they are not finite, or a conditional's score does"
        " not point back to the data however far out; leave them out of a mean and say so, or count them as"
        " the strangest; longer training, or fine-tuning by likelihood, gives them one"
    )


def in_dtype_of(module: nn.Module, x: Tensor) -> Tensor:
    """x in the floating dtype of the module's parameters, if it has any."""
    dtypes = (value.dtype for value in module.parameters() if value.is_floating_point())
    return x.to(next(dtypes, x.dtype))


def check_data(x: Tensor, name: str = "x") -> None:
    """Raise unless x is a floating-point tensor (B, D)."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"{x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if x.dim() != 2:
        raise ValueError(f"{name} must have shape (B, D), got {tuple(x.shape)}")
