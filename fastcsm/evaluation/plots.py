"""Pictures of runs and samples, drawn with matplotlib and written atomically."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_file
from ..data import Transform


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches, drawn without a display.

    Raises:
        ImportError: there is no matplotlib that can be imported.
    """
    try:
        canvas, figure_of = _matplotlib()
    except Exception as error:
        why, advice = f"which cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})", ""
        if getattr(error, "name", None) == "matplotlib":
            why, advice = "which is not installed", ": pip install matplotlib"
        raise ImportError(f"pictures need matplotlib, {why}{advice}") from None
    figure = figure_of(figsize=(width, height), dpi=150, layout="constrained")
    canvas(figure)
    return figure


def _matplotlib() -> tuple[Any, Any]:
    """Matplotlib's canvas without a display and its figure, whatever backend the environment names."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except Exception as error:
        named = os.environ.get("MPLBACKEND")
        if not named or "matplotlib" in (getattr(error, "name", None), *sys.modules):
            raise
        warnings.warn(f"MPLBACKEND is '{named}', which matplotlib refuses: drawing by agg", stacklevel=2)
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # parts of an import that failed
        os.environ["MPLBACKEND"] = "agg"
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
        finally:
            os.environ["MPLBACKEND"] = named
    from matplotlib.figure import Figure

    return FigureCanvasAgg, Figure


def _write(figure: Any, path: str | Path) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def loss_curve(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Training and held-out loss per dimension against steps, from the rows of a log.csv."""
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], lw=0.9, color="#9ab", label="training")
    held_out = [(r["step"], r["held_out"]) for r in rows if r["held_out"] is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", ms=3, lw=1.4, color="#c30", label="held out")
    later = [r["loss"] for r in rows[len(rows) // 20 :]] + [loss for _, loss in held_out[1:]]
    if later:
        low, high = min(later), float(np.quantile(later, 0.98))
        margin = 0.08 * (high - low) + 1e-6
        axes.set_ylim(low - margin, high + margin)
    for change in [b["step"] for a, b in itertools.pairwise(rows) if a["stage"] != b["stage"]]:
        axes.axvline(change, lw=0.5, color="0.8")
    axes.set_xlabel("step")
    axes.set_ylabel("loss per dimension")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _write(figure, path)


def samples(
    drawn: np.ndarray,
    transform: Transform,
    path: str | Path,
    *,
    data: np.ndarray | None = None,
    titles: tuple[str, str] = ("data", "samples"),
) -> None:
    """A picture of samples, beside as many rows of data where these are given.

    Images become a grid, two-dimensional points a scatter plot, other tables histograms of the first
    features.

    Args:
        drawn: (n, *shape), raw values or values between them (unrounded grey values).
        transform: of the data set.
        path: PNG file.
        data: (n, *shape).
        titles: of the data's panel and of the samples'.
    """
    panels = [(titles[1], drawn)] if data is None else [(titles[0], data), (titles[1], drawn)]
    if transform.is_image:
        _grids(panels, transform, path)
    elif transform.features == 2:
        _scatters(panels, path)
    else:
        _histograms(panels, path)


def _grids(panels: list[tuple[str, np.ndarray]], transform: Transform, path: str | Path) -> None:
    height, width = transform.shape[:2]
    columns = int(np.ceil(np.sqrt(len(panels[0][1]))))
    size = 4.2
    figure = new_figure(size * len(panels), size * 1.06)
    top = transform.grey_levels - 1 if transform.grey_levels else max(float(p.max()) for _, p in panels)
    for number, (title, images) in enumerate(panels, start=1):
        rows = -(-len(images) // columns)
        colours = images.shape[3:] or (1,)
        grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *colours), 0.5, dtype=np.float32)
        for index, image in enumerate(images):
            y, x = index // columns * (height + 1), index % columns * (width + 1)
            grid[y : y + height, x : x + width] = np.clip(image.reshape(height, width, -1) / top, 0, 1)
        axes = figure.add_subplot(1, len(panels), number)
        axes.imshow(grid.squeeze(-1) if colours == (1,) else grid, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.axis("off")
    _write(figure, path)


def _scatters(panels: list[tuple[str, np.ndarray]], path: str | Path) -> None:
    figure = new_figure(4.2 * len(panels), 4.4)
    reference = panels[0][1]
    low, high = np.quantile(reference, 0.002, axis=0), np.quantile(reference, 0.998, axis=0)
    margin = 0.15 * (high - low) + 1e-6
    for number, (title, points) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.scatter(points[:, 0], points[:, 1], s=2, lw=0, alpha=0.5, color="#146")
        axes.set(title=title, xlim=(low[0] - margin[0], high[0] + margin[0]), aspect=_aspect(high - low))
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    _write(figure, path)


def _aspect(sizes: np.ndarray) -> str:
    """Of a picture of two columns: the same on both axes, unless one would then be a line."""
    return "equal" if sizes.max() <= 4 * sizes.min() else "auto"


def density(
    values: np.ndarray, corners: np.ndarray, data: np.ndarray, drawn: np.ndarray, path: str | Path
) -> None:
    """A two-dimensional density, data and samples side by side.

    Args:
        values: (rows of y, columns of x), at the points of a regular grid.
        corners: (2, 2), the grid's first and last point.
        data, drawn: (n, 2).
        path: PNG file.
    """
    figure = new_figure(12.6, 4.4)
    extent = (corners[0, 0], corners[1, 0], corners[0, 1], corners[1, 1])
    axes = figure.add_subplot(1, 3, 1)
    bright = float(np.quantile(values, 0.998))  # a spike of a few pixels must not hide the rest
    axes.imshow(
        values, origin="lower", extent=extent, cmap="magma", vmin=0, vmax=bright, interpolation="bilinear"
    )
    aspect = _aspect(corners[1] - corners[0])
    axes.set(title="density", aspect=aspect)
    for number, (title, points) in enumerate((("data", data), ("samples", drawn)), start=2):
        axes = figure.add_subplot(1, 3, number)
        axes.scatter(points[:, 0], points[:, 1], s=2, lw=0, alpha=0.5, color="#146")
        axes.set(title=title, aspect=aspect, xlim=extent[:2], ylim=extent[2:])
    _write(figure, path)


def _histograms(panels: list[tuple[str, np.ndarray]], path: str | Path) -> None:
    flat = [(title, values.reshape(len(values), -1)[:, :12]) for title, values in panels]
    count = flat[0][1].shape[1]
    columns = min(4, count)
    figure = new_figure(2.6 * columns, 2.1 * -(-count // columns))
    for feature in range(count):
        axes = figure.add_subplot(-(-count // columns), columns, feature + 1)
        low, high = np.quantile(flat[0][1][:, feature], [0.005, 0.995])
        bins = np.linspace(low, high if high > low else low + max(1.0, 1e-6 * abs(low)), 40)
        for title, values in flat:
            axes.hist(values[:, feature], bins, density=True, histtype="step", label=title)
        axes.set_title(f"feature {feature}", fontsize=8)
        axes.tick_params(labelsize=6)
        axes.set_yticks([])
    figure.axes[0].legend(fontsize=6, frameon=False)
    _write(figure, path)
