"""Every hyper-parameter of a run, declared once: defaults, checks and help come from the same place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .nn import ARCSM

_Check = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Check = ("a positive number", lambda v: v > 0)
_NON_NEGATIVE: _Check = ("zero or a positive number", lambda v: v >= 0)
_FRACTION: _Check = ("a number in [0, 1)", lambda v: 0 <= v < 1)
_LEVELS: _Check = ("a number in 2..256", lambda v: 2 <= v <= 256)
_SEED: _Check = ("a number in 0..2^63-1", lambda v: 0 <= v < 2**63)
_WIDTHS: _Check = ("one or more positive whole numbers", lambda v: len(v) > 0 and all(w > 0 for w in v))
_HEAD_WIDTHS: _Check = ("1 to 4 positive whole numbers", lambda v: 1 <= len(v) <= 4 and all(w > 0 for w in v))
_ACTIVATIONS = ("softplus", "tanh", "silu", "gelu", "elu", "relu", "sigmoid")

_KINDS: dict[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "a text"),
    "bool": (bool, "true or false"),
    "tuple[int, ...]": (int, "whole numbers"),
}


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    check: _Check | None = None,
    choices: tuple[str, ...] | None = None,
    paper: bool = False,
) -> Any:
    return field(
        default=default,
        metadata={"group": group, "help": help, "check": check, "choices": choices, "paper": paper},
    )


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of a training run. Raises ValueError naming the first field that is out of range.

    Defaults are those of the paper (appendix C) where it gives one; ``PRESETS`` holds other sets by name.
    """

    data: str = _option("digits", "data", "data set name, or path of a .npz, .npy or .csv file")
    grey_levels: int = _option(256, "data", "grey levels of uint8 files", check=_LEVELS)

    hidden: tuple[int, ...] = _option(
        (512, 512), "model", "hidden widths of the MADE context network", check=_WIDTHS
    )
    made_activation: str = _option("silu", "model", "activation of the MADE", choices=_ACTIVATIONS)
    residual: bool = _option(False, "model", "residual blocks in the MADE (equal widths)")
    dropout: float = _option(0.0, "model", "dropout probability in the MADE", check=_FRACTION)
    order: str = _option("raster", "model", "order of the variables", choices=("raster", "random"))
    context_features: int = _option(32, "model", "context features C per dimension", check=_POSITIVE)
    head_hidden: tuple[int, ...] = _option(
        (128, 128), "model", "hidden widths of the score head", check=_HEAD_WIDTHS
    )
    head_activation: str = _option("silu", "model", "activation of the score head", choices=_ACTIVATIONS)
    frequencies: int = _option(
        16, "model", "frequencies of x the head reads; 0 is the paper's head", check=_NON_NEGATIVE
    )
    frequency_scale: float = _option(3.0, "model", "standard deviation of the frequencies", check=_POSITIVE)

    objective: str = _option(
        "csm",
        "objective and noise",
        "composite score matching or conditional denoising",
        choices=("csm", "denoising"),
        paper=True,
    )
    noise: str = _option(
        "conditional",
        "objective and noise",
        "noise annealing: all levels at once given log sigma, one after the other as in the paper, or "
        "no noise",
        choices=("conditional", "staged", "none"),
    )
    sigma_max: float = _option(
        1.0, "objective and noise", "largest noise level sigma_1", check=_POSITIVE, paper=True
    )
    sigma_min: float = _option(
        0.04, "objective and noise", "smallest noise level sigma_L", check=_POSITIVE, paper=True
    )
    levels: int = _option(10, "objective and noise", "number of noise levels L", check=_POSITIVE, paper=True)
    continuous: bool = _option(
        False, "objective and noise", "conditional form: log-uniform noise levels instead of the L levels"
    )

    optimizer: str = _option("adam", "optimisation", "optimizer", choices=("adam", "adamw"), paper=True)
    lr: float = _option(2e-4, "optimisation", "learning rate", check=_POSITIVE, paper=True)
    schedule: str = _option(
        "constant", "optimisation", "learning-rate schedule", choices=("constant", "cosine")
    )
    final_lr: float = _option(1e-5, "optimisation", "last learning rate of the cosine", check=_NON_NEGATIVE)
    weight_decay: float = _option(0.0, "optimisation", "weight decay", check=_NON_NEGATIVE)
    clip: float = _option(
        10.0, "optimisation", "largest gradient norm; 0 switches clipping off", check=_NON_NEGATIVE
    )
    ema: float = _option(
        0.999, "optimisation", "decay of the averaged weights; 0 switches averaging off", check=_FRACTION
    )
    batch_size: int = _option(128, "optimisation", "global batch size, over all processes", check=_POSITIVE)

    epochs: int = _option(200, "budget", "passes over the training rows", check=_POSITIVE, paper=True)
    steps: int | None = _option(None, "budget", "optimizer steps, instead of --epochs", check=_POSITIVE)
    max_minutes: float | None = _option(
        None,
        "budget",
        "stop after this many minutes of training at the latest; schedules then follow whichever of steps "
        "and time is further on, so that two runs agree only up to the clock",
        check=_POSITIVE,
    )

    validation: float = _option(
        0.0,
        "held-out rows",
        "share of the training rows set aside, after a fixed permutation, to be the rows that training "
        "watches; 0 watches the data's own held-out rows",
        check=_FRACTION,
    )
    patience: int = _option(
        0,
        "held-out rows",
        "end training after this many held-out evaluations without a lower loss; 0 never does",
        check=_NON_NEGATIVE,
    )
    keep: str = _option(
        "last",
        "held-out rows",
        "weights that the trained model has: those of the end, or of the lowest held-out loss",
        choices=("last", "best"),
    )

    finetune_steps: int = _option(
        0,
        "fine-tuning",
        "steps of maximum likelihood after the budget, on -log q at the smallest noise level by quadrature",
        check=_NON_NEGATIVE,
    )
    finetune_lr: float = _option(
        1e-4, "fine-tuning", "learning rate of the fine-tuning, under the same schedule", check=_POSITIVE
    )

    langevin_steps: int = _option(
        20, "sampling", "Langevin steps T per noise level", check=_POSITIVE, paper=True
    )
    step_size: float | None = _option(
        None,
        "sampling",
        "Langevin step size e_0 at the smallest noise level (default 0.2 sigma_L^2)",
        check=_POSITIVE,
    )

    seed: int = _option(0, "run", "seed of weights, batches, noise and dropout", check=_SEED)
    dtype: str = _option(
        "float32", "run", "type of parameters and arithmetic", choices=("float32", "float64", "bfloat16")
    )
    matmul_precision: str = _option(
        "highest", "run", "torch.set_float32_matmul_precision", choices=("highest", "high", "medium")
    )
    log_every: int = _option(50, "run", "steps between lines of log.csv", check=_POSITIVE)
    eval_every: int = _option(500, "run", "steps between held-out evaluations", check=_POSITIVE)
    checkpoint_seconds: float = _option(30.0, "run", "seconds between checkpoints", check=_NON_NEGATIVE)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min}, expected at most sigma_max = {self.sigma_max}")
        if (self.levels == 1) != (self.sigma_min == self.sigma_max):
            raise ValueError(f"levels is {self.levels}, expected 1 exactly when sigma_min equals sigma_max")
        if self.continuous and self.noise != "conditional":
            raise ValueError(f"continuous is set with noise '{self.noise}', expected noise 'conditional'")
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

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        unknown = sorted(set(values) - {item.name for item in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"config has the unknown field '{unknown[0]}'")
        return cls(**values)


#: Settings by name, over the defaults: ``digits`` for scans of 8x8, ``toy`` for 2-D data.
PRESETS: dict[str, dict[str, Any]] = {
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


def kind_of(item: dataclasses.Field) -> tuple[type, str]:
    """The Python type of one value of a field, and its name in words."""
    return _KINDS[str(item.type).removesuffix(" | None")]


def _checked(item: dataclasses.Field, value: Any) -> Any:
    kind, words = kind_of(item)
    annotation, meta = str(item.type), item.metadata
    if value is None and annotation.endswith("| None"):
        return None
    if annotation.startswith("tuple"):
        good = isinstance(value, (tuple, list)) and all(type(v) is int for v in value)
        value = tuple(value) if good else value
    elif kind is float:
        good = type(value) in (int, float) and math.isfinite(value)
        value = float(value) if good else value
    else:
        good = type(value) is kind
    if not good:
        raise ValueError(f"{item.name} is {value!r}, expected {words}")
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"{item.name} is {value!r}, expected one of {', '.join(meta['choices'])}")
    if meta["check"] and not meta["check"][1](value):
        raise ValueError(f"{item.name} is {value!r}, expected {meta['check'][0]}")
    return value


def build_model(config: Config, features: int) -> ARCSM:
    """A freshly initialised AR-CSM for (B, features) data, on the CPU, fixed by ``config.seed``."""
    from . import nn

    order = None
    if config.order == "random":
        order = torch.randperm(features, generator=torch.Generator().manual_seed(config.seed)).tolist()
    noise = None
    if config.noise != "none":
        noise = nn.NoiseSchedule(
            config.sigma_max, config.sigma_min, config.levels, form=config.noise, continuous=config.continuous
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        context_net = nn.MADE(
            features,
            config.hidden,
            config.context_features,
            order=order,
            activation=config.made_activation,
            residual=config.residual,
            dropout=config.dropout,
        )
        head = nn.ScoreHead(
            config.context_features + (config.noise == "conditional"),
            config.head_hidden,
            config.head_activation,
            config.frequencies,
            frequency_scale=config.frequency_scale,
        )
    model = nn.ARCSM(context_net, head, noise=noise, objective=config.objective)
    return model.to(getattr(torch, config.dtype))
