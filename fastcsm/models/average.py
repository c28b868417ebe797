"""Several models of the same variables as one density: the average of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import random
from ..densities import LogDensity
from .model import Model, Noise, check_data

#: The dimension of the uniform number that picks a sample's model: no variable's.
_PICKS = 2**32 - 1
_SEEDS = 2**64
#: Between the seeds of the models' draws.
_STRIDE = 0x9E3779B97F4A7C15


class Average(Model):
    """q(x) = (q_1(x) + ... + q_K(x)) / K, as of models that draw the variables in different orders.

    Each model trains as it would alone, on the same noise; one whose order suits a row badly costs that row
    log K nats at most.

    Args:
        models: one or more of one kind, of the same variables.

    Attributes:
        models: as given, nn.ModuleList.

    Raises:
        ValueError: there is no model.
        TypeError: one is no :class:`fastcsm.models.model.Model`.
    """

    def __init__(self, models: Iterable[Model]):
        super().__init__()
        members = list(models)
        if not members:
            raise ValueError("models must be one or more, got none")
        for member in members:
            if not isinstance(member, Model):
                raise TypeError(f"models must be fastcsm's, got {type(member).__name__}")
        self.models = nn.ModuleList(members)

    def _members(self) -> list[Model]:
        return cast(list[Model], list(self.models))

    @property
    def _first(self) -> Model:
        return self._members()[0]

    @property
    def density_methods(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._first.density_methods

    @property
    def sample_methods(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._first.sample_methods

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return self._first.sigma_min

    @property
    def row_noise(self) -> float:
        return self._first.row_noise

    @property
    def by_likelihood(self) -> bool:  # type: ignore[override]
        return self._first.by_likelihood

    @property
    def stage(self) -> int:  # type: ignore[override]
        return self._first.stage

    @property
    def data_range(self) -> tuple[float, float]:
        return self._first.data_range

    @data_range.setter
    def data_range(self, value: tuple[float, float]) -> None:
        for model in self._members():
            model.data_range = value

    def draw_noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Noise:
        """That of one model, which serves them all."""
        return self._first.draw_noise(shape, generator, device, dtype)

    def loss(
        self, x: Tensor, generator: torch.Generator | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """The mean of the models' losses; arguments as for theirs."""
        check_data(x)
        noise = noise or self.draw_noise(x.shape, generator, x.device, x.dtype)
        return torch.stack([model.loss(x, noise=noise) for model in self._members()]).mean()

    def held_out_loss(self, x: Tensor, *, noise: Noise | None = None) -> Tensor:
        """-log q of the average itself where the models train by theirs: it goes on falling for longer."""
        if self.by_likelihood:
            return -self.log_prob(x).mean()
        noise = noise or self.draw_noise(x.shape, None, x.device, x.dtype)
        return torch.stack([model.held_out_loss(x, noise=noise) for model in self._members()]).mean()

    def noisy_log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """log q (B,) of x (B, D) with the models' common noise, differentiable."""
        rows = torch.stack([model.noisy_log_prob(x, noise) for model in self._members()])
        return rows.logsumexp(0) - math.log(len(self.models))

    def go_on(self, fraction: float) -> None:
        for model in self._members():
            model.go_on(fraction)

    def to_stage(self, stage: int) -> None:
        for model in self._members():
            model.to_stage(stage)

    def stage_fraction(self, fraction: float) -> float:
        return self._first.stage_fraction(fraction)

    def score(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """The mean over models of the scores of each variable given those before it in the model's order.

        Of no density's conditionals: the average has none that are cheap. Arguments as for theirs.
        """
        return torch.stack([model.score(x, sigma) for model in self._members()]).mean(0)

    def log_density(self, x: Tensor, method: str | None = None, **options: Any) -> LogDensity:
        """log q of whole rows x (B, D); arguments as for the models.

        Returns:
            :class:`fastcsm.densities.LogDensity`: ``log_density`` (B, 1) in nats, NaN where a model gives
            none; ``error`` (B, 1), the models' estimates by their shares in q, inf there; ``ends`` (B, 1, 2),
            the largest of a variable and model.
        """
        found = [model.log_density(x, method, **options) for model in self._members()]
        logs = torch.stack([part.log_density.sum(1) for part in found], 1)
        errors = torch.stack([part.error.sum(1) for part in found], 1)
        log_q = logs.logsumexp(1, keepdim=True) - math.log(len(found))
        error = (logs.softmax(1).detach() * errors).sum(1, keepdim=True)
        ends = torch.stack([part.ends.amax(1) for part in found], 1).amax(1, keepdim=True)
        return LogDensity(log_q, error.where(log_q.isfinite(), torch.inf), ends)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        method: str | None = None,
        seed: int = 0,
        *,
        first_sample: int = 0,
        progress: bool | Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """n samples (n, D), each of a model that its number and the seed pick at random.

        Args:
            n, method, seed: as for the models.
            first_sample: number of the first sample: ``first_sample=k`` continues a draw of k samples.
            progress: called with (variables done, variables in all) over all models; True for a bar a model.
            options: as for the models, but for variables that are given.

        Raises:
            ValueError: variables are given, on which the models' shares would depend.
        """
        if options.get("given") is not None or options.get("known"):
            raise ValueError("given must not be there for an average of models: use one of its models")
        count = len(self.models)
        numbers = torch.arange(first_sample + n)
        picks = random.uniform(seed, numbers, torch.full_like(numbers, _PICKS), 0, torch.float64)
        picked = (picks * count).long().clamp(max=count - 1)
        parts: list[Tensor] = []
        for k, model in enumerate(self._members()):
            before = int((picked[:first_sample] == k).sum())
            mine = int((picked[first_sample:] == k).sum())
            if not mine:
                continue
            own = options | ({"first_sample": before} if before else {})
            if callable(progress):
                own["progress"] = lambda done, each, k=k: progress(done + k * each, count * each)
            elif progress:
                own["progress"] = progress
            parts.append(model.sample(mine, method, (seed + k * _STRIDE) % _SEEDS, **own))
        place = picked[first_sample:].argsort(stable=True).argsort()
        return torch.cat(parts)[place.to(parts[0].device)] if n else self._first.sample(0, method, seed)

    def extra_repr(self) -> str:
        return f"of {len(self.models)}"
