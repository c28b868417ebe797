"""What is counted: every op's kernels at the default head, on both backends, a unit of work at a time.

A case runs its op twice; what the second run executes beyond the first is that of ``units`` units, without
what a block does once.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch

import fastcsm
from fastcsm import functional
from fastcsm.reference.preconditioning import SQUASH

from ..baselines.head import Rows
from ..micro.rows import fused
from . import host

CONTEXT, WIDTHS = 32, (128, 128)
DTYPES = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
#: Figures of a unit that must not grow.
FIGURES = ("instructions", "special", "wavefronts", "sectors", "barriers", "flops", "path")


class Case(NamedTuple):
    """An op whose kernel is counted.

    Attributes:
        kernel: a part of its name.
        unit: what a unit is.
        sizes: what ``run`` takes, of the first and the second run.
        units: of each block between them.
        frequencies: of the head, () where there is none.
        warps: whether the units of a block are its warps' own, side by side.
        head: what kind it is, "" for a plain one.
    """

    kernel: str
    unit: str
    run: Callable[[int, torch.dtype, int], Any]
    sizes: tuple[int, int]
    units: float
    frequencies: tuple[int, ...] = (0, 16)
    warps: bool = False
    head: str = ""


def set_precision(precision: str) -> None:
    """Torch's setting for products of float32 under a name of ``DTYPES``."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def rows(n: int, dtype: torch.dtype, frequencies: int, features: int = CONTEXT) -> Rows:
    """Rows of so many context features, and the default head."""
    torch.manual_seed(0)
    sizes = [CONTEXT + 1 + 2 * frequencies, *WIDTHS, 1]
    weights = [torch.randn(o, i) / 2 / i**0.5 for i, o in pairwise(sizes)]
    biases, own = [torch.randn(o) / 4 for o in sizes[1:]], torch.randn(frequencies)
    context, x = torch.randn(n, features), torch.randn(n)
    return Rows(context, x, weights, biases, own, "silu" if frequencies else "softplus").to(dtype)


def score_head(n: int, dtype: torch.dtype, frequencies: int) -> None:
    fused(functional.score_head, rows(n, dtype, frequencies))


def csm_loss(n: int, dtype: torch.dtype, frequencies: int) -> None:
    fused(functional.csm_loss, rows(n, dtype, frequencies).to(dtype, gradients=True))


def langevin(steps: int, dtype: torch.dtype, frequencies: int, **head: Any) -> None:
    fused(functional.langevin, rows(16, dtype, frequencies), step_sizes=[0.1], steps=steps, seed=1, **head)


def langevin_draw(steps: int, dtype: torch.dtype, frequencies: int) -> None:
    head, variables, hidden = rows(0, dtype, frequencies)[2:], 2, 32
    made = [(torch.randn(o, i) / i**0.5).to(dtype) for i, o in ((variables, hidden), (hidden, 2 * CONTEXT))]
    functional.langevin_draw(
        torch.zeros(16, variables).to(dtype),
        functional.Head(*head),
        functional.Network(made, [None, None], [torch.ones(hidden, dtype=torch.int64)]),
        functional.Stages([0.1], steps),
        functional.Draw(seed=1),
    )


def conditional_density(n: int, dtype: torch.dtype, frequencies: int, **head: Any) -> None:
    fused(functional.conditional_density, rows(n, dtype, frequencies), low=-3.0, high=3.0, **head)


def probability_flow(n: int, dtype: torch.dtype, frequencies: int, **head: Any) -> None:
    given = rows(n, dtype, frequencies, CONTEXT - (not head))
    fused(functional.probability_flow, given, sigma_from=0.1, sigma_to=1.0, **head)


def preconditioned(case: Case, head: dict[str, Any]) -> Case:
    """The same with a preconditioned head, so many of whose frequencies will do."""
    run = partial(case.run, squash=SQUASH, **head)
    return case._replace(run=run, frequencies=(16,), head="preconditioned")


def layer(batch: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    sizes = (batch, inputs), (outputs, inputs), (outputs,)
    leaves = [torch.randn(size).to(dtype).requires_grad_() for size in sizes]
    degrees = [torch.zeros(n, dtype=torch.int64) for n in (inputs, outputs)]
    functional.masked_linear(*leaves, *degrees, activation="silu").sum().backward()


def forward(inputs: int, dtype: torch.dtype, _: int) -> None:
    layer(256, inputs, 128, dtype)


def backward_x(outputs: int, dtype: torch.dtype, _: int) -> None:
    layer(256, 128, outputs, dtype)


def backward_weight(batch: int, dtype: torch.dtype, _: int) -> None:
    layer(batch, 128, 13 * 128, dtype)  # so many tiles that none is cut in slices of the batch


LAYERS = (
    Case("masked_linear_fwd_kernel", "128 x 128 outputs, 64 inputs", forward, (128, 256), 2, ()),
    Case("masked_linear_bwd_x_kernel", "128 x 128 inputs, 64 outputs", backward_x, (128, 256), 2, ()),
    Case("masked_linear_bwd_weight_kernel", "128 x 128 edges, 64 rows", backward_weight, (64, 128), 1, ()),
)
#: Ops that know a preconditioned head.
ROWS_TRITON = (
    Case("langevin_kernel", "a step of 16 rows", langevin, (2, 4), 2),
    Case("conditional_density_kernel", "a row", conditional_density, (6, 12), 1),
    Case("probability_flow_kernel", "32 rows", probability_flow, (96, 192), 1),
)
ROWS_CUDA = (
    Case("langevin_kernel", "a step of 8 rows", langevin, (2, 4), 2),
    Case("conditional_density_kernel", "a row", conditional_density, (36, 72), 12, warps=True),
    Case("probability_flow_kernel", "16 rows", probability_flow, (384, 768), 8, warps=True),
)
#: What gives each of them its level.
LEVELS: tuple[dict[str, Any], ...] = ({"stage_features": [0.0]}, {"stage_feature": 0.0}, {})
CASES = {
    "triton": (
        Case("score_head_fwd_kernel", "64 rows", score_head, (64 * 6, 64 * 9), 1),
        Case("csm_loss_kernel", "64 rows", csm_loss, (64 * 6, 64 * 9), 1),
        Case("langevin_draw_kernel", "a step of 16 samples", langevin_draw, (2, 4), 4),
        *ROWS_TRITON,
        *map(preconditioned, ROWS_TRITON, LEVELS),
        *LAYERS,
    ),
    "cuda": (
        Case("score_head_fwd_kernel", "32 rows", score_head, (32 * 6, 32 * 9), 1),
        Case("csm_loss_kernel", "32 rows", csm_loss, (32 * 6, 32 * 9), 1),
        Case("langevin_draw_kernel", "a step of 8 samples", langevin_draw, (2, 4), 4),
        *ROWS_CUDA,
        *map(preconditioned, ROWS_CUDA, LEVELS),
        *LAYERS,
    ),
}


def figures(case: Case, first: host.Report, second: host.Report) -> dict[str, float]:
    """Counts of a unit: of a block and for each of its units beyond the first run's, or of a block alone."""
    blocks = [report.grid[0] * report.grid[1] * report.grid[2] for report in (first, second)]
    same = blocks[0] == blocks[1]
    number = blocks[1] * case.units if same else (blocks[1] - blocks[0]) * case.units

    def unit(name: str) -> float:
        values = [flat(report.counts)[name] for report in (first, second)]
        return round((values[1] - values[0]) / number, 2)

    path = second.counts["path"] - first.counts["path"] * same
    in_turn = case.units if same and not case.warps else 1
    kinds = {name: unit(name) for name in second.counts["kinds"]}
    return {
        "unit": case.unit,
        "instructions": unit("instructions"),
        "special": unit("special"),
        "wavefronts": unit("shared_wavefronts"),
        "least_wavefronts": unit("shared_least"),
        "sectors": unit("global_sectors"),
        "least_sectors": unit("global_least"),
        "barriers": unit("barrier"),
        "flops": unit("flops"),
        "memory": (unit("distinct_read") + unit("distinct_written")) * bool(case.frequencies),
        "path": round(path / in_turn, 2),
        "weighted": unit("weighted"),
        "static": flat(second.counts)["static_weighted"],
        "wgmma": any(word.startswith("wgmma") for word in second.counts["words"]),
        "side": case.units if case.warps else 1,
        "threads": second.threads,
        "shared": second.shared_bytes,
        "kinds": {name: n for name, n in kinds.items() if n},
    }


#: Instructions of the hardware that one of PTX becomes, where it is not one.
WEIGHTS = {"mov": 0.1, "ld.param": 0.2, "cvta": 0, "bra": 1, "and.pred": 0.5, "or.pred": 0.5, "not.pred": 0}
WIDE = ("add", "sub", "mov", "shl", "shr", "selp", "and", "or", "xor", "setp")


def weight(word: str) -> float:
    """Of an instruction by its first and last word, as ``words`` has them."""
    op, _, kind = word.partition(".")
    if word in WEIGHTS or op in WEIGHTS:
        return WEIGHTS.get(word, WEIGHTS.get(op, 1))
    if op == "div":
        return 8 if kind == "f32" else 20
    if kind in ("s64", "u64", "b64"):
        return 4 if op in ("mul", "mad") and kind != "f64" else 2 if op in WIDE else 1
    return 1


def flat(counts: dict[str, Any]) -> dict[str, float]:
    """The counts with those by kind, and instructions as the hardware may have them."""
    words = {word: (weight(word) * n[0], weight(word) * n[1]) for word, n in counts["words"].items()}
    dynamic, static = (sum(pair[k] for pair in words.values()) for k in (0, 1))
    return {**counts, **counts["kinds"], "weighted": dynamic, "static_weighted": static}


def count(case: Case, backend: str, dtype: torch.dtype, frequencies: int, place: Any) -> dict[str, float]:
    """A case's figures, run inside the context manager ``place()``."""
    found = []
    for size in case.sizes:
        with place(), fastcsm.backend(backend), host.recorded(paths=True) as reports:
            case.run(size, dtype, frequencies)
        found.append(next(report for report in reports if case.kernel in report.kernel))
    return figures(case, *found)


Place = Callable[[], AbstractContextManager]


def every(
    backend: str, name: str, architecture: int, place: Place, only: str = ""
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, a call that gives its figures) of a backend's cases whose names match ``only``.

    Args:
        name: under which the backend is registered.
        place: what the runs happen inside.
    """
    for precision, dtype in DTYPES.items():
        set_precision(precision)
        for case in CASES[backend]:
            for frequencies in case.frequencies or (None,):
                if precision == "float32" and (case.kernel != "csm_loss_kernel" or frequencies):
                    continue
                kind = "" if frequencies is None else f"{case.head} E={frequencies}"
                label = " ".join([case.kernel, *kind.split(), precision, f"sm_{architecture}"])
                if re.search(only, label):
                    yield label, partial(count, case, name, dtype, frequencies or 0, place)
    torch.set_float32_matmul_precision("highest")
