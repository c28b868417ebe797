"""``fastcsm evaluate``: what a run is worth on held-out rows."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from .. import data
from ..atomic import atomic_file
from ..densities import METHODS
from ..evaluation import anomaly_scores, auroc, density_grid, draw_rate, evaluate, likelihood, plots, tables
from ..models.model import Model
from ..progress import Bar, tell
from ..training import checkpoint
from ..training.checkpoint import Checkpoint
from ..training.seeds import EVALUATION, generator_of, seed_of
from .options import Help, UsageError, add_device, device_of, output, picture

_PICTURE_POINTS = 5000


def add(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser(
        "evaluate",
        help="held-out losses and likelihood of a run, anomaly scores, a picture of a 2-D density",
        formatter_class=Help,
        description="Held-out composite score matching and denoising losses per dimension, both weighted by "
        "sigma^2 (they then differ by 1/2 in expectation), and negative log-likelihoods, as mean, standard "
        "error, trimmed mean, median and worst row, of rows in model space (columns over their deviations) "
        "and as given. "
        "The model is the density of rows with noise of the smallest level, a preconditioned one that of "
        "rows as they are; grey values are evaluated without noise too, in bits per dimension. For "
        "two-dimensional data the density, the data and samples are drawn into RUN/density.png.",
    )
    option = command.add_argument
    option("run", metavar="RUN", help="run folder")
    option("--data", metavar="NAME", help="data set or file (default: the run's)")
    option("--split", choices=("test", "val"), default="test", help="(default: test)")
    option("--sigmas", type=float, nargs="+", metavar="X", help="noise levels (default: the run's)")
    option(
        "--method",
        choices=(*METHODS, "both", "none"),
        help="density of the likelihood: carried from the largest noise level along the probability flow, or "
        "integrated from the scores of the smallest (default: both; flow of a preconditioned model, and "
        "quadrature where the noise is not conditional)",
    )
    option(
        "--ood",
        metavar="OTHER",
        help="data set or file of other rows (test rows alone will do): print how well h(x), the sum of "
        "scores, and log q(x) tell them from the data",
    )
    option("--limit", type=int, metavar="N", help="rows to read at most (default: all)")
    option("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    option("--no-ema", action="store_true", help="use the last weights, not the averaged ones")
    option("--out", metavar="FILE", help="write the result there as JSON too")
    option("--json", action="store_true", help="print JSON instead of the table")
    option("--overwrite", action="store_true", help="replace FILE and density.png where they exist")
    add_device(command)


def run(given: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the file and the picture."""
    path = output(given.out, given.overwrite, (".json",)) if given.out else None
    device = device_of(given.device)
    if given.limit is not None and given.limit < 1:
        raise UsageError(f"limit is {given.limit}, expected at least 1")
    saved = checkpoint.read(given.run, tensors=())
    model = checkpoint.load(given.run, ema=not given.no_ema, device=device)
    methods = _methods(given.method, model)
    source = given.data or saved.config.data
    like = next(model.parameters())
    # Densities are at least float32: rows rounded to fewer bits would be others.
    x = _held_out(source, given, saved).to(like.device, torch.promote_types(like.dtype, torch.float32))
    strange = _held_out(given.ood, given, saved).to(x) if given.ood else None
    result: dict[str, Any] = {
        "run": str(given.run),
        "data": source,
        "split": given.split,
        "samples": len(x),
        "dimensions": x.shape[1],
        "step": saved.state["step"],
        "model_space": saved.transform.space,
        "log_volume": saved.transform.log_volume(x).mean().item(),
        "levels": _losses(model, x, given),
        "likelihood": _likelihoods(model, x, methods, saved.transform, given.seed),
        "draws": _draws(model) if methods else None,
        "ood": None,
    }
    if strange is not None:
        found = _ood(model, x, strange, saved.transform, methods[0] if methods else None)
        result["ood"] = {"data": given.ood, "samples": len(strange)} | found
    if x.shape[1] == 2 and methods and not saved.transform.logit_alpha:  # whose picture is bent
        result["picture"] = _density_picture(given, model, saved.transform, x, methods[0])
    text = json.dumps(result, indent=1)
    if path:
        with atomic_file(path) as file:
            file.write((text + "\n").encode())
    print(text if given.json else tables.evaluation(result))
    return 0


def _methods(name: str | None, model: Model) -> list[str]:
    """The densities to evaluate, the best first."""
    if name == "none":
        return []
    if name in (None, "both"):
        # The scores of a level so small are no match for the flow: their integral adds up what they miss.
        return list(model.density_methods if name or model.row_noise else model.density_methods[:1])
    if name not in model.density_methods:
        raise UsageError(
            f"method is '{name}', expected {' or '.join(map(repr, model.density_methods))} for this model"
        )
    return [name]


def _held_out(source: str, given: argparse.Namespace, saved: Checkpoint) -> torch.Tensor:
    """Rows of a data set in the run's model space; where none is given they must be those of the run."""
    config, transform = saved.config, saved.transform
    own = not given.data and source == config.data
    options: dict[str, Any] = {"grey_levels": config.grey_levels, "validation": config.validation}
    try:
        with Bar(f"reading '{source}'"):
            loaded = data.load(source, training=own, **options)
    except FileNotFoundError as error:
        if not own:
            raise
        raise UsageError(f"{error}, on which the run was trained: say by --data where it is") from None
    if own and not loaded.is_of(saved.fingerprint):
        raise UsageError(
            f"data '{source}' is not what the run was trained on, expected the same training rows, or --data "
            "for others"
        )
    if loaded.features != transform.features:
        raise UsageError(
            f"data '{source}' has {loaded.features} features, expected {transform.features} as in the run"
        )
    if bool(loaded.transform.grey_levels) != bool(transform.grey_levels):
        kinds = ["grey values" if t.grey_levels else "real numbers" for t in (loaded.transform, transform)]
        raise UsageError(f"data '{source}' holds {kinds[0]}, expected {kinds[1]} as in the run")
    loaded = dataclasses.replace(loaded, transform=transform)
    return loaded.held_out(given.split, given.seed, given.limit)


def noise_on(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise on rows that were dequantised under ``seed``: the same random numbers must not serve twice."""
    return torch.randn(x.shape, generator=generator_of(seed, EVALUATION, 0)).to(x)


def _losses(model: Model, x: torch.Tensor, given: argparse.Namespace) -> list[dict[str, Any]]:
    with Bar("losses"):
        return evaluate(model, x, sigmas=given.sigmas, seed=seed_of(given.seed, EVALUATION, 0))


def _likelihoods(
    model: Model, x: torch.Tensor, methods: list[str], transform: data.Transform, seed: int
) -> list[dict[str, Any]]:
    """Likelihoods of the rows with the noise that the model is taken for, and of grey values without it."""
    sigma, grey_levels = model.row_noise, transform.grey_levels
    noises = [sigma, 0.0] if grey_levels and sigma else [sigma]
    z = noise_on(x, seed)
    found = []
    for method in methods:
        for noise in noises:
            rows, bits = x + noise * z, bool(grey_levels and not noise)
            with Bar(f"likelihood by {method}", unit="sample") as bar:
                row = likelihood(model, rows, method, transform=transform, bits=bits, progress=bar.to)
            found.append({"method": method, "noise": noise} | row)
    return found


def _draws(model: Model) -> dict[str, Any] | None:
    with Bar("draws"):
        return draw_rate(model)


def _ood(
    model: Model,
    x: torch.Tensor,
    strange: torch.Tensor,
    transform: data.Transform,
    method: str | None,
) -> dict[str, Any]:
    """How well two statistics tell the rows; log q is that of rows as given."""
    scores_of = []
    for title, rows in (("scores of the data", x), ("scores of the other rows", strange)):
        with Bar(title, unit="sample") as bar:
            scores_of.append(anomaly_scores(model, rows, method, progress=bar.to))
        scores_of[-1]["log_likelihood"] -= transform.log_volume(rows)
    usual, other = scores_of
    missing = sum(int(scores["log_likelihood"].isnan().sum()) for scores in (usual, other))
    areas = {
        name: auroc(
            *(scores[name].nan_to_num(nan=-torch.inf, neginf=-torch.inf) for scores in (usual, other))
        )
        for name in usual
    }
    return {"method": method or model.density_methods[0], "diverged": missing, "auroc": areas}


def _density_picture(
    given: argparse.Namespace, model: Model, transform: data.Transform, x: torch.Tensor, method: str
) -> str | None:
    """Draw density.png into the run's folder, unless it is there or the run is a bare checkpoint file."""
    path = Path(given.run) / "density.png"
    if not path.parent.is_dir():
        return None
    if path.exists() and not given.overwrite:
        tell(f"fastcsm: '{path}' exists and is kept, --overwrite replaces it")
        return None

    def draw(bar: Bar) -> None:
        plots.new_figure(1, 1)  # where there can be none, nothing is computed for it
        grid = density_grid(model, x, method, progress=bar.to)
        drawn = model.sample(min(len(x), _PICTURE_POINTS), seed=given.seed)
        points = [transform.decode(rows[:_PICTURE_POINTS]) for rows in (x, drawn[drawn.isfinite().all(1)])]
        corners = transform.decode(torch.stack([grid.low, grid.high]), whole=False)
        plots.density(grid.density.cpu().numpy(), corners, points[0], points[1], path)

    return str(path) if picture(path, draw) else None
