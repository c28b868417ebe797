"""Growth curves on this machine: ``python bench/curves.py``.

Peak extra memory of a loss with its backward pass against D (C = 64, B = 64, hidden 2 x 256 by default, head
2 x 128), and the time of a draw against D, against L * T and against the batch. Writes
bench/results/curves/<machine>.json and the plots beside it.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import torch

from fastcsm.benchmark import (
    Draw,
    TrainingStep,
    document,
    extra_memory,
    interleave,
    machine_slug,
    quartiles,
)

ROOT = Path(__file__).resolve().parents[1]
DIMENSIONS = (64, 128, 256, 512, 1024, 2048, 3072, 4096)
CONTENDERS = {"double_backward": "eager double backward, mask * weight", "fastcsm": "fastcsm"}


def memory_curve(dimensions: list[int], hidden: tuple[int, ...]) -> dict:
    """Bytes above the gradients, each point in a process of its own."""
    case = TrainingStep(context=64, batch=64, hidden=hidden)
    bytes_: dict[str, list[int | None]] = {name: [] for name in CONTENDERS}
    for features in dimensions:
        for name in CONTENDERS:
            config = replace(case, features=features).config()
            request = {
                "op": case.op,
                "contender": name,
                "threads": torch.get_num_threads(),
                "config": config,
            }
            bytes_[name].append(extra_memory(request))
        print(
            f"D = {features}:",
            {k: v[-1] and f"{v[-1] / 2**20:.1f} MiB" for k, v in bytes_.items()},
            flush=True,
        )
    pairs = zip(dimensions, bytes_["double_backward"], bytes_["fastcsm"], strict=True)
    ratios = {str(features): eager / own for features, eager, own in pairs if eager and own}
    return {"config": case.config(), "D": dimensions, "extra_bytes": bytes_, "eager_over_fastcsm": ratios}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return float(numpy.polyfit(numpy.log(sizes), numpy.log(seconds), 1)[0])


def draw_curve(cases: dict[int, Draw], rounds: int) -> dict:
    """Median seconds by size, their exponent; and the same of the Langevin steps after each level's first."""
    calls = {}
    for size, case in cases.items():
        model = case.model()
        for steps in {1, case.steps}:
            calls[f"{size} {steps}"] = lambda model=model, case=case, steps=steps: model.sample(
                case.samples, steps=steps
            )
    seconds = interleave(calls, rounds, warmup=1)
    taken = {name: quartiles(times)["median"] for name, times in seconds.items()}
    sizes = list(cases)
    whole = [taken[f"{size} {case.steps}"] for size, case in cases.items()]
    steps = [time - taken[f"{size} 1"] for (size, case), time in zip(cases.items(), whole, strict=True)]
    found = {
        "config": next(iter(cases.values())).config(),
        "sizes": sizes,
        "seconds": whole,
        "exponent": exponent(sizes, whole),
    }
    if all(case.steps > 1 for case in cases.values()) and min(steps) > 0:
        found |= {"langevin_seconds": steps, "langevin_exponent": exponent(sizes, steps)}
    return found


def draw_curves(rounds: int) -> dict:
    base = Draw(features=128, hidden=(256, 256), samples=64, levels=5, steps=20)
    return {
        "D": draw_curve({d: replace(base, features=d) for d in (64, 128, 256, 512, 1024)}, rounds),
        "L * T": draw_curve({5 * t: replace(base, steps=t) for t in (5, 10, 20, 40, 80)}, rounds),
        "batch": draw_curve({b: replace(base, samples=b) for b in (16, 32, 64, 128, 256, 512)}, rounds),
    }


def plot(measured: dict, stem: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = []
    memory = measured["memory"]
    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    for name, label in CONTENDERS.items():
        mebibytes = [numpy.nan if b is None else b / 2**20 for b in memory["extra_bytes"][name]]
        axes.loglog(memory["D"], mebibytes, "o-", label=label)
    axes.set(
        xlabel="variables D", ylabel="MiB above the gradients", title="loss and backward, C = 64, B = 64"
    )
    _finish(axes, memory["D"])
    files.append(stem.with_name(f"{stem.name}-memory.png"))
    figure.savefig(files[-1], dpi=120)

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axes, (name, curve) in zip(panels, measured["draw"].items(), strict=True):
        axes.loglog(curve["sizes"], curve["seconds"], "o-", label=f"draw, exponent {curve['exponent']:.2f}")
        if "langevin_seconds" in curve:
            label = f"Langevin part, exponent {curve['langevin_exponent']:.2f}"
            axes.loglog(curve["sizes"], curve["langevin_seconds"], "s--", label=label)
        axes.set(xlabel=name, ylabel="seconds")
        _finish(axes, curve["sizes"])
    files.append(stem.with_name(f"{stem.name}-draw.png"))
    figure.savefig(files[-1], dpi=120)
    return files


def _finish(axes, sizes: list[int]) -> None:
    axes.set_xticks(sizes, map(str, sizes), rotation=45)
    axes.set_xticks([], minor=True)
    axes.legend()
    axes.grid(True, which="both", alpha=0.3)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=3, help="interleaved rounds of the draws")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument(
        "--dimensions", type=int, nargs="+", default=list(DIMENSIONS), help="D of the memory curve"
    )
    p.add_argument("--hidden", type=int, nargs="+", default=[256, 256], help="of the memory curve's MADE")
    p.add_argument("--out", type=Path, help="JSON file; default: bench/results/curves/<machine>.json")
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.out or ROOT / "bench" / "results" / "curves" / f"{machine_slug()}.json"
    measured = document([], arguments.rounds)
    del measured["results"]
    measured["memory"] = memory_curve(arguments.dimensions, tuple(arguments.hidden))
    measured["draw"] = draw_curves(arguments.rounds)
    for name, curve in measured["draw"].items():
        part = f", Langevin part {curve['langevin_exponent']:.2f}" if "langevin_exponent" in curve else ""
        print(f"draw against {name}: exponent {curve['exponent']:.2f}{part}")
    print(
        "memory, eager over fastcsm:",
        {k: round(v, 1) for k, v in measured["memory"]["eager_over_fastcsm"].items()},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for file in plot(measured, out.with_suffix("")):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
