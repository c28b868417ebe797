"""An AR-CSM of a MADE and a score head: its options, its presets, and how it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...activations import ACTIVATIONS
from ...models.arcsm import ARCSM, NoiseSchedule
from ...models.average import Average
from ...models.model import Model
from ...networks.made import MADE
from ...networks.preconditioned import initialise
from ...networks.score_head import ScoreHead
from ...objectives import BY_NAME
from ..config import FRACTION, NON_NEGATIVE, POSITIVE, RunConfig, options_of

#: By what the contexts of a preconditioned model begin larger than a layer's outputs usually are: of order 1.
_CONTEXTS = 3.0
_WIDTHS = ("one or more positive whole numbers", lambda v: len(v) > 0 and all(w > 0 for w in v))
_HEAD_WIDTHS = ("1 to 4 positive whole numbers", lambda v: 1 <= len(v) <= 4 and all(w > 0 for w in v))
_ACTIVATIONS = tuple(ACTIVATIONS)
_AT_LEAST_1 = ("at least 1", lambda v: v >= 1)
_model, _noise, _sampling = options_of("model"), options_of("objective and noise"), options_of("sampling")
#: What preconditioned presets share: the likelihood's weight wants the denoising objective, whose variance
#: does not grow with the level as that of composite score matching does.
_PRECONDITIONED: dict[str, Any] = {
    "precondition": "standard",
    "objective": "denoising",
    "frequencies": 0,
    "sigma_max": 20.0,
    "continuous": True,
    "level_power": 2.0,
    "level_draws": 4,
    "lr": 3e-3,
    "schedule": "cosine",
}


@dataclass(frozen=True)
class ARCSMConfig(RunConfig):
    """Hyper-parameters of a run; defaults are those of the paper (appendix C) where it gives one."""

    model: ClassVar[str] = "arcsm"
    #: ``digits`` for scans of 8x8, ``toy`` for 2-D data, ``table`` for standardised columns, ``images`` for
    #: grey values, best as logits. All but the paper's are preconditioned.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "digits": {
            "sigma_min": 0.06,
            "continuous": True,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "cosine",
            "weight_decay": 1e-3,
            "ema": 0.995,
            "dropout": 0.3,
            "step_size": 1.8e-3,
        },
        "table": {
            **_PRECONDITIONED,
            "precondition": "moments",
            "objective": "likelihood",
            "hidden": (512, 512),
            "made_activation": "relu",
            "orders": 2,
            "head_hidden": (64, 64),
            "sigma_min": 0.01,
            "denoise_first": 0.25,
            "lr": 6e-3,
            "warmup_steps": 100,
            "optimizer": "adamw",
            "weight_decay": 1e-2,
            "keep": "best",
        },
        "images": {
            **_PRECONDITIONED,
            "hidden": (1024, 1024),
            "sigma_min": 0.02,
            "dropout": 0.1,
            "optimizer": "adamw",
            "weight_decay": 1e-3,
            "epochs": 60,
        },
        "toy": {
            "hidden": (128, 128, 128),
            "frequencies": 32,
            "frequency_scale": 8.0,
            "objective": "denoising",
            "sigma_min": 0.05,
            "sigma_max": 2.0,
            "continuous": True,
            "lr": 2e-3,
            "schedule": "cosine",
            "batch_size": 512,
            "steps": 8000,
        },
    }

    hidden: tuple[int, ...] = _model((512, 512), "hidden widths of the MADE context network", _WIDTHS)
    made_activation: str = _model("silu", "activation of the MADE", choices=_ACTIVATIONS)
    residual: bool = _model(False, "residual blocks in the MADE (equal widths)")
    dropout: float = _model(0.0, "dropout probability in the MADE", FRACTION)
    order: str = _model("raster", "order of the variables", choices=("raster", "random"))
    orders: int = _model(
        1, "models whose densities are averaged: of the order, its reverse, and random ones", POSITIVE
    )
    context_features: int = _model(32, "context features C per dimension", POSITIVE)
    head_hidden: tuple[int, ...] = _model((128, 128), "hidden widths of the score head", _HEAD_WIDTHS)
    head_activation: str = _model("silu", "activation of the score head", choices=_ACTIVATIONS)
    frequencies: int = _model(16, "frequencies of x the head reads; 0 is the paper's head", NON_NEGATIVE)
    frequency_scale: float = _model(3.0, "standard deviation of the frequencies", POSITIVE)

    precondition: str = _model(
        "none",
        "what the head reads and gives is of the order of 1, and its flow starts from a Gaussian: for "
        "variables of mean 0 and deviation 1, or with each variable's centre and scale given those before "
        "it; none is the paper's head",
        choices=("none", "standard", "moments"),
    )

    objective: str = _noise(
        "csm",
        "composite score matching, conditional denoising, or of a preconditioned head the likelihood",
        choices=(*BY_NAME, "likelihood"),
        paper=True,
    )
    denoise_first: float = _noise(
        0.0, "share of the training by denoising before the objective: cheaper than the likelihood", FRACTION
    )
    noise: str = _noise(
        "conditional",
        "noise annealing: all levels at once given log sigma, one after the other as in the paper, or "
        "no noise",
        choices=("conditional", "staged", "none"),
    )
    sigma_max: float = _noise(1.0, "largest noise level sigma_1", POSITIVE, paper=True)
    sigma_min: float = _noise(0.04, "smallest noise level sigma_L", POSITIVE, paper=True)
    levels: int = _noise(10, "number of noise levels L", POSITIVE, paper=True)
    continuous: bool = _noise(False, "conditional form: log-uniform noise levels instead of the L levels")
    level_power: float = _noise(
        1.0, "continuous levels: log sigma at u^power of the way up, with unbiased weights", _AT_LEAST_1
    )
    level_draws: int = _noise(1, "conditional form: noise levels a context a step", POSITIVE)

    langevin_steps: int = _sampling(20, "Langevin steps T per noise level", POSITIVE, paper=True)
    step_size: float | None = _sampling(
        None, "Langevin step size e_0 at the smallest noise level (default 0.2 sigma_L^2)", POSITIVE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min}, expected at most sigma_max = {self.sigma_max}")
        if (self.levels == 1) != (self.sigma_min == self.sigma_max):
            raise ValueError(f"levels is {self.levels}, expected 1 exactly when sigma_min equals sigma_max")
        if self.continuous and self.noise != "conditional":
            raise ValueError(f"continuous is set with noise '{self.noise}', expected noise 'conditional'")
        if self.precondition != "none" and self.noise != "conditional":
            raise ValueError(
                f"precondition is '{self.precondition}' with noise '{self.noise}', expected 'conditional'"
            )
        if self.objective == "likelihood" and self.precondition == "none":
            raise ValueError("objective is 'likelihood' with precondition 'none', expected another of them")
        if self.denoise_first and self.noise == "none":
            raise ValueError(f"denoise_first is {self.denoise_first} with noise 'none', expected 0")
        if self.level_power != 1 and not self.continuous:
            raise ValueError(f"level_power is {self.level_power} without continuous levels, expected 1")
        if self.level_draws > 1 and self.noise != "conditional":
            raise ValueError(f"level_draws is {self.level_draws} with noise '{self.noise}', expected 1")
        if self.objective == "denoising" and self.noise == "none":
            raise ValueError(
                "objective is 'denoising' with noise 'none', expected noise 'conditional' or 'staged'"
            )
        if self.noise == "staged" and (self.patience or self.keep == "best"):
            raise ValueError(
                f"patience is {self.patience} and keep is '{self.keep}' with noise 'staged', whose losses at "
                "different levels do not compare, expected 0 and 'last'"
            )
        if self.residual and len(set(self.hidden)) > 1:
            raise ValueError(f"hidden is {self.hidden} with residual blocks, expected equal widths")

    def sample_options(self, method: str) -> dict[str, Any]:
        """Steps and step size of Langevin dynamics."""
        if method != "langevin":
            return {}
        return {"steps": self.langevin_steps, "step_size": self.step_size}

    def build(self, features: int) -> Model:
        """A freshly initialised AR-CSM for (B, features) data, on the CPU, fixed by ``seed``.

        An average of several with more than one order.
        """
        generator = torch.Generator().manual_seed(self.seed)
        orders = [list(range(features))] * (self.order == "raster")
        while len(orders) < max(self.orders, 2):
            shuffled = torch.randperm(features, generator=generator).tolist()
            orders.append(orders[0][::-1] if len(orders) == 1 else shuffled)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            models = [self._build(order) for order in orders[: self.orders]]
        model = models[0] if self.orders == 1 else Average(models)
        return model.to(getattr(torch, self.dtype))

    def _build(self, order: list[int]) -> ARCSM:
        """A model by torch's generator."""
        noise = None
        if self.noise != "none":
            noise = NoiseSchedule(
                self.sigma_max,
                self.sigma_min,
                self.levels,
                form=self.noise,
                continuous=self.continuous,
                power=self.level_power,
                draws=self.level_draws,
            )
        moments = 2 * (self.precondition == "moments")
        context_net = MADE(
            len(order),
            self.hidden,
            self.context_features + moments,
            order=order,
            activation=self.made_activation,
            residual=self.residual,
            dropout=self.dropout,
        )
        head = ScoreHead(
            self.context_features + (self.noise == "conditional"),
            self.head_hidden,
            self.head_activation,
            self.frequencies,
            frequency_scale=self.frequency_scale,
        )
        if self.precondition != "none":
            initialise(head, (self.sigma_max, self.sigma_min))
            with torch.no_grad():
                context_net.output.weight.mul_(_CONTEXTS)
        precondition = None if self.precondition == "none" else self.precondition
        return ARCSM(
            context_net,
            head,
            noise=noise,
            objective=self.objective,
            denoise_first=self.denoise_first,
            precondition=precondition,
        )
