"""The models of the tables: an AR-CSM, flows of zuko, mixtures; the package's trainer trains them all.

Likelihood models watch what decides in the tables, the mean of the held-out rows without the worst 1%: by the
plain mean, a flow's best weights would be those of the steps at which one row happened not to explode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastcsm.densities import LogDensity
from fastcsm.evaluation import trimmed_mean
from fastcsm.models.model import Model
from fastcsm.nn import MixtureMADE
from fastcsm.training import PRESETS, Config
from fastcsm.training.config import POSITIVE, RunConfig, option
from fastcsm.training.recipes import RECIPES

#: Settings of which each model takes the best on validation rows, of each data set: as many of every model.
RATES: tuple[dict[str, Any], ...] = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2})
#: Of every run.
SHARED: dict[str, Any] = {
    "schedule": "cosine",
    "batch_size": 256,
    "keep": "best",
    "eval_every": 250,
    "log_every": 250,
    "checkpoint_seconds": 600.0,
}
#: Of the AR-CSM, over those: the preset, and what it chooses from. Of few rows, of which an order is learned
#: sooner, more of them, without a choice: a quarter of the minutes is too short for four.
ARCSM = PRESETS["table"] | {"batch_size": 128}
ARCSM_CHOICES: tuple[dict[str, Any], ...] = (
    {"made_activation": "relu"},
    {"made_activation": "silu", "orders": 1},
    {"objective": "denoising", "denoise_first": 0.0, "level_draws": 2},
)
ARCSM_OF_FEW_ROWS = {"orders": 4, "dropout": 0.1}
_FEW = 5000
#: Width of all masked networks on data of more columns: with fewer units than columns these would not read
#: all columns before theirs, neither the package's nor zuko's.
_MANY, _WIDE = 256, 1024
#: The means of a mixture begin within this many deviations of the data.
_REACH = 3.0
_WIDTHS = ("one or more positive whole numbers", lambda v: len(v) > 0 and all(w > 0 for w in v))


class Watched(Model):
    """A model trained by -log q, the mean over samples, whose held-out loss is the trimmed mean."""

    density_methods = ("exact",)
    sample_methods = ("exact",)

    def loss(self, x: Tensor, generator: Any = None, *, noise: Any = None) -> Tensor:
        """-log q of x (B, D), the mean over samples, in nats."""
        return self.likelihood_loss(x)

    def held_out_loss(self, x: Tensor, *, noise: Any = None) -> Tensor:
        return trimmed_mean(self.likelihood_loss(x, reduction="none"))


class Mixture(Watched, MixtureMADE):
    """A mixture MADE that is trained and watched as the flows are."""


class Flow(Watched):
    """A flow of zuko to a standard normal base.

    Args:
        flow: zuko.flows.MAF, or a class derived from it.
        features: D.
        options: of the flow.
    """

    def __init__(self, flow: Any, features: int, **options: Any):
        super().__init__()
        self.features, self.flow = features, flow(features, **options)

    def log_density(self, x: Tensor, method: str | None = None) -> LogDensity:  # type: ignore[override]
        """log q (B, 1) of whole rows x (B, D); by hand, as zuko's base raises where z is not finite."""
        z, log_determinant = self.flow().transform.call_and_ladj(x)
        base = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        found = (base + log_determinant).unsqueeze(1)
        return LogDensity(found, torch.zeros_like(found), found.new_zeros(len(x), 1, 2))

    @torch.no_grad()
    def sample(self, n: int, method: str | None = None, seed: int = 0) -> Tensor:  # type: ignore[override]
        z = torch.randn(n, self.features, generator=torch.Generator().manual_seed(seed))
        return self.flow().transform.inv(z)


@dataclass(frozen=True)
class LikelihoodConfig(RunConfig):
    """What an AR-CSM stands beside: a flow of zuko, or a MADE with a mixture of logistics."""

    model: ClassVar[str] = "likelihood"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    kind: str = option("made", "model", "kind of model", choices=("made", "resmade", "nsf", "maf"))
    hidden: tuple[int, ...] = option((512, 512), "model", "hidden widths of each network", check=_WIDTHS)
    components: int = option(10, "model", "logistics of a mixture, or bins of a spline", check=POSITIVE)
    transforms: int = option(3, "model", "transforms of a flow", check=POSITIVE)

    def build(self, features: int) -> Watched:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.kind in ("made", "resmade"):
                reach = {"low": -_REACH, "high": _REACH, "residual": self.kind == "resmade"}
                return Mixture(features, self.hidden, self.components, **reach)
            from zuko import flows

            options: dict[str, Any] = {"transforms": self.transforms, "hidden_features": self.hidden}
            if self.kind == "maf":
                return Flow(flows.MAF, features, **options)
            return Flow(flows.NSF, features, bins=self.components, **options)


RECIPES[LikelihoodConfig.model] = LikelihoodConfig


@dataclass(frozen=True)
class Contender:
    """A model of the tables: title, settings over ``SHARED``, those that make it small, and its choices."""

    title: str
    kind: type[RunConfig]
    settings: dict[str, Any]
    tiny: dict[str, Any] = field(default_factory=dict)
    choices: Sequence[dict[str, Any]] = RATES
    of_few_rows: dict[str, Any] = field(default_factory=dict)

    def choices_of(self, rows: int) -> Sequence[dict[str, Any]]:
        """What it chooses from, given that many training rows."""
        return ({},) if rows < _FEW and self.of_few_rows else self.choices

    def config(self, rows: int, features: int, tiny: bool = False, **run: Any) -> RunConfig:
        """Its configuration for that many training rows and columns; a run ends by time."""
        own = SHARED | self.settings | {"steps": 10**9} | (self.of_few_rows if rows < _FEW else {})
        own |= (self.tiny if tiny else {}) | run
        if features > _MANY:
            own |= {"hidden": (_WIDE,) * len(own["hidden"])}
        return self.kind(**own)


def _likelihood(title: str, **settings: Any) -> Contender:
    small = {"hidden": (len(settings["hidden"]) * (8,)), "components": 4, "batch_size": 32}
    return Contender(title, LikelihoodConfig, settings, small)


CONTENDERS = {
    "arcsm": Contender(
        "AR-CSM, flow",
        Config,
        ARCSM,
        {"hidden": (8, 8), "context_features": 4, "head_hidden": (8,), "frequencies": 2, "batch_size": 32},
        ARCSM_CHOICES,
        ARCSM_OF_FEW_ROWS,
    ),
    "nsf": _likelihood("NSF (zuko)", kind="nsf", hidden=(256, 256), components=16),
    "maf": _likelihood("MAF (zuko)", kind="maf", hidden=(256, 256), transforms=5),
    "made": _likelihood("MADE, 10 logistics", kind="made", hidden=(512, 512)),
    "resmade": _likelihood("ResMADE, 10 logistics", kind="resmade", hidden=(256,) * 4),
}
