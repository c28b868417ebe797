"""Densities of real data beside flows and mixtures: ``python bench/paper/tables.py FOLDER``.

FOLDER has the data's .npz files (``SETS``). Every model trains for the same minutes on one thread, at the
choice of three settings that a quarter of the minutes finds best on validation rows, with the weights of the
best held-out evaluation; test rows are read once, at the end. Trained on one class of HTRU2 and MAGIC,
-log q tells the test rows of the other, beside an isolation forest. A run that was cut goes on where it
stopped, as --out keeps every result that is there, and trains again what had other settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcsm import training
from fastcsm.atomic import atomic_file
from fastcsm.bench.harness.report import markdown
from fastcsm.bench.paper import common, rows
from fastcsm.bench.paper.contenders import CONTENDERS, SHARED
from fastcsm.evaluation import plots, trimmed_mean
from fastcsm.evaluation.anomaly import auroc
from fastcsm.models.model import Model
from fastcsm.training.config import RunConfig

#: Data sets: their files, and how a file is read.
SETS: dict[str, tuple[str, Callable[[Path], rows.Rows]]] = {
    "magic": ("tab_magic.npz", rows.table),
    "htru2": ("tab_htru2.npz", rows.table),
    "wine": ("tab_wine_white.npz", rows.table),
    "miniboone": ("tab_miniboone_head.npz", rows.table),
    "bsds": ("bsds_patches.npz", rows.patches),
    "digits": ("digits8x8.npz", rows.digits),
    "mnist": ("mnist.npz", rows.mnist),
    "magic-gammas": ("tab_magic.npz", partial(rows.table, usual=1)),
    "htru2-others": ("tab_htru2.npz", partial(rows.table, usual=0)),
}
#: Detectors of strange rows.
DETECTORS = ("arcsm", "nsf", "forest")
#: Data sets of the rows of one class, and their titles.
CLASSES = {
    "magic-gammas": "MAGIC's gammas (hadrons are strange)",
    "htru2-others": "HTRU2's others (pulsars are strange)",
}
TITLES = {name: contender.title for name, contender in CONTENDERS.items()} | {"forest": "isolation forest"}
MODELS = tuple(TITLES)
Settings = dict[str, Any]
#: Values of the rows that are evaluated, at most: of validation rows to choose settings, and of test rows.
_VALIDATION, _TEST = 1 << 14, 1 << 19
#: Rows evaluated together; the seconds that draws are timed for, and their largest number.
_TOGETHER, _SECONDS, _DRAWS = 128, 0.5, 4096


@torch.no_grad()
def nats_of(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """-log q of rows x (N, D), float64 (N,), NaN where there is none, and estimates of its error (N,)."""
    found = [model.log_density(part) for part in x.split(_TOGETHER)]
    nats = torch.cat([-part.log_density.double().sum(1) for part in found])
    return nats.where(nats.isfinite(), torch.nan), torch.cat([part.error.double().sum(1) for part in found])


def figures(nats: Tensor, error: Tensor) -> dict[str, Any]:
    """The table's columns of nats (N,): to the trimmed mean and the median NaN is the worst there is."""
    exists = nats.isfinite()
    counted = nats.nan_to_num(nan=torch.inf).sort().values
    found = {
        "mean": nats[exists].mean(),
        "trimmed": trimmed_mean(nats),
        "median": counted[(len(nats) - 1) // 2],
        "worst": nats[exists].amax() if exists.any() else nats.new_tensor(torch.nan),
        "error": error[exists].mean(),
    }
    numbers = {name: value.item() if value.isfinite() else None for name, value in found.items()}
    return numbers | {"without": int((~exists).sum()), "rows": len(nats)}


def draws_per_second(model: Model, at_most: int = _DRAWS) -> float:
    """Of twice as many draws as before, until they take half a second."""
    count, seconds = 0, 0.0
    while seconds < _SECONDS and count < at_most:
        count = max(1, 2 * count)
        start = time.perf_counter()
        model.sample(count, seed=0)
        seconds = time.perf_counter() - start
    return count / seconds


def changed(config: RunConfig) -> Settings:
    """The settings that are not the defaults: options that are added later leave them as they were."""
    defaults = type(config)().to_dict()
    return {name: value for name, value in config.to_dict().items() if value != defaults[name]}


class Experiment:
    """What a run of the program finds: ``choices`` by "data/model" and ``units`` by "data/model/seed"."""

    def __init__(self, given: Any):
        self.given = given
        self.file = given.out.with_suffix(".json")

    def results(self) -> dict[str, Any]:
        """All that --out keeps, as other processes may have left it."""
        found = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        models = {name: SHARED | model.settings for name, model in CONTENDERS.items()}
        own = {"minutes": self.given.minutes, "models": models}
        return own | {name: found.get(name, {}) for name in ("choices", "units")}

    def once(self, kind: str, key: str, settings: dict[str, Any], make: Callable[[], Any]) -> Any:
        """What is kept under that key and had these settings, or what ``make`` returns, kept from then on."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        kept = self.results()[kind].get(key)
        if kept is None or kept["settings"] != digest:
            kept = {"settings": digest} | make()
            results = self.results()
            results[kind][key] = kept
            common.write(self.given.out, results)
            print(
                f"{key}: {json.dumps({name: kept[name] for name in kept if name != 'settings'})}", flush=True
            )
        return kept

    def limit(self, data: rows.Rows, values: int) -> int:
        return min(self.given.rows, max(values // data.features, 64))

    def config(self, model: str, data: rows.Rows, minutes: float, seed: int, own: Settings) -> RunConfig:
        run = {"data": data.name, "max_minutes": minutes, "seed": seed} | own
        return CONTENDERS[model].config(len(data.train), data.features, self.given.tiny, **run)

    def trained(self, config: RunConfig, data: rows.Rows, run: Path) -> tuple[Model, dict[str, Any]] | None:
        """A model and what its training took, or None where its loss did not stay finite."""
        kept = run / "config.json"
        wanted = json.loads(json.dumps(config.to_dict()))
        if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != wanted:
            shutil.rmtree(run)
        try:
            return common.trained(config, data, run)
        except training.TrainingError as error:
            if "finite" not in str(error):
                raise
            print(f"{run.name}: {error}", file=sys.stderr)
            return None

    def choice(self, model: str, data: rows.Rows) -> Settings:
        """The settings that are best on validation rows, by runs of a quarter of the minutes.

        The rows of one class take those of the whole table, where it has been tried.
        """
        whole = self.results()["choices"].get(f"{data.name.split('-')[0]}/{model}")
        if data.name in CLASSES and whole is not None:
            return whole["choice"]
        choices = CONTENDERS[model].choices_of(len(data.train))
        if len(choices) == 1:
            return choices[0]
        x = data.held_out("val", 0, self.limit(data, _VALIDATION))
        configs = [self.config(model, data, self.given.minutes / 4, 0, own) for own in choices]

        def find() -> dict[str, Any]:
            nats: list[float | None] = []
            for number, config in enumerate(configs):
                run = self.given.runs / f"{data.name}-{model}-choice-{number}"
                fitted = self.trained(config, data, run)
                nats.append(fitted and figures(*nats_of(fitted[0], x))["trimmed"])
                shutil.rmtree(run)
            best = min(zip(nats, choices), key=lambda tried: math.inf if tried[0] is None else tried[0])
            return {"choice": best[1], "validation": nats}

        settings = {"tried": [changed(config) for config in configs], "rows": len(x)}
        return self.once("choices", f"{data.name}/{model}", settings, find)["choice"]

    def unit(self, model: str, data: rows.Rows, seed: int) -> None:
        """One model of one data set and seed, trained and evaluated where it is not yet."""
        key, limit = f"{data.name}/{model}/{seed}", self.limit(data, _TEST)
        if model == "forest":
            self.once("units", key, {"rows": limit}, lambda: forest(data, seed, limit))
            return
        choices = CONTENDERS[model].choices_of(len(data.train))
        best = choices[0] if self.given.tiny else self.choice(model, data)
        slower = (own for own in choices if own.get("lr", math.inf) < best.get("lr", math.inf))
        tried = (best, *sorted(slower, key=lambda own: -own["lr"]))
        configs = [self.config(model, data, self.given.minutes, seed, own) for own in tried]

        def make() -> dict[str, Any]:
            for own, config in zip(tried, configs):
                run = self.given.runs / f"{key.replace('/', '-')}-{list(choices).index(own)}"
                fitted = self.trained(config, data, run)
                if fitted is not None:
                    return {"training": fitted[1], "choice": own} | evaluated(fitted[0], data, limit, seed)
            return {"failed": "no choice's loss stayed finite"}

        self.once("units", key, changed(configs[0]) | {"rows": limit}, make)


def evaluated(model: Model, data: rows.Rows, limit: int, seed: int = 0) -> dict[str, Any]:
    """The figures of the test rows, or how well -log q tells the strange rows among them.

    Draws are timed of the first seed alone: one of 784 variables takes a large flow minutes.
    """
    nats, error = nats_of(model, data.held_out("test", 0, limit))
    found = figures(nats + data.offset, error)
    if len(data.strange):
        strange, _ = nats_of(model, data.held_out("strange", 1, limit))
        usual, strange = (-values.nan_to_num(nan=torch.inf) for values in (nats, strange))
        return found | {"auroc": auroc(usual, strange)}
    return found | ({} if seed else {"draws_per_second": draws_per_second(model)})


def forest(data: rows.Rows, seed: int, limit: int) -> dict[str, Any]:
    """How well scikit-learn's isolation forest, with its defaults, tells the strange rows."""
    from sklearn.ensemble import IsolationForest

    fitted = IsolationForest(random_state=seed).fit(data.held_out("train", 0).numpy())
    test = [data.held_out(split, draw, limit) for draw, split in enumerate(("test", "strange"))]
    return {"auroc": auroc(*(torch.from_numpy(fitted.score_samples(x.numpy())) for x in test))}


def grouped(results: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Units by data set and model, in the order of ``SETS`` and ``CONTENDERS``, one of every seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in SETS:
        for model in MODELS:
            units = [unit for key, unit in results["units"].items() if key.startswith(f"{name}/{model}/")]
            if units:
                found.setdefault(name, {})[model] = units
    return found


def across(units: list[dict[str, Any]], column: str) -> str:
    """Mean and deviation of a column over seeds; "-" where a seed has no such number."""
    values: list[float] = [unit[column] for unit in units if unit.get(column) is not None]
    if len(values) < len(units):
        return "-"
    mean = statistics.fmean(values)
    digits = 4 if column == "auroc" else 3 if abs(mean) < 100 else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{spread}"


def cells(units: list[dict[str, Any]]) -> list[str]:
    """The columns of one model on one data set."""
    done = [unit for unit in units if "training" in unit]
    if len(done) < len(units):
        return [f"training failed in {len(units) - len(done)} of {len(units)}", *["-"] * 9]
    draws = next((unit["draws_per_second"] for unit in done if "draws_per_second" in unit), math.nan)
    worst = max((unit["worst"] for unit in done if unit["worst"] is not None), default=None)
    return [
        *(across(done, column) for column in ("trimmed", "mean", "median")),
        "-" if worst is None else f"{worst:,.1f}",
        str(sum(unit["without"] for unit in done)),
        f"{float(f'{draws:.3g}'):,.{0 if draws >= 10 else 3}f}",
        _error([unit["error"] for unit in done]),
        f"{done[0]['training']['parameters']:,}",
        f"{statistics.fmean(unit['training']['steps'] for unit in done):,.0f}",
        ", ".join(f"{name} {value}" for name, value in done[0]["choice"].items()) or "preset",
    ]


def _error(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return f"{max(known):.0e}" if any(known) else "exact"


def text(results: dict[str, Any]) -> str:
    """The tables of the results, and what they show."""
    columns = ["trimmed mean", "mean", "median", "worst row", "rows without", "draws a second"]
    table = [["data", "model", "seeds", *columns, "error", "parameters", "steps", "choice"]]
    strange = [["normal rows", *TITLES.values()]]
    for name, models in grouped(results).items():
        if name in CLASSES:
            strange.append([CLASSES[name], *(across(models.get(model, [{}]), "auroc") for model in MODELS)])
            continue
        size = next(iter(models.values()))[0]["rows"]
        for number, (model, units) in enumerate(models.items()):
            table.append(
                ["" if number else f"{name}, {size} rows", TITLES[model], str(len(units)), *cells(units)]
            )
    keep = [k for k in range(len(strange[0])) if any(row[k] != "-" for row in strange[1:])]
    return (
        "-log q of held-out rows in nats, of standardised columns (digits: of [-1, 1]; mnist: logits), "
        f"mean ± deviation over seeds, after {results['minutes']:g} minutes of one thread's processor time. "
        "The trimmed mean is that without the worst 1% of rows; there, and to the median, rows without a "
        "density (counted over all seeds) are the worst, and the mean leaves them out. The worst row is that "
        "of all seeds, error the mean estimate of a row's.\n\n"
        f"{markdown(table)}\n\n"
        "AUROC of -log q, trained on rows of one class, test rows of the other being the strange ones:\n\n"
        + markdown([row[k] for k in keep] for row in strange)
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """Trimmed means less NSF's, a panel a data set: a dot a seed, a line at their mean."""
    found = {name: models for name, models in grouped(results).items() if name not in CLASSES}
    figure = plots.new_figure(2.4 * max(len(found), 1), 2.6)
    for number, (name, models) in enumerate(found.items()):
        axes = figure.add_subplot(1, len(found), number + 1)
        nats = {
            model: [u["trimmed"] for u in units if u.get("trimmed") is not None]
            for model, units in models.items()
        }
        nats = {model: values for model, values in nats.items() if values}
        zero = statistics.fmean(nats["nsf"]) if "nsf" in nats else 0.0
        axes.axhline(0.0, color="#bbb", lw=1)
        for place, (model, values) in enumerate(nats.items()):
            color = "#146" if model == "arcsm" else "#888"
            relative = [value - zero for value in values]
            axes.plot([place] * len(values), relative, "o", ms=4, color=color, alpha=0.6, mew=0)
            axes.hlines(statistics.fmean(relative), place - 0.3, place + 0.3, color=color, lw=2)
        axes.set_xticks(
            range(len(nats)), [TITLES[model] for model in nats], rotation=60, ha="right", fontsize=7
        )
        axes.tick_params(axis="y", labelsize=7)
        axes.set_title(f"{name}: nats{' less NSF' if zero else ''}", fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})


def arguments(argv: list[str] | None = None) -> Any:
    parser = common.arguments(__doc__, "tables")
    parser.add_argument("folder", type=Path, help="folder of the data's .npz files")
    parser.add_argument("--minutes", type=float, default=4.0, help="training of each model")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--rows", type=int, default=2000, help="test rows of a data set, at most")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[*SETS, *MODELS], help="these data sets and these models"
    )
    parser.add_argument("--tiny", action="store_true", help="very small models, without a choice of settings")
    given = parser.parse_args(argv)
    given.sets = [name for name in SETS if name in given.only] or list(SETS)
    given.models = [name for name in MODELS if name in given.only] or list(MODELS)
    return given


def main() -> int:
    given = arguments()
    torch.set_num_threads(given.threads)
    experiment = Experiment(given)
    for name in given.sets:
        file, read = SETS[name]
        if not (given.folder / file).exists() and name not in given.only:
            print(f"no {file}: without {name}", flush=True)
            continue
        data = dataclasses.replace(read(given.folder / file), name=name)
        wanted = DETECTORS if len(data.strange) else tuple(CONTENDERS)
        for model in (model for model in given.models if model in wanted):
            for seed in range(given.seeds):
                experiment.unit(model, data, seed)
    results = common.circumstances() | experiment.results()
    print(text(results))
    draw(results, given.out.with_suffix(".png"))
    common.shrink(given.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
