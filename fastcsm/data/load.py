"""Data sets by name or from a file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from . import readers, toys
from .dataset import Dataset
from .fitting import COLUMNS, COLUMNS_WORDS, dequantised, with_logits
from .transform import Transform

_TOY_TRAIN, _TOY_HELD_OUT = 50_000, 10_000
_DIGITS_TRAIN = 1500


def names() -> list[str]:
    """The built-in data sets."""
    return [*_BUILT_IN, *toys.names()]


def load(
    source: str | Path,
    *,
    grey_levels: int = 256,
    logit_alpha: float = 0.0,
    dequantize: str = "none",
    validation: float = 0.0,
    training: bool = True,
) -> Dataset:
    """Load a built-in data set or a file.

    Args:
        source: ``digits`` (scikit-learn's 1,797 scans of 8x8; rows 0-1499 train, the rest held out), a 2-D
            toy (see :func:`names`), or the path of a ``.npz``, ``.npy`` or ``.csv`` file. In a .npz the
            training split is ``train_x`` (or ``x``), held-out splits are ``val_x`` and ``test_x``; without
            them every tenth row, after a fixed permutation, is held out. Other axes are flattened. uint8
            values are dequantised to [-1, 1]; other numbers are standardised per feature with the mean and
            deviation of the train split, in float64. A .csv is a table of numbers as
            :func:`fastcsm.data.text.read_csv` reads it.
        grey_levels: number of grey levels of uint8 files.
        logit_alpha: alpha of logits of grey values (:class:`fastcsm.data.Transform`), standardised with the
            train split: 1e-6 for MNIST and 0.05 for CIFAR-10 as in Papamakarios et al. 2017; 0 for none.
        dequantize: columns of a table that get uniform noise of the step of the grid that the train split's
            values lie on: "none", "auto" for whole numbers and for others that repeat, or columns' numbers
            from 0, as "0,3".
        validation: share in [0, 1) of the training rows, the last ones of a fixed permutation, that is taken
            out of ``train`` and becomes ``val``; 0 leaves both as they are.
        training: whether there must be training rows. Otherwise a file may hold test or validation rows
            alone, in both held-out splits; ``train`` is then empty.

    Raises:
        ValueError: unknown name, unreadable or non-numeric file, NaN or infinite values, whole numbers that
            float64 does not hold, no rows, validation out of range or leaving no row on one side, logits of
            other rows than grey values, or a column that is not there or on no grid.
        FileNotFoundError: no such file.
    """
    found = _load(source, grey_levels, training)
    found = replace(found, transform=_transform(found, logit_alpha, dequantize))
    if not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}, expected a number in [0, 1)")
    rows = len(found.train)
    if validation == 0 or rows == 0:
        return found
    count = max(1, round(validation * rows))
    if count >= rows:
        raise ValueError(
            f"validation is {validation} of {rows} training rows, expected to leave at least one"
        )
    order = np.random.RandomState(0).permutation(rows)
    return replace(found, train=found.train[order[:-count]], val=found.train[order[-count:]])


def _load(source: str | Path, grey_levels: int, training: bool) -> Dataset:
    name = str(source)
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    if name in toys.names():
        return _toy(name)
    path = Path(source)
    if path.suffix.lower() not in readers.SUFFIXES:
        raise ValueError(
            f"data is '{name}', expected one of {', '.join(names())} or the path of a .npz, .npy or .csv file"
        )
    if not path.is_file():
        raise FileNotFoundError(f"data: no file '{name}'")
    return readers.read(name, grey_levels, training)


def _transform(found: Dataset, logit_alpha: float, dequantize: str) -> Transform:
    """That of the data set, with the logits or the dequantised columns that are asked for."""
    rows, transform = (found.train if len(found.train) else found.test).numpy(), found.transform
    if logit_alpha:
        if not transform.grey_levels:
            raise ValueError(
                f"logit_alpha is {logit_alpha} for '{found.name}', expected 0 for other than grey values"
            )
        transform = with_logits(transform, rows, logit_alpha)
    if dequantize == "none":
        return transform
    if transform.grey_levels:
        raise ValueError(f"dequantize is '{dequantize}' for grey values, which always are: expected 'none'")
    if not COLUMNS.fullmatch(dequantize):
        raise ValueError(f"dequantize is '{dequantize}', expected {COLUMNS_WORDS}")
    columns = None if dequantize == "auto" else [int(number) for number in dequantize.split(",")]
    return dequantised(transform, rows, columns)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "data 'digits' is embedded in scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    rows = torch.from_numpy(load_digits().data.astype(np.uint8))
    train, held_out = rows[:_DIGITS_TRAIN], rows[_DIGITS_TRAIN:]
    return Dataset("digits", train, held_out, held_out, Transform((8, 8), 17))


def _toy(name: str) -> Dataset:
    points = toys.sample(name, _TOY_TRAIN + _TOY_HELD_OUT, np.random.default_rng(0)).astype(np.float32)
    rows = torch.from_numpy(points)
    held_out = rows[_TOY_TRAIN:]
    return Dataset(name, rows[:_TOY_TRAIN], held_out, held_out, Transform((2,), 0, (0.0, 0.0), (1.0, 1.0)))


#: Data sets by name, beside the toys.
_BUILT_IN: dict[str, Callable[[], Dataset]] = {"digits": _digits}
