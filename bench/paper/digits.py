"""Held-out likelihood of the 8x8 digits: ``python bench/paper/digits.py``.

Rows 0-1499 of scikit-learn's digits train and the other 297 are held out; x = 2 (pixel + U[0, 1)) / 17 - 1,
and every figure is for x + 0.06 z, whose density is modelled. An AR-CSM trained by composite score matching,
by the flow density and by quadrature at sigma_L; what each of training's helps is worth; and a MADE with 10
logistics of no fewer parameters trained by likelihood.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

import torch

from fastcsm import data
from fastcsm.bench.harness.report import markdown
from fastcsm.bench.paper import common
from fastcsm.evaluation import log_densities, plots
from fastcsm.training import PRESETS, Config

SIGMA, REPEATS = 0.06, 2
#: A level at which to begin the flow density of the main model, beside sigma_1 = 1.
BASE = 0.5
MAIN = PRESETS["digits"] | {
    "data": "digits",
    "sigma_min": SIGMA,
    "dropout": 0.5,
    "weight_decay": 0.01,
    "ema": 0.999,
    "eval_every": 250,
}
NONE = MAIN | {"dropout": 0.0, "weight_decay": 0.0, "continuous": False}
#: Settings of the ablation: no help, each alone, all together.
VARIANTS: dict[str, dict[str, Any]] = {
    "no help (10 levels, no decay, no dropout)": NONE,
    "early stopping on a tenth of the rows": NONE | {"keep": "best", "patience": 4, "validation": 0.1},
    "weight decay 0.1": NONE | {"weight_decay": 0.1},
    "continuous sigma": NONE | {"continuous": True},
    "dropout 0.5": NONE | {"dropout": 0.5},
    "continuous sigma, decay 0.01, dropout 0.5": MAIN,
}


def evaluated(model: Any, x: torch.Tensor, base: float | None = None) -> dict[str, Any]:
    """Both densities; ``base`` is the noise level at which the flow begins."""
    found: dict[str, Any] = {}
    for method in ("flow", "quadrature"):
        level = base if method == "flow" else None
        density = log_densities(model, x, method, base=level, progress=common.report(method))
        nats = -density.log_density.sum(1)
        found[method] = {
            "nats_per_dimension": per_digit(nats / 64),
            "largest_error": density.error.sum(1).max().item(),
            "diverged": int(nats.isnan().sum()),
        }
    return found


def per_digit(values: torch.Tensor) -> dict[str, float]:
    """Mean and standard error over digits of values (draws * digits,), NaN where one is."""
    return common.mean_and_error(values.reshape(REPEATS, -1).mean(0))


def line(name: str, row: dict[str, Any]) -> list[str]:
    cells = [common.cell(row.get(method, {}).get("nats_per_dimension")) for method in ("flow", "quadrature")]
    exact = common.cell(row.get("exact"))
    first = exact if exact != "-" else cells[0]
    return [name, f"{row['training']['parameters']:,}", str(row["training"]["steps"]), first, cells[1]]


def text(results: dict[str, Any]) -> str:
    """The table of the results, and what it shows."""
    header = ["model", "parameters", "steps", "nats/dim", "quadrature at sigma_L"]
    lines = [line(name, row) for name, row in results["rows"].items()]
    return (
        f"Negative log-likelihood of x + {results['sigma']} z, nats per dimension, mean ± standard error "
        f"over the {results['samples'] // REPEATS} held-out digits ({REPEATS} draws of dequantisation and "
        "noise each). nats/dim of an AR-CSM is its flow density.\n\n" + markdown([header, *lines], right=True)
    )


def main() -> int:
    parser = common.arguments(__doc__, "digits")
    parser.add_argument("--steps", type=int, default=14_000, help="steps of the main models")
    parser.add_argument("--ablation-steps", type=int, default=3000)
    parser.add_argument("--finetune-steps", type=int, default=30)
    parser.add_argument("--mixture-steps", type=int, default=8000, help="steps of the mixture")
    parser.add_argument("--mixture-dropouts", type=float, nargs="+", default=[0.3])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    digits = data.load("digits")
    x = common.noisy(digits, SIGMA, REPEATS)
    rows: dict[str, dict[str, Any]] = {}

    def run(name: str, folder: str, settings: dict[str, Any]) -> Any:
        config = Config(**settings)
        loaded = data.load("digits", validation=config.validation)
        model, done = common.trained(config, loaded, given.runs / folder)
        rows[name] = {"training": done, "config": config.to_dict()} | evaluated(model, x)
        print(*line(name, rows[name]), sep="  ", flush=True)
        return model

    main_settings = MAIN | {"steps": given.steps}
    best = run("AR-CSM", "main", main_settings)
    name = f"the same, its flow from sigma = {BASE}"
    rows[name] = {"training": rows["AR-CSM"]["training"]} | evaluated(best, x, BASE)
    width = common.width(64, 512, rows["AR-CSM"]["training"]["parameters"])
    like = Config(**(main_settings | {"steps": given.mixture_steps}))
    for dropout in given.mixture_dropouts:
        own = {"hidden": (width, width), "dropout": dropout, "sigma": SIGMA}
        config = common.MixtureConfig.beside(like, **own)
        model, done = common.trained(config, digits, given.runs / f"mixture-{dropout}")
        with torch.no_grad():
            nats = -model.log_prob(x) / 64
        name = f"MADE, 10 logistics, 2 x {width}, dropout {dropout}, by likelihood"
        rows[name] = {"training": done, "exact": per_digit(nats)}
        print(*line(name, rows[name]), sep="  ", flush=True)
    for number, (name, settings) in enumerate(VARIANTS.items()):
        run(name, f"ablation-{number}", settings | {"steps": given.ablation_steps})
    if given.finetune_steps:
        tuned = given.runs / "finetuned"
        if not tuned.exists():
            shutil.copytree(given.runs / "main", tuned)
        run(
            f"AR-CSM, then {given.finetune_steps} steps of likelihood",
            "finetuned",
            main_settings | {"finetune_steps": given.finetune_steps, "finetune_lr": 5e-4},
        )

    results = {"sigma": SIGMA, "samples": len(x), "rows": rows}
    print(text(results))
    common.write(given.out, results)
    drawn = digits.transform.decode(best.sample(100, seed=0, denoise=True))
    shown = digits.transform.decode(digits.held_out("test", 0, 100))
    plots.samples(drawn, digits.transform, given.out.with_suffix(".png"), data=shown)
    common.shrink(given.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
