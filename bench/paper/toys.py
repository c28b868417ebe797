"""Densities of the 2-D toys beside the truth: ``python bench/paper/toys.py``.

Each toy's density with noise sigma_L is known (``fastcsm.data.toys.log_density``), so that the divergence of
the model's density from it is too: KL = E[log p(x) - log q(x)] over held-out points with that noise, in nats.
With --baseline, a MADE with 10 logistics of more parameters, trained by likelihood on the same noisy points
for as many steps, stands beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcsm import data
from fastcsm.atomic import atomic_file
from fastcsm.bench.harness.report import markdown
from fastcsm.bench.paper import common
from fastcsm.data import toys
from fastcsm.evaluation import log_densities, plots
from fastcsm.nn import ARCSM
from fastcsm.training import PRESETS, Config

SETTINGS = PRESETS["toy"] | {"eval_every": 2000}
#: Level at which the flow density begins: about the deviation of the toys, where conditionals are smooth.
BASE = 0.5
#: Of the baseline.
HIDDEN = (176, 176, 176)
#: Held-out points.
POINTS = 4000
#: Side of the square that holds all mass, and spacing of the grid on which densities are summed.
SIDE, SPACING = 1.35, 0.015


def line() -> torch.Tensor:
    return torch.arange(-SIDE, SIDE + SPACING / 2, SPACING)


def on_grid(model: ARCSM, method: str, base: float | None) -> torch.Tensor:
    """The model's density (points of x_1, points of x_2); q(x_1) is evaluated once a line."""
    rows, densities = model.conditionals(method, base=base), []
    with torch.no_grad():
        for first in line():
            x = torch.stack([first.expand_as(line()), line()], 1)
            context = model.context_net(x)
            log_first = rows.log_density(context[:1, 0], x[:1, 0]).log_density
            log_second = rows.log_density(context[:, 1], x[:, 1]).log_density
            densities.append((log_first + log_second).double().exp())
    return torch.stack(densities)


def divergence(truth: torch.Tensor, log_q: torch.Tensor) -> dict[str, float]:
    return common.mean_and_error(truth - log_q.double())


def measure(
    name: str, settings: dict[str, Any], runs: Path, baseline: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = Config(data=name, **settings)
    toy, sigma = data.load(name), config.sigma_min
    x, points = common.noisy(toy, sigma, limit=POINTS), torch.cartesian_prod(line(), line())
    truth = toys.log_density(name, x, sigma)
    model, done = common.trained(config, toy, runs / f"{name}-{config.objective}")
    row: dict[str, Any] = {"training": done}
    side = len(line())
    pictures = {"truth": toys.log_density(name, points, sigma).exp().reshape(side, side)}
    for method in ("flow", "quadrature"):
        base = BASE if method == "flow" else None
        found = log_densities(model, x, method, base=base, progress=common.report(method))
        pictures[method] = on_grid(model, method, base)
        row[method] = {
            "divergence": divergence(truth, found.log_density.sum(1)),
            "largest_error": found.error.sum(1).max().item(),
            "diverged": int(found.log_density.isnan().any(1).sum()),
            "mass": (pictures[method].sum() * SPACING**2).item(),
        }
    if baseline:
        beside = common.MixtureConfig.beside(config, hidden=HIDDEN, sigma=sigma)
        mixture, done = common.trained(beside, toy, runs / f"{name}-mixture")
        with torch.no_grad():
            row["mixture"] = {"training": done, "divergence": divergence(truth, mixture.log_prob(x))}
            pictures["mixture"] = mixture.log_prob(points).double().exp().reshape(side, side)
    images = {key: value.T.numpy() for key, value in pictures.items()}
    images["samples"] = model.sample(4000, "flow", seed=0, base=BASE).numpy()
    return row, images


def draw(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One row a toy: the true density, the model's, the mixture's, and samples."""
    titles = {
        "truth": "true density",
        "flow": "AR-CSM, flow",
        "quadrature": "AR-CSM, quadrature",
        "mixture": "MADE, 10 logistics",
    }
    titles = {key: title for key, title in titles.items() if key in next(iter(found.values()))}
    columns = len(titles) + 1
    figure = plots.new_figure(2.6 * columns, 2.6 * len(found))
    for row, (name, images) in enumerate(found.items()):
        for column, (key, title) in enumerate(titles.items()):
            axes = figure.add_subplot(len(found), columns, columns * row + column + 1)
            top = images["truth"].max()
            axes.imshow(images[key], origin="lower", extent=(-SIDE, SIDE) * 2, cmap="magma", vmin=0, vmax=top)
            axes.set(xticks=[], yticks=[])
            axes.set_title(title if row == 0 else "", fontsize=9)
            axes.set_ylabel(name if column == 0 else "", fontsize=9)
        axes = figure.add_subplot(len(found), columns, columns * (row + 1))
        axes.scatter(*images["samples"].T, s=1, lw=0, color="#146")
        axes.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=[], yticks=[], aspect="equal")
        axes.set_title("AR-CSM, samples" if row == 0 else "", fontsize=9)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=80, metadata={"Software": None})


def text(results: dict[str, Any]) -> str:
    """The table of the results, and what it shows."""
    settings, rows = results["settings"], results["rows"]
    densities = ["flow", "quadrature", "MADE, 10 logistics", "mass, flow", "mass, quadrature"]
    lines = [["toy", "steps", *densities, "diverged"]]
    for name, row in rows.items():
        flow, quadrature = row["flow"], row["quadrature"]
        mixture = row.get("mixture", {}).get("divergence")
        divergences = (flow["divergence"], quadrature["divergence"], mixture)
        cells = [*map(common.cell, divergences), *(f"{way['mass']:.5f}" for way in (flow, quadrature))]
        diverged = flow["diverged"] + quadrature["diverged"]
        lines.append([name, str(row["training"]["steps"]), *cells, str(diverged)])
    first = next(iter(rows.values()))
    shown = (
        f"KL(data || model) in nats, of densities with noise {settings['sigma_min']}, mean ± standard error "
        f"over {POINTS:,} held-out points; the flow from level {BASE}; batches of {settings['batch_size']}, "
        f"objective {settings['objective']}, {first['training']['parameters']:,} parameters"
    )
    if "mixture" in first:
        shown += f"; the mixture has {first['mixture']['training']['parameters']:,}"
    return f"{shown}.\n\n{markdown(lines, right=True)}"


def main() -> int:
    parser = common.arguments(__doc__, "toys")
    parser.add_argument("--toys", nargs="+", choices=toys.names(), default=toys.names())
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--objective", choices=("csm", "denoising"), default="denoising")
    parser.add_argument("--baseline", action="store_true", help="train the MADE with 10 logistics too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = SETTINGS | {"steps": given.steps, "objective": given.objective}
    rows, pictures = {}, {}
    for name in given.toys:
        rows[name], pictures[name] = measure(name, settings, given.runs, given.baseline)
        print(name, rows[name], flush=True)
    results = {"settings": settings, "rows": rows}
    print(text(results))
    common.write(given.out, results)
    draw(pictures, given.out.with_suffix(".png"))
    common.shrink(given.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
