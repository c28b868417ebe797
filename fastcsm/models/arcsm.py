"""The autoregressive score model: a context network, a score head, and a noise schedule."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import objectives
from ..densities import steps
from ..functional.arguments import at_least, one_of, positive
from ..networks import heads
from ..networks.any_head import wide
from ..networks.constants import Constants
from ..networks.context import contexts, several
from ..networks.heads import Part
from ..networks.preconditioned import Preconditioned
from ..networks.score_head import ScoreHead
from ..noise.levels import Levels
from .autoregressive import Autoregressive
from .copied import copied
from .model import Noise, check_data, in_dtype_of


class NoiseSchedule(Levels):
    """Geometric noise levels sigma_1 > ... > sigma_L, and how training visits them (paper, appendix C).

    Args:
        sigma_max, sigma_min, levels, continuous, power: as for :class:`fastcsm.noise.levels.Levels`;
            continuous in the conditional form only.
        form: "conditional", one set of parameters that reads log sigma and trains at all levels together; or
            "staged", as in the paper: one level after the other, each level's parameters kept.
        draws: noise levels, and values of the head's noise, that training draws for every context,
            conditional form only: a context costs more than the rows of a head.

    Attributes:
        sigmas: the L levels, a decreasing list of floats.

    Raises:
        ValueError: if the levels are not positive and decreasing, or the form is not known.
    """

    def __init__(
        self,
        sigma_max: float = 1.0,
        sigma_min: float = 0.04,
        levels: int = 10,
        form: str = "conditional",
        continuous: bool = False,
        power: float = 1.0,
        draws: int = 1,
    ):
        super().__init__(sigma_max, sigma_min, levels, continuous, power)
        one_of("form", form, ("conditional", "staged"))
        at_least(1, draws=draws)
        if draws > 1 and form == "staged":
            raise ValueError(f"draws must be 1 when form is 'staged', got {draws}")
        if continuous and form == "staged":
            raise ValueError(
                "continuous must be False when form is 'staged', which visits the levels in turn"
            )
        self.form, self.draws = form, draws

    def meaning(self) -> str:
        """What weights are trained for, in words; how often which level is drawn is no part of it."""
        return (
            f"NoiseSchedule(sigma_max={self.sigma_max}, sigma_min={self.sigma_min}, levels={self.levels},"
            f" form={self.form!r}, continuous={self.continuous})"
        )

    def __repr__(self) -> str:
        power = f", power={self.power}" if self.power != 1 else ""
        draws = f", draws={self.draws}" if self.draws > 1 else ""
        return f"{self.meaning()[:-1]}{power}{draws})"


class ARCSM(Autoregressive, Constants):
    """Autoregressive conditional score model s_d(x) = d/dx_d log q(x_d given the variables before it).

    Without noise the scores are those of the data. With a schedule the context network reads
    x + sigma_L z and the head x + sigma z' (paper, appendix C); in the conditional form log sigma is the last
    context feature, the head's output is divided by sigma and rows are weighted by sigma^2; in the staged
    form the head is plain and trains at one level after the other. A preconditioned head reads and gives
    numbers of the order of 1, and its flow starts from a Gaussian: with a sigma_1 of some 20 times the scale
    of the data every row has a density (:mod:`fastcsm.networks.preconditioned`).

    Args:
        context_net: :class:`fastcsm.nn.MADE`, or another autoregressive module x (B, D) -> contexts
            (B, D, C); see :class:`fastcsm.networks.context.ContextNet`.
        head: :class:`fastcsm.nn.ScoreHead`, or another head that :func:`fastcsm.csm_loss` takes, with C
            context features (C + 1 in the conditional form).
        noise: :class:`NoiseSchedule`, or None to train on the data as they are.
        objective: "csm"; "denoising", which needs noise; or "likelihood", of the flow of a preconditioned
            head by a few fixed steps (:mod:`fastcsm.densities.steps`).
        denoise_first: share of the training, as :meth:`go_on` says it, by denoising before the objective: a
            step takes less than half the time of one by likelihood. It needs noise.
        precondition: conditional form only: None, the plain head; "standard", for variables of mean 0 and
            deviation 1; or "moments", for which the context network has C + 2 features: the last two are each
            variable's centre and log scale given those before it, in units of which noise levels are. They
            are those of a Student density, fitted by likelihood beside the objective.
        data_range: the interval that holds the data's values; densities are integrated from a few sigmas
            outside it on. A wrong one costs time, not accuracy.

    Attributes:
        data_range: as given; not part of the state_dict.
        stage: index of the current level, staged form.
        stages: frozen {context_net, head} of the levels already passed, staged form; part of the state_dict.

    Raises:
        ValueError: if the objective is not known or needs noise that is not given, or sizes do not match.
    """

    _stage: Tensor

    def __init__(
        self,
        context_net: nn.Module,
        head: nn.Module,
        *,
        noise: NoiseSchedule | None = None,
        objective: str = "csm",
        denoise_first: float = 0.0,
        precondition: str | None = None,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ):
        super().__init__(data_range)
        one_of("objective", objective, (*objectives.BY_NAME, "likelihood"))
        if objective != "csm" and noise is None:
            raise ValueError(f"noise must be a NoiseSchedule when objective is {objective!r}, got None")
        if objective == "likelihood" and precondition is None:
            raise ValueError("precondition must be given when objective is 'likelihood'")
        if not 0 <= denoise_first < 1 or (denoise_first and noise is None):
            raise ValueError(f"denoise_first must be in [0, 1), 0 without noise, got {denoise_first}")
        self.context_net = context_net
        self.head = head
        self.noise = noise
        self.objective = objective
        self.denoise_first = denoise_first
        self._objective_now = objective
        self.precondition = precondition
        if precondition is not None:
            one_of("precondition", precondition, ("standard", "moments"))
            if not self.conditional:
                raise ValueError("precondition needs a NoiseSchedule of form 'conditional'")
        self.stages = nn.ModuleList()
        self.constant("_stage", torch.zeros((), dtype=torch.int64))
        features = getattr(context_net, "context_features", None)
        if isinstance(head, ScoreHead) and features is not None:
            wanted = features + int(self.conditional) - 2 * (precondition == "moments")
            if head.context_features != wanted:
                raise ValueError(
                    f"head must have {wanted} context features (the context network's {features}"
                    f"{' less two moments' if precondition == 'moments' else ''}"
                    f"{' and log sigma' if self.conditional else ''}), got {head.context_features}"
                )

    @property
    def conditional(self) -> bool:
        """Whether the head reads log sigma."""
        return self.noise is not None and self.noise.form == "conditional"

    @property
    def staged(self) -> bool:
        """Whether each noise level has its own parameters."""
        return self.noise is not None and self.noise.form == "staged"

    @property
    def density_methods(self) -> tuple[str, ...]:  # type: ignore[override]
        """The flow needs a head that reads log sigma."""
        return ("flow", "quadrature") if self.conditional else ("quadrature",)

    @property
    def sample_methods(self) -> tuple[str, ...]:  # type: ignore[override]
        """As for densities; "inverse_cdf" and "langevin" of any form."""
        return (*self.density_methods[:-1], "langevin", "inverse_cdf")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        """The smallest noise level, 0 without noise."""
        return self.noise.sigma_min if self.noise else 0.0

    @property
    def row_noise(self) -> float:
        """The smallest level; 0 of a preconditioned model, whose flow is a density of rows as they are."""
        return 0.0 if self.precondition else self.sigma_min

    @property
    def by_likelihood(self) -> bool:  # type: ignore[override]
        return self.objective == "likelihood"

    @property
    def stage(self) -> int:  # type: ignore[override]
        """Index of the current noise level, staged form; 0 otherwise."""
        return len(self.stages)

    def advance_stage(self) -> None:
        """Keep a frozen copy of the parameters for the current level and go on to the next one.

        Raises:
            RuntimeError: if the model is not staged or the current level is the last.
            ValueError: if a module cannot be copied.
        """
        if not self.staged:
            raise RuntimeError("advance_stage needs a NoiseSchedule of form 'staged'")
        if self.stage + 1 >= self.noise.levels:
            raise RuntimeError(f"advance_stage was called at the last of {self.noise.levels} levels")
        self.stages.append(self._frozen())
        self._stage += 1

    def _frozen(self) -> nn.ModuleDict:
        parts = {"context_net": copied(self.context_net), "head": copied(self.head)}
        return nn.ModuleDict(parts).requires_grad_(False).eval()

    def go_on(self, fraction: float) -> None:
        """Take note that this part of the training is done: the stage and the objective that it means."""
        self._objective_now = "denoising" if fraction < self.denoise_first else self.objective
        if self.staged:
            self.to_stage(min(int(fraction * self.noise.levels), self.noise.levels - 1))

    def to_stage(self, stage: int) -> None:
        """Advance until this stage."""
        while self.stage < stage:
            self.advance_stage()

    def stage_fraction(self, fraction: float) -> float:
        """Each stage of the staged form has an equal part of the training."""
        return min(fraction * self.noise.levels - self.stage, 1.0) if self.staged else fraction

    def parts(self) -> list[Part]:
        """Parameter sets and the noise levels they serve, up to the current stage."""
        if self.noise is None or not self.staged:
            sigmas = tuple(self.noise.sigmas) if self.noise else ()
            return [Part(self.context_net, self._own_head(), sigmas)]
        sets: list[Any] = [*self.stages, self]
        levels = self.noise.sigmas
        return [Part(part.context_net, heads.of(part.head), (level,)) for part, level in zip(sets, levels)]

    def _own_head(self) -> Any:
        """The head as the calls that run it, of the current stage."""
        head = heads.of(self.head, self.conditional)
        return Preconditioned(head, moments=self.precondition == "moments") if self.precondition else head

    def parts_to_draw(self, method: str) -> list[Part]:
        """All parts; Langevin dynamics of the staged form needs those of every level."""
        parts = self.parts()
        if method == "langevin" and self.staged and len(parts) < self.noise.levels:
            raise ValueError(
                f"the model has finished {self.stage} of {self.noise.levels} stages, expected all of them"
            )
        return parts

    def train(self, mode: bool = True) -> "ARCSM":
        """As nn.Module.train, except that the stages already passed stay in evaluation mode."""
        super().train(mode)
        self.stages.eval()
        return self

    def draw_noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Noise:
        """The noise one call of :meth:`loss` uses, for x of the given shape (B, D).

        Returns:
            (z_hat, z, sigma): the noise of the context network's input, (B, D); the noise of the head's
            input and the noise level of each row, (B, D), or (B, S, D) with S > 1 ``draws``; nothing for a
            model without a noise schedule.
        """
        if self.noise is None:
            return ()
        options: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        batch, features = shape
        rows = (batch, self.noise.draws, features) if self.noise.draws > 1 else (batch, features)
        z_hat, z = torch.randn((batch, features), **options), torch.randn(rows, **options)
        if self.staged:
            return z_hat, z, torch.full_like(z, self.noise.sigmas[self.stage])
        return z_hat, z, self.noise.sample(rows, **options)

    def loss(
        self, x: Tensor, generator: torch.Generator | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """The loss of the model's objective, the mean over samples of the sum over dimensions.

        With a :class:`fastcsm.nn.MADE` and a head that runs fused, the contexts (B, D, C) exist in blocks
        only; see :func:`fastcsm.functional.linear_csm_loss`.

        Args:
            x: data (B, D).
            generator: source of the noise, on the device of x; torch's global one by default.
            noise: what :meth:`draw_noise` returns, to use instead of fresh noise.

        Returns:
            Scalar, differentiable once.
        """
        return self._loss(self._objective_now, x, generator, noise)

    def held_out_loss(self, x: Tensor, *, noise: Noise | None = None) -> Tensor:
        """The loss of the model's objective all along; by likelihood, that of the flow as densities take it.

        The few steps that training differentiates are another map, which may fold where there are no rows.
        """
        return -self.log_prob(x).mean() if self.by_likelihood else self._loss(self.objective, x, None, noise)

    def csm_loss(
        self, x: Tensor, generator: torch.Generator | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """The composite score matching loss, whatever the model's objective; arguments as :meth:`loss`."""
        return self._loss("csm", x, generator, noise)

    def _loss(
        self, objective: str, x: Tensor, generator: torch.Generator | None, noise: Noise | None
    ) -> Tensor:
        check_data(x)
        if objective == "likelihood":
            noise = noise or self.draw_noise(x.shape, generator, x.device, x.dtype)
            return self.likelihood_loss(x, noise)
        if self.noise is None:
            return objectives.csm_loss(self.head, contexts(self.context_net, x), x)
        z_hat, z, sigma = noise or self.draw_noise(x.shape, generator, x.device, x.dtype)
        context = contexts(self.context_net, x + self.noise.sigma_min * z_hat)
        head = self._own_head()
        own = head.own(context, x.shape[-1])
        context, y = own.context, own.detached().of(x)
        if z.dim() == 3:
            y, context = y.unsqueeze(1), several(context, z.shape[1])
        weight = sigma.square() if self.conditional else None
        if weight is not None and self.noise.power != 1:
            weight = weight * self.noise.weight(sigma)
        rows = context, y + sigma * z, z, sigma
        loss = objectives.BY_NAME[objective](head.at(sigma), *rows, row_weight=weight)
        return loss if own.log_scale is None else loss + objectives.moments_loss(own.of(x), own.log_scale)

    def noisy_log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """log q (B,) of x (B, D), differentiable: of a preconditioned model by the steps of its flow.

        Otherwise it is that by quadrature, of x with the noise of the context network, sigma_L z_hat.
        """
        if self.precondition:
            return self._log_prob_by_steps(x, noise)
        if self.noise is not None and noise:
            x = x + self.noise.sigma_min * noise[0]
        return self.log_prob(x, method="quadrature")

    def _log_prob_by_steps(self, x: Tensor, noise: Noise) -> Tensor:
        check_data(x)
        context, head = self._contexts(x), self._own_head()
        own = head.own(context, x.shape[-1])
        jitter = None
        if noise and noise[1].numel():  # of few rows the same numbers again
            count = steps.STEPS - 1
            jitter = torch.special.ndtr(noise[1].flatten()[:count].double().repeat(count)[:count])
        levels = self.noise.sigma_max, self.noise.sigma_min
        y = own.of(wide(x, context))
        return own.density(steps.log_density(head, own.context, y, levels, jitter)).sum(-1)

    def score(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Scores of all dimensions at x, in one pass.

        Args:
            x: (B, D), of any floating dtype, read as it is, but rounded, by the context network and the head.
            sigma: noise level of the scores, conditional form only; the last level by default. The staged
                form answers for its current level.

        Returns:
            (B, D), in the model's dtype; differentiable once.

        Raises:
            ValueError: if sigma is given and the model has no conditional noise schedule.
        """
        check_data(x)
        if sigma is not None and not self.conditional:
            raise ValueError(f"sigma must be None unless the noise schedule is conditional, got {sigma}")
        level = self.sigma_min if sigma is None else positive("sigma", sigma)
        x, head = in_dtype_of(self.context_net, x), self._own_head()
        own = head.own(self.context_net(x), x.shape[-1])
        return own.score(head.at(level).score_and_derivative(own.context, own.of(x))[0])

    def settings(self) -> dict[str, str]:
        noise = str(self.noise and self.noise.meaning())
        return {"noise": noise, "precondition": self.precondition or "none"}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        start = f"{prefix}stages."
        kept = {int(key[len(start) :].split(".")[0]) for key in state_dict if key.startswith(start)}
        if f"{prefix}_stage" in state_dict:  # not in a part of a state, which leaves the stages
            while len(self.stages) > len(kept):
                del self.stages[-1]
            while len(self.stages) < len(kept):
                self.stages.append(self._frozen())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"noise={self.noise}, objective={self.objective!r}, precondition={self.precondition!r}"
