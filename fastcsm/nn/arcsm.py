"""The autoregressive score model: a context network, a score head, and a noise schedule."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses
from ..density import Conditionals, LogDensity
from .made import MADE, MaskedLinear
from .noise import NoiseSchedule
from .score_head import ScoreHead

Noise = tuple[Tensor, Tensor, Tensor]


class ARCSM(nn.Module):
    """Autoregressive conditional score model s_d(x) = d/dx_d log q(x_d given the variables before it).

    Without noise the scores are those of the data. With a schedule the context network reads
    x + sigma_L z and the head x + sigma z' (paper, appendix C); in the conditional form log sigma is the last
    context feature, the head's output is divided by sigma and rows are weighted by sigma^2; in the staged
    form the head is plain and trains at one level after the other.

    Args:
        context_net: autoregressive module x (B, D) -> contexts (B, D, C), such as :class:`MADE`. Its
            attribute ``order``, where there is one, is the order of drawing.
        head: :class:`ScoreHead` or another head that :func:`fastcsm.csm_loss` takes, with C context features
            (C + 1 in the conditional form).
        noise: :class:`NoiseSchedule`, or None to train on the data as they are.
        objective: "csm", or "denoising", which needs noise.
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
    _range: tuple[float, float]

    def __init__(
        self,
        context_net: nn.Module,
        head: nn.Module,
        *,
        noise: NoiseSchedule | None = None,
        objective: str = "csm",
        data_range: tuple[float, float] = (-1.0, 1.0),
    ):
        super().__init__()
        if objective not in ("csm", "denoising"):
            raise ValueError(f"objective must be 'csm' or 'denoising', got {objective!r}")
        if objective == "denoising" and noise is None:
            raise ValueError("noise must be a NoiseSchedule when objective is 'denoising', got None")
        self.context_net = context_net
        self.head = head
        self.noise = noise
        self.objective = objective
        self.stages = nn.ModuleList()
        self.register_buffer("_stage", torch.zeros((), dtype=torch.int64))
        self.data_range = data_range
        self.register_load_state_dict_pre_hook(_make_stages)
        features = getattr(context_net, "context_features", None)
        if isinstance(head, ScoreHead) and features is not None:
            wanted = features + int(self.conditional)
            if head.context_features != wanted:
                raise ValueError(
                    f"head must have {wanted} context features (the context network's {features}"
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
    def stage(self) -> int:
        """Index of the current noise level, staged form; 0 otherwise."""
        return len(self.stages)

    @property
    def data_range(self) -> tuple[float, float]:
        """The interval that holds the data's values."""
        return self._range

    @data_range.setter
    def data_range(self, value: tuple[float, float]) -> None:
        low, high = map(float, value)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"data_range must be two finite numbers in order, got {value}")
        self._range = low, high

    def advance_stage(self) -> None:
        """Keep a frozen copy of the parameters for the current level and go on to the next one.

        Raises:
            RuntimeError: if the model is not staged or the current level is the last.
        """
        if self.noise is None or self.noise.form != "staged":
            raise RuntimeError("advance_stage needs a NoiseSchedule of form 'staged'")
        if self.stage + 1 >= self.noise.levels:
            raise RuntimeError(f"advance_stage was called at the last of {self.noise.levels} levels")
        self.stages.append(self._frozen())
        self._stage += 1

    def _frozen(self) -> nn.ModuleDict:
        parts = {"context_net": copy.deepcopy(self.context_net), "head": copy.deepcopy(self.head)}
        return nn.ModuleDict(parts).requires_grad_(False).eval()

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
        """The noise one call of :meth:`csm_loss` uses, for x of the given shape (B, D).

        Returns:
            (z_hat, z, sigma), each (B, D): the noise of the context network's input, the noise of the head's
            input, and the noise level of each row.

        Raises:
            RuntimeError: if the model has no noise schedule.
        """
        if self.noise is None:
            raise RuntimeError("draw_noise needs a model with a NoiseSchedule")
        options: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        z_hat, z = torch.randn(shape, **options), torch.randn(shape, **options)
        if self.noise.form == "staged":
            return z_hat, z, torch.full_like(z, self.noise.sigmas[self.stage])
        return z_hat, z, self.noise.sample(shape, **options)

    def csm_loss(
        self, x: Tensor, generator: torch.Generator | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """Training loss, the mean over samples of the sum over dimensions, under the model's objective.

        With a :class:`MADE` and a head that runs fused, the contexts (B, D, C) exist in blocks only; see
        :func:`fastcsm.functional.linear_csm_loss`.

        Args:
            x: data (B, D).
            generator: source of the noise, on the device of x; torch's global one by default.
            noise: what :meth:`draw_noise` returns, to use instead of fresh noise.

        Returns:
            Scalar, differentiable once.
        """
        _check_data(x)
        if self.noise is None:
            return losses.csm_loss(self.head, self._contexts(x), x)
        z_hat, z, sigma = noise or self.draw_noise(x.shape, generator, x.device, x.dtype)
        level = sigma.log().unsqueeze(-1) if self.conditional else None
        context = self._contexts(x + self.noise.sigma_min * z_hat, level)
        x_noisy = x + sigma * z
        options: dict[str, Any] = {}
        if self.conditional:
            options = {"row_weight": sigma.square(), "score_scale": sigma.reciprocal()}
        if self.objective == "denoising":
            return losses.denoising_loss(self.head, context, x_noisy, z, sigma, **options)
        return losses.csm_loss(self.head, context, x_noisy, **options)

    def _contexts(self, x: Tensor, level: Tensor | None = None) -> Tensor | losses.LinearContext:
        """The contexts and, beside them, log sigma (B, D, 1); for a plain MADE without forming them."""
        net = self.context_net
        if (
            type(net) is MADE
            and type(net.output) is MaskedLinear
            and not (_hooked(net) or _hooked(net.output))
        ):
            output = net.output
            layer = net.hidden(x), output.weight, output.bias, output.in_degrees, output.out_degrees
            return losses.LinearContext(layer, level)
        context = net(x)
        return context if level is None else torch.cat([context, level], -1)

    def score(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Scores of all dimensions at x, in one pass.

        Args:
            x: (B, D), read as it is by the context network and the head.
            sigma: noise level of the scores, conditional form only; the last level by default. The staged
                form answers for its current level.

        Returns:
            (B, D); differentiable once.

        Raises:
            ValueError: if sigma is given and the model has no conditional noise schedule.
        """
        _check_data(x)
        if sigma is not None and not self.conditional:
            raise ValueError(f"sigma must be None unless the noise schedule is conditional, got {sigma}")
        context = self.context_net(x)
        if self.noise is None or not self.conditional:
            return losses.score_and_derivative(self.head, context, x)[0]
        sigma = self.noise.sigma_min if sigma is None else sigma
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        level = context.new_full((*context.shape[:-1], 1), math.log(sigma))
        return losses.score_and_derivative(self.head, torch.cat([context, level], -1), x)[0] / sigma

    def sample(
        self,
        n: int,
        method: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        step_size: float | None = None,
        *,
        batch_size: int | None = None,
        given: Tensor | None = None,
        known: int = 0,
        denoise: bool = False,
        progress: bool | Callable[..., None] | None = None,
    ) -> Tensor:
        """Draw samples, one dimension after the other.

        Args:
            n: number of samples.
            method: "flow", exact draws at the largest noise level carried down the probability flow (the
                default of a conditional model, which it needs); "inverse_cdf", exact draws of the density at
                the smallest level; or "langevin", annealed Langevin dynamics as in the paper (the default
                otherwise, and where ``steps`` or ``step_size`` is given).
            seed: a seed means the same samples whatever the batch size and the backend, to rounding.
            steps, step_size: of Langevin dynamics: steps a noise level (20 by default), and e_0, the step
                size at the last level; see :func:`fastcsm.sampling.annealed_langevin`.
            batch_size: samples drawn together.
            given, known: keep the first ``known`` variables of the order as in ``given``, (n, D) or (D,).
            denoise: return the denoised value of each dimension (Tweedie's formula).
            progress: see :func:`fastcsm.sampling.annealed_langevin`.

        Returns:
            (n, D), on the device and in the dtype of the model.

        Raises:
            ValueError: the method is not known, needs a conditional model or takes no steps; or see
                :func:`fastcsm.sampling.annealed_langevin`.
        """
        from .. import sampling

        stepwise = steps is not None or step_size is not None
        if method is None:
            method = "flow" if self.conditional and not stepwise else "langevin"
        options: dict[str, Any] = {
            "seed": seed,
            "batch_size": batch_size,
            "given": given,
            "known": known,
            "denoise": denoise,
            "progress": progress,
        }
        if method == "langevin":
            steps = 20 if steps is None else steps
            return sampling.annealed_langevin(self, n, steps=steps, step_size=step_size, **options)
        if method not in ("flow", "inverse_cdf"):
            raise ValueError(f"method must be 'flow', 'inverse_cdf' or 'langevin', got {method!r}")
        if stepwise:
            name, value = ("steps", steps) if steps is not None else ("step_size", step_size)
            raise ValueError(f"{name} is {value}, expected none with method {method!r}")
        return sampling.exact(self, n, method, **options)

    def log_density(
        self,
        x: Tensor,
        method: str | None = None,
        *,
        sigma: float | None = None,
        base: float | None = None,
        tolerance: float | None = None,
    ) -> LogDensity:
        """log q(x_d given the variables before it) of every dimension, with an estimate of its error.

        With a noise schedule q is the density of the data with noise of level sigma; the context network
        reads x itself, which is right for sigma = sigma_L.

        Args:
            x: (B, D).
            method: "quadrature", the integral of the scores of level sigma; or "flow", that of the first
                level carried along the probability flow (the default of a conditional model, which it needs).
            sigma: noise level, conditional form only; the last by default.
            base: noise level at which the flow begins, the first by default; see
                :class:`fastcsm.density.Conditionals`.
            tolerance: largest estimated error of a dimension's log-density by quadrature, and of a step of
                the flow, in nats; by default 1e-7 in float64 and 1e-4 otherwise.

        Returns:
            :class:`fastcsm.density.LogDensity`: ``log_density`` (B, D) in nats, NaN where a density does not
            exist; ``error`` (B, D), inf there; ``ends`` (B, D, 2), the probabilities beyond the interval of
            integration. The log-density is differentiable by quadrature.

        Raises:
            ValueError: the method is not known, or it or sigma needs a conditional model.
        """
        _check_data(x)
        rows = Conditionals(self, method, sigma=sigma, base=base, tolerance=tolerance)
        return rows.log_density(self.context_net(x), x)

    def log_prob(self, x: Tensor, method: str | None = None, **options: Any) -> Tensor:
        """log q(x) of every sample (B,) in nats: the sum of :meth:`log_density`, with its arguments."""
        return self.log_density(x, method, **options).log_density.sum(1)

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

    @torch.no_grad()
    def cdf(self, x: Tensor, method: str | None = None, **options: Any) -> Tensor:
        """P(X_d <= x_d given the variables before it), (B, D); arguments as for :meth:`log_density`.

        For x from the model these are independent uniform variables (Rosenblatt's transform).
        """
        _check_data(x)
        return Conditionals(self, method, **options).cdf(self.context_net(x), x)

    @torch.no_grad()
    def quantile(self, u: Tensor, method: str | None = None, **options: Any) -> Tensor:
        """x (B, D) with cdf(x) = u, found variable by variable in the model's order.

        Args:
            u: (B, D), probabilities in [0, 1].
            method, options: as for :meth:`log_density`.

        Returns:
            (B, D), in the dtype of u.
        """
        from ..sampling import ordered_contexts

        _check_data(u, "u")
        rows = Conditionals(self, method, **options)
        x = torch.zeros_like(u)
        for d, context in ordered_contexts(self.context_net, x):
            x[:, d] = rows.quantile(context, u[:, d])
        return x

    def extra_repr(self) -> str:
        return f"noise={self.noise}, objective={self.objective!r}"


def _hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def _check_data(x: Tensor, name: str = "x") -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"{x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if x.dim() != 2:
        raise ValueError(f"{name} must have shape (B, D), got {tuple(x.shape)}")


def _make_stages(model: ARCSM, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before a state_dict loads, give the model as many stages as the state has."""
    start = f"{prefix}stages."
    kept = {int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start)}
    while len(model.stages) > len(kept):
        del model.stages[-1]
    while len(model.stages) < len(kept):
        model.stages.append(model._frozen())
