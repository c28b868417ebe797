"""What a transform takes from the training rows: means and deviations, and the grids of columns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .transform import Transform

#: What may be said of the columns to dequantise, and in words.
COLUMNS = re.compile(r"none|auto|\d+(,\d+)*")
COLUMNS_WORDS = "'none', 'auto' or numbers of columns from 0, as in '0,3'"
#: Features that are read together.
_TOGETHER = 64
#: Rows of grey values that are counted together.
_ROWS = 4096
#: Midpoints of u over which the moments of a grey value's logits are taken.
_POINTS = 1024
#: Units of which the values of a column may be whole multiples, the largest first.
_UNITS = sorted({10.0**-k for k in range(10)} | {2.0**-k for k in range(13)}, reverse=True)
#: Probability of taking numbers from anywhere for multiples of a unit.
_BY_CHANCE = 1e-6


def standardisation(rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every feature of rows (N, D), in float64; of a constant one its value and 1."""
    means: list[float] = []
    deviations: list[float] = []
    for first in range(0, rows.shape[1], _TOGETHER):
        x = rows[:, first : first + _TOGETHER].astype(np.float64)
        low, high = x.min(0), x.max(0)
        constant, mean = low == high, x.mean(0)
        mean = np.where(constant, low, mean + (x - mean).mean(0))
        x -= mean
        # Of numbers around 1, as the squares of very large or small ones do not exist.
        spread = np.where(constant, 1.0, np.abs(x).max(0))
        deviation = spread * np.sqrt(np.square(x / spread).mean(0))
        means += mean.tolist()
        deviations += np.where(deviation > 0, deviation, spread).tolist()
    return tuple(means), tuple(deviations)


def with_logits(transform: Transform, rows: np.ndarray, alpha: float) -> Transform:
    """The transform of grey values by logits, by rows (N, D) uint8: one mean and deviation for all.

    They are those of logits with all u (midpoint rule), so that they depend on no seed. One pair for all
    features, which have one unit: a pixel that is nearly always black would otherwise have values many
    deviations out, and the pixels that tell most the coarsest noise.

    Raises:
        ValueError: alpha is no number in (0, 0.5).
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"logit_alpha is {alpha}, expected a number in [0, 0.5)")
    levels = transform.grey_levels
    u = (np.arange(_POINTS) + 0.5) / _POINTS
    share = alpha + (1 - 2 * alpha) * (np.arange(levels)[:, None] + u) / levels
    logits = np.log(share) - np.log1p(-share)
    parts = (rows[first : first + _ROWS].ravel() for first in range(0, len(rows), _ROWS))
    weight = sum(np.bincount(part, minlength=levels) for part in parts) / rows.size
    mean = float(weight @ logits.mean(1))
    deviation = float(np.sqrt(weight @ np.square(logits - mean).mean(1)))
    features = transform.features
    return replace(transform, logit_alpha=alpha, shift=(mean,) * features, scale=(deviation,) * features)


def dequantised(transform: Transform, rows: np.ndarray, columns: Sequence[int] | None) -> Transform:
    """The transform of a table with uniform noise of a grid's step in columns.

    Means and deviations become those of the values with their noise.

    Args:
        transform: of numbers.
        rows: (N, D), float32 or float64.
        columns: numbers from 0; None for those of whole numbers, and of others on a grid where on average two
            rows or more have a value: noise of a grid that is finer does nothing.

    Raises:
        ValueError: there is no such column, or its values are not on a grid.
    """
    features = rows.shape[1]
    steps, origins = [0.0] * features, [0.0] * features
    for column in range(features) if columns is None else columns:
        if column >= features:
            raise ValueError(f"dequantize names column {column}, expected columns from 0 to {features - 1}")
        values = np.unique(rows[:, column])
        step, repeat = grid_step(values), 2 * len(values) <= len(rows)
        if columns is None and not repeat and (values % 1).any():
            continue
        if step:
            steps[column], origins[column] = step, float(values[0])
        elif columns is not None:
            raise ValueError(
                f"dequantize names column {column}, whose {len(values)} values from {values[0]:g} to "
                f"{values[-1]:g} are on no grid, expected whole numbers or multiples of a decimal or binary "
                "fraction"
            )
    if not any(steps):
        return transform
    noisy, shift, scale = np.array(steps), np.array(transform.shift), np.array(transform.scale)
    spread = np.where((noisy > 0) & (rows.min(0) == rows.max(0)), 0.0, scale)
    deviation = np.hypot(spread, noisy / np.sqrt(12))
    found = replace(transform, step=tuple(steps), origin=tuple(origins))
    return replace(found, shift=tuple((shift + noisy / 2).tolist()), scale=tuple(deviation.tolist()))


def grid_step(values: np.ndarray) -> float:
    """The largest step such that values (n,), distinct and sorted, lie whole steps apart; 0 without one.

    Steps are whole multiples of some 10^-k or 2^-k, and values the numbers of their type, float32 or float64,
    that are nearest to a multiple. A single value has step 1 if it is whole.
    """
    rounding, values = np.finfo(values.dtype).eps / 2, values.astype(np.float64)
    whole = values % 1 == 0
    if len(values) == 1:
        return float(whole[0])
    for unit in _UNITS:
        with np.errstate(over="ignore", invalid="ignore"):
            multiples = values / unit
            # Whole numbers are not rounded, nor are binary units and division by them.
            divided = 0.0 if math.frexp(unit)[0] == 0.5 else 2.0**-52
            allowed = np.abs(multiples) * (np.where(whole, 0.0, rounding) + divided)
            off, chance = np.abs(multiples - multiples.round()), min(2 * allowed.mean(), 1.0) ** len(values)
        if np.abs(multiples).max() > 2**53 or chance > _BY_CHANCE:
            return 0.0
        if (off <= allowed).all():
            return int(np.gcd.reduce(np.diff(multiples.round().astype(np.int64)))) * unit
    return 0.0
