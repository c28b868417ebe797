"""Bits per dimension of MNIST beside an AR mixture: ``python bench/paper/likelihood.py MNIST.npz``.

An AR-CSM trained by composite score matching with noise down to sigma_L, its flow density and its quadrature
density evaluated at dequantised test images without noise, and a MADE with 10 logistics of no fewer
parameters trained by likelihood of dequantised images; each trained for the same number of minutes on the
same threads. Both again on logits of the pixels (Papamakarios et al. 2017), the AR-CSM as ``--preset images``
has it, whose likelihood is that of rows as they are; nats of logits stand beside published ones. Bits per
dimension bound those of the 8-bit images from above (uniform dequantisation).
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from fastcsm import data
from fastcsm.bench.harness.report import markdown
from fastcsm.bench.paper import common
from fastcsm.evaluation import likelihood, plots
from fastcsm.training import PRESETS, Config

FIRST_WIDTH = 512
SETTINGS: dict[str, Any] = {
    "hidden": (512, 512),
    "sigma_max": 1.0,
    "continuous": True,
    "optimizer": "adamw",
    "lr": 1e-3,
    "schedule": "cosine",
    "weight_decay": 1e-3,
    "ema": 0.995,
    "batch_size": 16,
    "steps": 10**6,
    "eval_every": 10**6,
}


#: Settings of the models of logits, over the preset's.
LOGITS: dict[str, Any] = PRESETS["images"] | {"logit_alpha": 1e-6, "steps": 10**6, "eval_every": 10**6}
#: Kinds of rows, in their order.
KINDS = ("grey", "logits")


def text(results: dict[str, Any]) -> str:
    """The table of the results, and what it shows."""
    columns = ["model", "parameters", "steps", "minutes", "images", "bits/dim", "nats of logits", "diverged"]
    lines = [columns]
    for name, row in results["rows"].items():
        done, bits = row["training"], common.cell(row.get("bits_per_dimension"))
        cells = [f"{done['parameters']:,}", str(done["steps"]), f"{done['seconds'] / 60:.1f}"]
        logits = common.cell(row.get("nats_of_logits"), 1)
        lines.append([name, *cells, str(row["samples"]), bits, logits, str(row["diverged"])])
    return (
        "Test images with uniform dequantisation, no noise; mean ± standard error over images, minutes of "
        f"one thread. The smallest noise level of the AR-CSM by CSM is {results['sigma_min']}. Of logits, "
        "published are nats of 1380.8 (a masked autoregressive flow's MADE), 1313.1 (ten of them) and 1038.5 "
        f"(a MADE with mixtures). {common.made(results['rows'])}\n\n{markdown(lines, right=True)}"
    )


class Experiment(common.Table):
    """The rows of the table, a method a kind."""

    def __init__(self, given: Any):
        super().__init__(given.out, given.only)
        self.given = given

    def evaluated(self, kind: str, name: str, model: Any, done: dict[str, Any], x: Any, method: str) -> None:
        rows, transform = x
        options = {"transform": transform, "bits": True, "progress": common.report(method)}
        row = likelihood(model, rows, method, **options)
        self.add(kind, name, {"training": done} | row)
        print(name, row, flush=True)

    def pair(self, kind: str, config: Config, methods: dict[str, str], first: int) -> list[Any]:
        """An AR-CSM by each method, and a mixture of no fewer parameters; both, and the transform."""
        images = data.load(config.data, logit_alpha=config.logit_alpha)
        x = common.noisy(images, 0.0, limit=self.given.rows), images.transform
        model, done = common.trained(config, images, self.given.runs / kind)
        for method, name in methods.items():
            self.evaluated(kind, name, model, done, x, method)
        width = common.width(images.features, first, done["parameters"])
        mixture = common.MixtureConfig.beside(config, hidden=(width, width))
        made, done = common.trained(mixture, images, self.given.runs / f"{kind}-mixture")
        name = f"MADE, 10 logistics, 2 x {width}, by likelihood{' of logits' * (kind == 'logits')}"
        self.evaluated(kind, name, made, done, x, "exact")
        return [model, made, images.transform]

    def grey(self) -> list[Any]:
        settings = {"sigma_min": self.given.sigma_min, **self._run} | SETTINGS
        methods = {method: f"AR-CSM by CSM, {method}" for method in ("flow", "quadrature")}
        return self.pair("grey", Config(**settings), methods, FIRST_WIDTH)

    def logits(self) -> list[Any]:
        name = "AR-CSM of logits, preconditioned, by denoising, flow"
        return self.pair("logits", Config(**(LOGITS | self._run)), {"flow": name}, LOGITS["hidden"][0])

    @property
    def _run(self) -> dict[str, Any]:
        return {"data": self.given.data, "max_minutes": self.given.minutes}


def main() -> int:
    parser = common.arguments(__doc__, "likelihood")
    parser.add_argument("data", help="MNIST as a .npz file with train_x and test_x, uint8")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="rows to make anew")
    parser.add_argument("--minutes", type=float, default=10.0, help="training of each model")
    parser.add_argument(
        "--sigma-min", type=float, default=0.01, help="smallest noise level of the first AR-CSM"
    )
    parser.add_argument("--rows", type=int, default=500, help="test images")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    experiment = Experiment(given)
    for kind in (kind for kind in KINDS if kind in given.only):
        model, made, transform = getattr(experiment, kind)()
    results = {"sigma_min": given.sigma_min, "rows": experiment.sorted(KINDS)}
    print(text(results))
    common.write(given.out, results)
    drawn = [transform.decode(m.sample(64, seed=0)) for m in (model, made)]
    titles = ("samples of the MADE", "samples of the AR-CSM")
    path = given.out.with_suffix(".png")
    plots.samples(drawn[0], transform, path, data=drawn[1], titles=titles)
    common.shrink(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
