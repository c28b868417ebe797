"""Held-out likelihood of the 8x8 digits: ``python bench/paper/digits.py``.

Rows 0-1499 of scikit-learn's digits train and the other 297 are held out; x = 2 (pixel + U[0, 1)) / 17 - 1,
and every figure is for x + 0.06 z, whose density is modelled. An AR-CSM trained by composite score matching,
by the flow density and by quadrature at sigma_L; the average of four preconditioned ones, in raster order,
its reverse and two random ones, by denoising; what each of training's helps is worth; and a MADE with 10
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
PRECONDITIONED = MAIN | {
    "precondition": "standard",
    "objective": "denoising",
    "orders": 4,
    "head_hidden": (64, 64),
    "frequencies": 0,
    "sigma_max": 20.0,
    "level_power": 2.0,
    "level_draws": 4,
}
NONE = MAIN | {"dropout": 0.0, "weight_decay": 0.0, "continuous": False}
#: Kinds of rows, in their order.
KINDS = ("main", "preconditioned", "mixture", "ablation", "finetuned")
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
        "noise each). nats/dim of an AR-CSM is its flow density. "
        f"{common.made(results['rows'])}\n\n"
        f"{markdown([header, *lines], right=True)}"
    )


class Experiment(common.Table):
    """The rows of the table, a method a kind."""

    def __init__(self, given: Any):
        super().__init__(given.out, given.only)
        self.given, self.digits = given, data.load("digits")
        self.x = common.noisy(self.digits, SIGMA, REPEATS)

    def add(self, kind: str, name: str, row: dict[str, Any]) -> None:
        super().add(kind, name, row)
        print(*line(name, row), sep="  ", flush=True)

    def run(self, kind: str, name: str, folder: str, settings: dict[str, Any]) -> Any:
        """An AR-CSM with these settings."""
        config = Config(**settings)
        loaded = data.load("digits", validation=config.validation)
        model, done = common.trained(config, loaded, self.given.runs / folder)
        self.add(kind, name, {"training": done, "config": config.to_dict()} | evaluated(model, self.x))
        return model

    def main(self) -> None:
        best = self.run("main", "AR-CSM", "main", self._main)
        name = f"the same, its flow from sigma = {BASE}"
        self.add("main", name, {"training": self.rows["AR-CSM"]["training"]} | evaluated(best, self.x, BASE))
        picture, transform = self.given.out.with_suffix(".png"), self.digits.transform
        drawn = transform.decode(best.sample(100, seed=0, denoise=True))
        shown = transform.decode(self.digits.held_out("test", 0, 100))
        plots.samples(drawn, transform, picture, data=shown)
        common.shrink(picture)

    @property
    def _main(self) -> dict[str, Any]:
        return MAIN | {"steps": self.given.steps}

    def preconditioned(self) -> None:
        settings = PRECONDITIONED | {"steps": self.given.preconditioned_steps}
        self.run("preconditioned", "four AR-CSMs, preconditioned, averaged", "preconditioned", settings)

    def mixture(self) -> None:
        width = common.width(64, 512, common.parameters(Config(**self._main).build(64)))
        like = Config(**(self._main | {"steps": self.given.mixture_steps}))
        for dropout in self.given.mixture_dropouts:
            own = {"hidden": (width, width), "dropout": dropout, "sigma": SIGMA}
            config = common.MixtureConfig.beside(like, **own)
            model, done = common.trained(config, self.digits, self.given.runs / f"mixture-{dropout}")
            with torch.no_grad():
                nats = -model.log_prob(self.x) / 64
            name = f"MADE, 10 logistics, 2 x {width}, dropout {dropout}, by likelihood"
            self.add("mixture", name, {"training": done, "exact": per_digit(nats)})

    def ablation(self) -> None:
        for number, (name, settings) in enumerate(VARIANTS.items()):
            steps = {"steps": self.given.ablation_steps}
            self.run("ablation", name, f"ablation-{number}", settings | steps)

    def finetuned(self) -> None:
        steps, tuned = self.given.finetune_steps, self.given.runs / "finetuned"
        if not tuned.exists():
            shutil.copytree(self.given.runs / "main", tuned)
        settings = self._main | {"finetune_steps": steps, "finetune_lr": 5e-4}
        self.run("finetuned", f"AR-CSM, then {steps} steps of likelihood", "finetuned", settings)


def main() -> int:
    parser = common.arguments(__doc__, "digits")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="rows to make anew")
    parser.add_argument("--steps", type=int, default=14_000, help="steps of the main models")
    parser.add_argument("--preconditioned-steps", type=int, default=7000)
    parser.add_argument("--ablation-steps", type=int, default=3000)
    parser.add_argument("--finetune-steps", type=int, default=30)
    parser.add_argument("--mixture-steps", type=int, default=8000, help="steps of the mixture")
    parser.add_argument("--mixture-dropouts", type=float, nargs="+", default=[0.3])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    experiment = Experiment(given)
    for kind in (kind for kind in KINDS if kind in given.only):
        getattr(experiment, kind)()
    results = {"sigma": SIGMA, "samples": len(experiment.x), "rows": experiment.sorted(KINDS)}
    print(text(results))
    common.write(given.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
