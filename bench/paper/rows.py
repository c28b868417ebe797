"""Real data sets as columns of numbers that have a density, in the splits they come with.

Values on a grid get uniform noise of the grid's step, columns are standardised by the training rows in
float64, and ``offset`` says what turns nats of these rows into those that are published.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcsm.data import Dataset, Transform

#: Of the logit transform of grey values (Papamakarios et al. 2017).
ALPHA = 1e-6
#: Rows whose columns are computed together.
_TOGETHER = 4096
#: Share of the gaps between neighbouring values of a column that a grid's step has at least; distance from a
#: grid, in steps, of a row that lies on it; and share of the rows that do.
_COMMON, _OFF_GRID, _NEARLY_ALL = 0.05, 0.01, 0.95
#: Rows of the digits: training ones, of which the last are for validation; the others are held out.
_DIGITS, _DIGITS_VALIDATION, _MNIST_VALIDATION = 1500, 150, 10_000

#: Rows (B, K) as a file has them and uniforms (B, K) on [0, 1) to columns (B, D), float64.
Columns = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rows(Dataset):
    """Splits of rows as a file has them (N, K); what is read of them has D columns in model space.

    Args:
        columns: makes columns of rows.
        strange: test rows (M, K) of another kind than the others; there may be none.
        offset: nats to add to -log q in model space.
    """

    columns: Columns
    strange: Tensor
    offset: float = 0.0

    @property
    def features(self) -> int:
        return self.transform.features

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        return self._model_space(self.train[indices], generator)

    def held_out(self, split: str, seed: int, limit: int | None = None) -> Tensor:
        rows = {"train": self.train, "val": self.val, "test": self.test, "strange": self.strange}[split]
        return self._model_space(rows[:limit], torch.Generator().manual_seed(seed))

    def _model_space(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(rows.shape, generator=generator, dtype=torch.float32)
        return self.transform.encode(self.columns(rows, uniform), uniform)


def standardised(name: str, splits: tuple[Tensor, ...], columns: Columns) -> Rows:
    """Rows of (train, val, test, strange) whose columns have the training rows' mean 0 and deviation 1."""
    train, generator = splits[0], torch.Generator().manual_seed(0)
    first, moments, count = None, torch.zeros(2, 1, dtype=torch.float64), len(train)
    for part in train.split(_TOGETHER):
        x = columns(part, torch.rand(part.shape, generator=generator))
        first = x[0] if first is None else first  # about which squares lose no digits
        moments = moments + torch.stack([(x - first).sum(0), (x - first).square().sum(0)]) / count
    mean, square = moments
    scale = (square - mean.square()).clamp(min=0.0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    transform = Transform((len(mean),), 0, tuple((mean + first).tolist()), tuple(scale.tolist()))
    _, val, test, strange = splits
    return Rows(name, train, val, test, transform, columns, strange)


def steps(rows: np.ndarray) -> np.ndarray:
    """The step (K,) of the grid on which the values of a column of rows (N, K) lie, 0 where there is none.

    It is the widest gap that is common among neighbouring values and of which nearly all rows are multiples
    apart: of a few rows in between, as of measurements on a finer grid, the noise would leave a comb.
    """
    return np.array([_step(*np.unique(column, return_counts=True)) for column in decimal(rows).T])


def _step(values: np.ndarray, counts: np.ndarray) -> float:
    gaps, often = np.unique(np.diff(values).round(9), return_counts=True)
    for gap in gaps[often >= _COMMON * often.sum()][::-1]:
        place = (values - values[counts.argmax()]) / gap if gap > 0 else values * np.nan
        if counts[np.abs(place - place.round()) < _OFF_GRID].sum() >= _NEARLY_ALL * counts.sum():
            return float(gap)
    return 0.0


def decimal(rows: np.ndarray) -> np.ndarray:
    """Rows in float64 with the shortest decimal numbers that float32 rows stand for."""
    return rows.astype(str).astype(np.float64) if rows.dtype == np.float32 else rows.astype(np.float64)


def table(file: Path, usual: int | None = None) -> Rows:
    """A table's splits; with ``usual`` the rows of that class alone, beside the test rows of the other."""
    with np.load(file, allow_pickle=False) as content:
        rows = {split: decimal(content[f"{split}_x"]) for split in ("train", "val", "test")}
        strange = rows["test"][:0]
        if usual is not None:
            kinds = {split: content[f"{split}_y"] == usual for split in rows}
            strange = rows["test"][~kinds["test"]]
            rows = {split: values[kinds[split]] for split, values in rows.items()}
    step = torch.from_numpy(steps(rows["train"]))
    splits = tuple(torch.from_numpy(values) for values in (*rows.values(), strange))
    return standardised(file.stem, splits, lambda x, uniform: x.double() + step * uniform)


def patches(file: Path) -> Rows:
    """Grey patches, dequantised, over 256, less the patch's mean, without the last pixel."""

    def columns(x: Tensor, uniform: Tensor) -> Tensor:
        grey = (x.double() + uniform) / 256
        return (grey - grey.mean(1, keepdim=True))[:, :-1]

    with np.load(file, allow_pickle=False) as content:
        splits = [_flat(content[f"{split}_x"]) for split in ("train", "val", "test")]
    return standardised(file.stem, (*splits, splits[2][:0]), columns)


def digits(file: Path) -> Rows:
    """Scans of 8x8 with 17 grey levels, dequantised, on [-1, 1]."""
    with np.load(file, allow_pickle=False) as content:
        x = _flat(content["x"])
    train, test = x[:_DIGITS], x[_DIGITS:]
    splits = train[:-_DIGITS_VALIDATION], train[-_DIGITS_VALIDATION:], test
    ones = (1.0,) * x.shape[1]
    return Rows(
        file.stem,
        *splits,
        Transform((x.shape[1],), 0, (0.0,) * len(ones), ones),
        lambda rows, uniform: (rows.double() + uniform) * (2 / 17) - 1,
        test[:0],
    )


def mnist(file: Path) -> Rows:
    """MNIST by logit(a + (1 - 2 a) (v + u) / 256); ``offset`` leads to nats of that space, as published."""

    def columns(x: Tensor, uniform: Tensor) -> Tensor:
        return torch.logit(ALPHA + (1 - 2 * ALPHA) * (x.double() + uniform) / 256)

    with np.load(file, allow_pickle=False) as content:
        train, test = _flat(content["train_x"]), _flat(content["test_x"])
    splits = train[:-_MNIST_VALIDATION], train[-_MNIST_VALIDATION:], test, test[:0]
    found = standardised(file.stem, splits, columns)
    return dataclasses.replace(found, offset=sum(map(math.log, found.transform.scale)))


def _flat(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), -1))
