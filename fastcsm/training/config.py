"""Every hyper-parameter of a run, declared once: defaults, checks and help come from the same place.

Here are the options of any run; those of a model, its presets and how it is built are in ``recipes/``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..data.fitting import COLUMNS, COLUMNS_WORDS
from ..models.model import Model

_Check = tuple[str, Callable[[Any], bool]]
POSITIVE: _Check = ("a positive number", lambda v: v > 0)
NON_NEGATIVE: _Check = ("zero or a positive number", lambda v: v >= 0)
FRACTION: _Check = ("a number in [0, 1)", lambda v: 0 <= v < 1)
_LEVELS: _Check = ("a number in 2..256", lambda v: 2 <= v <= 256)
_ALPHA: _Check = ("a number in [0, 0.5)", lambda v: 0 <= v < 0.5)
_COLUMNS: _Check = (COLUMNS_WORDS, lambda v: COLUMNS.fullmatch(v) is not None)
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


def options_of(group: str) -> Callable[..., Any]:
    """:func:`option` for one group: (default, help, check=None, **keywords)."""
    return lambda default, help, check=None, **more: option(default, group, help, check=check, **more)


_data, _optimisation, _budget = options_of("data"), options_of("optimisation"), options_of("budget")
_held_out, _tuning, _run = options_of("held-out rows"), options_of("fine-tuning"), options_of("run")


@dataclass(frozen=True)
class RunConfig:
    """Hyper-parameters of a training run. Raises ValueError naming the first field that is out of range.

    Attributes:
        model: the word for the kind of model.
        presets: settings by name, over the defaults.
    """

    model: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]]

    data: str = _data("digits", "data set name, or path of a .npz, .npy or .csv file")
    grey_levels: int = _data(256, "grey levels of uint8 files", _LEVELS)
    logit_alpha: float = _data(
        0.0,
        "alpha of logits of grey values, standardised: 1e-6 for MNIST, 0.05 for CIFAR-10 where figures are "
        "published; 0 maps grey values to [-1, 1]",
        _ALPHA,
    )
    dequantize: str = _data(
        "none",
        "columns of a table that get uniform noise of their grid's step: auto for whole numbers and for "
        "decimals that repeat, or numbers of columns from 0, as 0,3",
        _COLUMNS,
    )

    optimizer: str = _optimisation("adam", "optimizer", choices=("adam", "adamw"), paper=True)
    lr: float = _optimisation(2e-4, "learning rate", POSITIVE, paper=True)
    warmup_steps: int = _optimisation(
        0, "first steps, over which the learning rate rises to what it would be", NON_NEGATIVE
    )
    schedule: str = _optimisation("constant", "learning-rate schedule", choices=("constant", "cosine"))
    final_lr: float = _optimisation(1e-5, "last learning rate of the cosine", NON_NEGATIVE)
    weight_decay: float = _optimisation(0.0, "weight decay", NON_NEGATIVE)
    clip: float = _optimisation(10.0, "largest gradient norm; 0 switches clipping off", NON_NEGATIVE)
    ema: float = _optimisation(0.999, "decay of the averaged weights; 0 switches averaging off", FRACTION)
    batch_size: int = _optimisation(128, "global batch size, over all processes", POSITIVE)

    epochs: int = _budget(200, "passes over the training rows", POSITIVE, paper=True)
    steps: int | None = _budget(None, "optimizer steps, instead of --epochs", POSITIVE)
    max_minutes: float | None = _budget(
        None,
        "stop after this many minutes of training at the latest; schedules then follow whichever of steps "
        "and time is further on, so that two runs agree only up to the clock",
        POSITIVE,
    )

    validation: float = _held_out(
        0.0,
        "share of the training rows set aside, after a fixed permutation, to be the rows that training "
        "watches; 0 watches the data's own held-out rows",
        FRACTION,
    )
    patience: int = _held_out(
        0,
        "end training after this many held-out evaluations without a lower loss; 0 never does",
        NON_NEGATIVE,
    )
    keep: str = _held_out(
        "last",
        "weights that the trained model has: those of the end, or of the lowest held-out loss",
        choices=("last", "best"),
    )

    finetune_steps: int = _tuning(
        0,
        "steps of maximum likelihood after the budget, on -log q at the smallest noise level by quadrature",
        NON_NEGATIVE,
    )
    finetune_lr: float = _tuning(1e-4, "learning rate of the fine-tuning, under the same schedule", POSITIVE)

    seed: int = _run(0, "seed of weights, batches, noise and dropout", _SEED)
    dtype: str = _run(
        "float32", "type of parameters and arithmetic", choices=("float32", "float64", "bfloat16")
    )
    matmul_precision: str = _run(
        "highest", "torch.set_float32_matmul_precision", choices=("highest", "high", "medium")
    )
    log_every: int = _run(50, "steps between lines of log.csv", POSITIVE)
    eval_every: int = _run(500, "steps between held-out evaluations", POSITIVE)
    checkpoint_seconds: float = _run(30.0, "seconds between checkpoints", NON_NEGATIVE)

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
