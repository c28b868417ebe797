"""Every hyper-parameter of a run, declared once: defaults, checks and help come from the same place.

Here are the options of any run; those of a model, its presets and how it is built are in ``recipes/``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..models.model import Model

_Check = tuple[str, Callable[[Any], bool]]
POSITIVE: _Check = ("a positive number", lambda v: v > 0)
NON_NEGATIVE: _Check = ("zero or a positive number", lambda v: v >= 0)
FRACTION: _Check = ("a number in [0, 1)", lambda v: 0 <= v < 1)
_LEVELS: _Check = ("a number in 2..256", lambda v: 2 <= v <= 256)
_SEED: _Check = ("a number in 0..2^63-1", lambda v: 0 <= v < 2**63)

_KINDS: dict[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "a text"),
    "bool": (bool, "true or false"),
    "tuple[int, ...]": (int, "whole numbers"),
}


def option(
    default: Any,
    group: str,
    help: str,
    *,
    check: _Check | None = None,
    choices: tuple[str, ...] | None = None,
    paper: bool = False,
) -> Any:
    """A field of a configuration: its default, its group and help on the command line, and its check."""
    return field(
        default=default,
        metadata={"group": group, "help": help, "check": check, "choices": choices, "paper": paper},
    )


@dataclass(frozen=True)
class RunConfig:
    """Hyper-parameters of a training run. Raises ValueError naming the first field that is out of range.

    Attributes:
        model: the word for the kind of model.
        presets: settings by name, over the defaults.
    """

    model: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]]

    data: str = option("digits", "data", "data set name, or path of a .npz, .npy or .csv file")
    grey_levels: int = option(256, "data", "grey levels of uint8 files", check=_LEVELS)

    optimizer: str = option("adam", "optimisation", "optimizer", choices=("adam", "adamw"), paper=True)
    lr: float = option(2e-4, "optimisation", "learning rate", check=POSITIVE, paper=True)
    schedule: str = option(
        "constant", "optimisation", "learning-rate schedule", choices=("constant", "cosine")
    )
    final_lr: float = option(1e-5, "optimisation", "last learning rate of the cosine", check=NON_NEGATIVE)
    weight_decay: float = option(0.0, "optimisation", "weight decay", check=NON_NEGATIVE)
    clip: float = option(
        10.0, "optimisation", "largest gradient norm; 0 switches clipping off", check=NON_NEGATIVE
    )
    ema: float = option(
        0.999, "optimisation", "decay of the averaged weights; 0 switches averaging off", check=FRACTION
    )
    batch_size: int = option(128, "optimisation", "global batch size, over all processes", check=POSITIVE)

    epochs: int = option(200, "budget", "passes over the training rows", check=POSITIVE, paper=True)
    steps: int | None = option(None, "budget", "optimizer steps, instead of --epochs", check=POSITIVE)
    max_minutes: float | None = option(
        None,
        "budget",
        "stop after this many minutes of training at the latest; schedules then follow whichever of steps "
        "and time is further on, so that two runs agree only up to the clock",
        check=POSITIVE,
    )

    validation: float = option(
        0.0,
        "held-out rows",
        "share of the training rows set aside, after a fixed permutation, to be the rows that training "
        "watches; 0 watches the data's own held-out rows",
        check=FRACTION,
    )
    patience: int = option(
        0,
        "held-out rows",
        "end training after this many held-out evaluations without a lower loss; 0 never does",
        check=NON_NEGATIVE,
    )
    keep: str = option(
        "last",
        "held-out rows",
        "weights that the trained model has: those of the end, or of the lowest held-out loss",
        choices=("last", "best"),
    )

    finetune_steps: int = option(
        0,
        "fine-tuning",
        "steps of maximum likelihood after the budget, on -log q at the smallest noise level by quadrature",
        check=NON_NEGATIVE,
    )
    finetune_lr: float = option(
        1e-4, "fine-tuning", "learning rate of the fine-tuning, under the same schedule", check=POSITIVE
    )

    seed: int = option(0, "run", "seed of weights, batches, noise and dropout", check=_SEED)
    dtype: str = option(
        "float32", "run", "type of parameters and arithmetic", choices=("float32", "float64", "bfloat16")
    )
    matmul_precision: str = option(
        "highest", "run", "torch.set_float32_matmul_precision", choices=("highest", "high", "medium")
    )
    log_every: int = option(50, "run", "steps between lines of log.csv", check=POSITIVE)
    eval_every: int = option(500, "run", "steps between held-out evaluations", check=POSITIVE)
    checkpoint_seconds: float = option(30.0, "run", "seconds between checkpoints", check=NON_NEGATIVE)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))

    def build(self, features: int) -> Model:
        """A freshly initialised model for (B, features) data, on the CPU, fixed by ``seed``."""
        raise NotImplementedError

    def sample_options(self, method: str) -> dict[str, Any]:
        """Options of ``model.sample`` by this method that belong to the run."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return {"model": self.model} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of :meth:`to_dict`."""
        values = {name: value for name, value in values.items() if name != "model"}
        unknown = sorted(set(values) - {item.name for item in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"config has the unknown field '{unknown[0]}'")
        return cls(**values)


def kind_of(item: dataclasses.Field) -> tuple[type, str]:
    """The Python type of one value of a field, and its name in words."""
    return _KINDS[annotation_of(item).removesuffix(" | None")]


def annotation_of(item: dataclasses.Field) -> str:
    """A field's annotation as it is written."""
    return item.type.__name__ if isinstance(item.type, type) else str(item.type)


def _checked(item: dataclasses.Field, value: Any) -> Any:
    kind, words = kind_of(item)
    annotation, meta = annotation_of(item), item.metadata
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
