"""Growth curves on this machine: ``python bench/sweeps.py``, about three minutes on two idle cores.

Each sweep varies one size, fits an exponent to each curve and is plotted on logarithmic axes. Writes
bench/results/curves/<machine>.json and a plot of each sweep beside it; ``--plot FILE.json`` draws the plots
again. ``--sweep NAME ...`` runs some of them:

N, C, width, layers, dtype, threads   csm_loss with its backward pass against autograd
D          loss and gradients of models: exact and sliced score matching beside CSM (Fig. 1a of the paper)
memory     peak memory of a CSM training step against D
draw-D, draw-steps, draw-batch   Langevin draws of whole samples
"""

import argparse
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from fastcsm.bench.baselines.joint import exact_score_matching, sliced_score_matching
from fastcsm.bench.harness.case import Case
from fastcsm.bench.harness.measure import Probe, interleave, machine_slug, quartiles
from fastcsm.bench.harness.report import SCHEMA, format_header
from fastcsm.bench.harness.runner import circumstances, memory_request, run_case
from fastcsm.bench.micro.registry import CsmLoss, Draw, TrainingStep
from fastcsm.bench.micro.rows import WAYS
from fastcsm.evaluation import plots

ROOT = Path(__file__).resolve().parents[1]
Values = list[float | None]

#: Labels of curves; one colour each in every plot.
LABELS = {
    **{name: WAYS[name][0] for name in ("double_backward", "tangent", "compile_tangent")},
    "fastcsm": "fastcsm",
    "sm": "exact score matching, D backward passes",
    "ssm": "sliced score matching, 1 projection",
    "draw": "draw",
    "langevin": "Langevin steps of it",
}


def exponent(sizes: Sequence[float], values: Values) -> float | None:
    """Slope of the least-squares line through the logarithms of the larger half of the sizes."""
    points = [(x, y) for x, y in zip(sizes, values, strict=True) if y]
    points = points[len(points) // 2 :] if len(points) > 3 else points
    if len(points) < 2:
        return None
    return float(numpy.polyfit(*numpy.log(numpy.array(points)).T, 1)[0])


def swept(axis: str, sizes: Sequence[Any], curves: Mapping[str, Values], **more: Any) -> dict[str, Any]:
    """An entry of the file. ``sizes`` are numbers, or words where the axis has no order."""
    found = {"axis": axis, "unit": "seconds", "sizes": list(sizes), "curves": dict(curves), **more}
    if not any(isinstance(size, str) for size in sizes):
        found["exponents"] = {name: exponent(sizes, values) for name, values in curves.items()}
    return found


def crossover(sizes: Sequence[float], slow: Values, fast: Values) -> float | None:
    """The size from which on ``fast`` takes less time, between two sizes by a power law.

    The smallest size if it takes less everywhere; None if it does not at the largest.
    """
    pairs = zip(sizes, slow, fast, strict=True)
    gains = [(size, math.log(s / f)) for size, s, f in pairs if s and f]
    if not gains or gains[-1][1] <= 0:
        return None
    above, most = gains[-1]
    for size, gain in reversed(gains[:-1]):
        if gain <= 0:
            return size * (above / size) ** (-gain / (most - gain))
        above, most = size, gain
    return above


def loss_sweep(axis: str, title: str, cases: Mapping[Any, Case], compiled: bool = False) -> dict[str, Any]:
    """csm_loss by case, or by "threads"; each point is checked against float64 before it is timed."""
    names = ["double_backward", "tangent", *(["compile_tangent"] if compiled else []), "fastcsm"]
    curves: dict[str, Values] = {name: [] for name in names}
    before = torch.get_num_threads()
    for size, case in cases.items():
        torch.compiler.reset()  # each size is compiled for itself
        torch.set_num_threads(size if axis == "threads" else before)
        result = run_case(
            case,
            precisions=["highest"],
            rounds=15 if case.config()["rows"] <= 4096 else 5,
            compiled=compiled,
            memory=None,
            without=("jvp", "compile_jvp"),
            square=64,
        )
        rows = {row["name"]: row for row in result["rows"]}
        for name in names:
            curves[name].append(rows[name]["seconds"]["median"] if "seconds" in rows[name] else None)
    torch.set_num_threads(before)
    return swept(axis, list(cases), curves, title=title)


def rows_sweep(sizes: Sequence[int], compiled: bool = True) -> dict[str, Any]:
    """csm_loss against N, and the N from which on fusing pays."""
    title = "csm_loss: C = 32, head 2 x 128 softplus"
    found = loss_sweep("rows N", title, {n: CsmLoss(rows=n) for n in sizes}, compiled)
    fast = found["curves"]["fastcsm"]
    slow = {name: values for name, values in found["curves"].items() if name != "fastcsm"}
    found["crossover"] = {name: crossover(sizes, values, fast) for name, values in slow.items()}
    return found


def models_sweep(sizes: Sequence[int], most: int, rounds: int) -> dict[str, Any]:
    """Loss and all gradients against D, B = 64; exact score matching up to D = ``most``."""
    curves: dict[str, Values] = {name: [] for name in ("sm", "ssm", "double_backward", "fastcsm")}
    for features in sizes:
        case = TrainingStep(features=features, hidden=(256, 256), batch=64)
        entries = case.contenders(["highest"], compiled=False)
        calls: dict[str, Callable[[], object]] = {
            name: entries[name].memory or entries[name].call for name in ("double_backward", "fastcsm")
        }
        hidden = nn.Linear(features, 256), nn.Softplus(), nn.Linear(256, 256), nn.Softplus()
        network = nn.Sequential(*hidden, nn.Linear(256, features))
        x, v = torch.randn(2, 64, features)
        calls["ssm"] = partial(gradients, network, sliced_score_matching, x, v)
        if features <= most:
            calls["sm"] = partial(gradients, network, exact_score_matching, x)
        seconds = interleave(calls, rounds, warmup=1)
        for name, values in curves.items():
            values.append(quartiles(seconds[name])["median"] if name in seconds else None)
    title = "loss and gradients, B = 64, hidden 2 x 256; CSM: MADE, C = 32, head 2 x 128"
    return swept("variables D", sizes, curves, title=title)


def gradients(network: nn.Module, loss: Callable[..., torch.Tensor], *data: torch.Tensor) -> object:
    return torch.autograd.grad(loss(network, *data), list(network.parameters()))


def memory_sweep(sizes: Sequence[int], hidden: tuple[int, ...] = (256, 256)) -> dict[str, Any]:
    """Bytes above the gradients of a training step's loss and backward pass."""
    case = TrainingStep(context=64, batch=64, hidden=hidden)
    curves: dict[str, Values] = {"double_backward": [], "fastcsm": []}
    with Probe() as probe:
        for features in sizes:
            for name, values in curves.items():
                request = memory_request(replace(case, features=features), name)
                values.append(probe.extra_memory(request))
    title = "loss and backward above the gradients, C = 64, B = 64, hidden 2 x 256"
    return swept("variables D", sizes, curves, unit="bytes", title=title)


def draw_sweep(axis: str, cases: Mapping[int, Draw], rounds: int) -> dict[str, Any]:
    """Draws, and the part of their time that Langevin steps after each level's first take."""
    calls: dict[str, Callable[[], object]] = {}
    for size, case in cases.items():
        for steps in {1, case.steps}:
            calls[f"{size} {steps}"] = partial(case.model().sample, case.samples, steps=steps)
    seconds = interleave(calls, rounds, warmup=1)
    taken = {name: quartiles(times)["median"] for name, times in seconds.items()}
    curves: dict[str, Values] = {"draw": [taken[f"{size} {case.steps}"] for size, case in cases.items()]}
    rest = [taken[f"{size} {case.steps}"] - taken[f"{size} 1"] for size, case in cases.items()]
    if min(rest) > 0:
        curves["langevin"] = list(rest)
    title = f"{next(iter(cases.values())).title()}, save the {axis}"
    return swept(axis, list(cases), curves, title=title)


def sweeps(small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every sweep by name; ``small`` for tests."""

    def sizes(*values: int) -> list[int]:
        return [2, 3, 5][: len(values)] if small else list(values)

    def losses(axis: str, name: str, values: Iterable[Any], rows: int) -> Callable[[], dict[str, Any]]:
        base = CsmLoss(rows=64 if small else rows)
        cases = {value[0]: replace(base, **{name: value[-1]}) for value in values}
        return partial(loss_sweep, axis, f"{base.title()}, save the {axis}", cases)

    def draws(axis: str, name: str, values: Iterable[Any], times: int = 1) -> Callable[[], dict[str, Any]]:
        cases = {times * value: replace(base, **{name: value}) for value in values}
        return partial(draw_sweep, axis, cases, rounds=1 if small else 3)

    base = Draw(features=128, hidden=(256, 256), samples=64, levels=5, steps=20)
    base = replace(base, features=4, samples=4, hidden=(8, 8), levels=2, steps=2) if small else base
    on_threads = dict.fromkeys(range(1, (os.cpu_count() or 1) + 1), CsmLoss(rows=64 if small else 50176))
    steps = (2, 3) if small else (5, 10, 20, 40, 80)
    return {
        "N": partial(rows_sweep, sizes(1, 16, 256, 1024, 4096, 16384, 65536), compiled=not small),
        "C": losses("context features C", "context", ((c, c) for c in sizes(4, 16, 64, 256)), 8192),
        "width": losses("width H", "hidden", ((h, (h, h)) for h in sizes(16, 32, 64, 128, 256, 512)), 4096),
        "layers": losses("hidden layers", "hidden", ((k, (128,) * k) for k in (1, 2, 3, 4)), 8192),
        "dtype": losses("dtype", "dtype", ((t, t) for t in ("float64", "float32", "bfloat16")), 8192),
        "threads": partial(loss_sweep, "threads", CsmLoss().title(), on_threads),
        "D": partial(models_sweep, sizes(8, 16, 32, 64, 128, 256, 512, 1024), 256, 1 if small else 3),
        "memory": partial(memory_sweep, sizes(64, 128, 256, 512, 1024, 2048, 4096)),
        "draw-D": draws("variables D", "features", sizes(64, 128, 256, 512, 1024)),
        "draw-steps": draws("levels L times steps T", "steps", steps, base.levels),
        "draw-batch": draws("samples", "samples", sizes(16, 32, 64, 128, 256, 512)),
    }


def sentences(name: str, sweep: Mapping[str, Any]) -> list[str]:
    """What a sweep says, in words."""
    exponents = sweep.get("exponents", {})
    slopes = [f"{LABELS[curve]} {slope:.2f}" for curve, slope in exponents.items() if slope is not None]
    lines = [f"exponents in {sweep['axis']}: {', '.join(slopes)}"] if slopes else []
    first, last = sweep["sizes"][0], sweep["sizes"][-1]
    for curve, values in sweep["curves"].items() if name == "N" else ():
        if values[0]:
            lines.append(f"a call with N = {first}: {LABELS[curve]} {1e6 * values[0]:.0f} us")
    for curve, size in sweep.get("crossover", {}).items():
        if size is None:
            lines.append(f"fastcsm does not pass {LABELS[curve]} up to N = {last}")
        elif size == first:
            lines.append(f"fastcsm is faster than {LABELS[curve]} at every N from {size}")
        else:
            lines.append(f"fastcsm is faster than {LABELS[curve]} from N = {size:.0f} on")
    return [f"{name}: {line}" for line in lines]


def plot(measured: Mapping[str, Any], stem: Path) -> list[Path]:
    """A plot of every sweep beside ``stem``."""
    files = []
    for name, sweep in measured["sweeps"].items():
        figure = plots.new_figure(6, 4.5)
        axes = figure.add_subplot()
        ordered = "exponents" in sweep
        places = sweep["sizes"] if ordered else range(len(sweep["sizes"]))
        scale, unit = (2**20, "MiB") if sweep["unit"] == "bytes" else (1e-3, "milliseconds")
        for index, (curve, values) in enumerate(sweep["curves"].items()):
            slope = sweep.get("exponents", {}).get(curve)
            label = LABELS[curve] + (f", exponent {slope:.2f}" if slope is not None else "")
            shown = [math.nan if value is None else value / scale for value in values]
            colour = f"C{list(LABELS).index(curve) % 10}"
            axes.plot(places, shown, "o-", color=colour, label=label, zorder=index)
        axes.set(xlabel=sweep["axis"], ylabel=unit, yscale="log", xscale="log" if ordered else "linear")
        axes.set_title(textwrap.fill(sweep["title"], 80), fontsize=9)
        axes.set_xticks(list(places), [str(size) for size in sweep["sizes"]], rotation=45)
        axes.set_xticks([], minor=True)
        axes.legend(fontsize=8)
        axes.grid(True, which="both", alpha=0.3)
        files.append(stem.with_name(f"{stem.name}-{name}.png"))
        figure.savefig(files[-1], dpi=100)
    return files


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(sweeps(small=True))
    p.add_argument("--sweep", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    p.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    p.add_argument("--out", type=Path, help="JSON file; default: bench/results/curves/<machine>.json")
    p.add_argument("--plot", type=Path, metavar="FILE", help="measure nothing: draw the plots of this file")
    arguments = p.parse_args(argv)
    if arguments.plot:
        document = json.loads(arguments.plot.read_text(encoding="utf-8"))
        print(*plot(document, arguments.plot.with_suffix("")), sep="\n")
        return 0
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    measured: dict[str, Any] = {"schema": SCHEMA, **circumstances(), "sweeps": {}}
    known = sweeps(arguments.small)
    for name in arguments.sweep:
        measured["sweeps"][name] = known[name]()
        for sentence in sentences(name, measured["sweeps"][name]):
            print(sentence, flush=True)
    print(format_header(measured))
    out = arguments.out or ROOT / "bench" / "results" / "curves" / f"{machine_slug()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(*plot(measured, out.with_suffix("")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
