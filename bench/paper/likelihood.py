"""Bits per dimension of MNIST beside an AR mixture: ``python bench/paper/likelihood.py MNIST.npz``.

An AR-CSM trained by composite score matching with noise down to sigma_L, its flow density and its quadrature
density evaluated at dequantised test images without noise, and a MADE with 10 logistics of no fewer
parameters trained by likelihood of dequantised images; each trained for the same number of minutes on the
same threads. Bits per dimension bound those of the 8-bit images from above (uniform dequantisation).
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from fastcsm import data
from fastcsm.bench.harness.report import markdown
from fastcsm.bench.paper import common
from fastcsm.evaluation import likelihood, plots
from fastcsm.training import Config

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


def text(results: dict[str, Any]) -> str:
    """The table of the results, and what it shows."""
    lines = [["model", "parameters", "steps", "minutes", "bits/dim", "nats", "diverged"]]
    for row in results["rows"]:
        done, bits = row["training"], common.cell(row.get("bits_per_dimension"))
        cells = [f"{done['parameters']:,}", str(done["steps"]), f"{done['seconds'] / 60:.1f}", bits]
        lines.append([row["model"], *cells, common.cell(row["nats"], 1), str(row["diverged"])])
    return (
        f"{results['samples']} test images with uniform dequantisation, no noise; mean ± standard error over "
        f"images. The AR-CSM's smallest noise level is {results['config']['sigma_min']}.\n\n"
        f"{markdown(lines, right=True)}"
    )


def main() -> int:
    parser = common.arguments(__doc__, "likelihood")
    parser.add_argument("data", help="MNIST as a .npz file with train_x and test_x, uint8")
    parser.add_argument("--minutes", type=float, default=10.0, help="training of each model")
    parser.add_argument("--sigma-min", type=float, default=0.01, help="smallest noise level of the AR-CSM")
    parser.add_argument("--rows", type=int, default=500, help="test images")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = data.load(given.data)
    config = Config(data=given.data, sigma_min=given.sigma_min, max_minutes=given.minutes, **SETTINGS)
    x, transform = common.noisy(images, 0.0, limit=given.rows), images.transform
    rows: list[dict[str, Any]] = []

    def evaluated(name: str, model: Any, done: dict[str, Any], method: str) -> None:
        report = common.report(method)
        found = likelihood(model, x, method, transform=transform, bits=True, progress=report)
        rows.append({"model": name, "training": done} | found)
        print(rows[-1], flush=True)

    model, done = common.trained(config, images, given.runs / "arcsm")
    for method in ("flow", "quadrature"):
        evaluated(f"AR-CSM by CSM, {method}", model, done, method)
    width = common.width(images.features, FIRST_WIDTH, done["parameters"])
    mixture = common.MixtureConfig.beside(config, hidden=(width, width))
    made, done = common.trained(mixture, images, given.runs / "mixture")
    evaluated(f"MADE, 10 logistics, 2 x {width}, by likelihood", made, done, "exact")
    results = {"samples": len(x), "config": config.to_dict() | {"data": "mnist"}, "rows": rows}
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
