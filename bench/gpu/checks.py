"""What a process checks: an op on one backend against the reference in float64.

Tolerances are those of the tests (tests/ops/support.py, comparisons.py): an error at most twice that of plain
PyTorch in the same precision on the same device, and a few units of rounding.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comparisons
import torch
from support import SEEDS, Case, shares
from torch import Tensor

from fastcsm.reference.preconditioning import SQUASH

from ..micro.conditional_density import SIGMA
from . import subjects
from .subjects import (
    Conditional,
    Drawn,
    Keep,
    Layer,
    LinearHead,
    Plan,
    Preconditioned,
    Result,
    on,
    with_gradients,
)

RESOURCES = Path(__file__).resolve().parents[1] / "results" / "resources.json"
Named = dict[str, Tensor]


class Check(NamedTuple):
    """One comparison.

    Attributes:
        make: the subject of a seed, in float64 or with a method ``to`` that makes it so.
        run: its results on the backend in force.
        plain: plain PyTorch's; default: ``run`` on the reference.
        shares: of (got, plain, truth) of all seeds.
    """

    make: Callable[[int], Any]
    run: Callable[[Any], Named]
    plain: Callable[[Any], Named] | None = None
    shares: Callable[..., dict[str, float]] = shares


class OnDevice(Case):
    """A case whose copies are on the device."""

    def to(self, dtype, device=None):
        other = super().to(dtype, device or subjects.device())
        other.__class__ = OnDevice
        return other


def gradients(loss: Callable[[Any, list[Tensor]], Tensor]) -> Callable[[Any], Named]:
    def run(subject: Any) -> Named:
        leaves = subject.leaves()
        found = with_gradients(loss(subject, leaves), leaves)
        return {"loss": found[0], **{f"gradient {k}": value for k, value in enumerate(found[1:])}}

    return run


def density(subject: Conditional) -> Named:
    found = subject.density()._asdict()
    quantile = subject.density(inverse=True).point
    values = {name: found[name] for name in ("log_density", "log_normalizer", "cdf")}
    return {name: value.detach() for name, value in {**values, "quantile": quantile}.items()}


def log_density(subject: Conditional, leaves: list[Tensor]) -> Tensor:
    return subject.density(leaves).log_density.sum()


def flow(subject: Conditional) -> Named:
    away, back = subject.flow(SIGMA, 1.0), subject.flow(1.0, SIGMA)
    return {"point": away.point, "change": away.change, "back": back.point}


def worst_flow(*cases: tuple[Named, Named, Named]) -> dict[str, float]:
    found = [comparisons.flow_shares(*case, names=("point", "change", "back")) for case in cases]
    return {name: max(one[name] for one in found) for name in found[0]}


Sizes = dict[str, Check]


def each(kind: type, run: Callable[[Any], Named], *shapes: tuple, **changes: Any) -> Sizes:
    """A check of subjects of one kind in each shape."""

    def check(shape: tuple) -> Check:
        return Check(lambda seed: kind(*shape, seed=seed), run, **changes)

    return {f"{kind.__name__}{shape}": check(shape) for shape in shapes}


HEADS = {
    "4097 rows, 2 x 128": (4097, 32, (128, 128), 0, "softplus"),
    "1000 rows, 2 x 128, C = 33, E = 16": (1000, 33, (128, 128), 16, "silu"),
    "65 rows, 17 and 9, E = 3": (65, 32, (17, 9), 3, "tanh"),
    "300 rows, 4 layers, E = 2": (300, 32, (32, 48, 64, 16), 2, "elu"),
    "129 rows, 130 and 257": (129, 32, (130, 257), 0, "gelu"),
    "5 rows": (5, 3, (9, 5), 1, "silu"),
}


def heads(**runs: tuple[Callable, Callable]) -> tuple[Sizes, Sizes, Sizes]:
    """Of ops on rows of a head: run and plain PyTorch's by what they are called."""

    def make(seed: int, shape: tuple) -> OnDevice:
        return OnDevice(seed=seed, **comparisons.settings(shape[:4], shape[4]))

    checks = [
        {f"{label} {name}": Check(partial(make, shape=shape), *pair) for name, pair in runs.items()}
        for label, shape in HEADS.items()
    ]
    return checks[0], {name: one for part in checks[1:-1] for name, one in part.items()}, checks[-1]


layers = partial(each, Layer, lambda s: dict(zip(("y", "x", "weight", "bias"), s.run(), strict=True)))
linears = partial(each, LinearHead, gradients(LinearHead.loss))


def draws(samples: int, *shape: Any) -> Sizes:
    return each(Drawn, lambda subject: {"x": subject.sample(samples)}, shape)


KINDS: tuple[type[Conditional], ...] = Conditional, Preconditioned


def flows(*shapes: tuple, kinds: tuple[type[Conditional], ...] = KINDS) -> Sizes:
    found: Sizes = {}
    for kind in kinds:
        found |= each(kind, flow, *shapes, shares=worst_flow)
    return found


def densities(*shapes: tuple, kinds: tuple[type[Conditional], ...] = KINDS) -> Sizes:
    found: Sizes = {}
    for kind in kinds:
        slopes = each(kind, gradients(log_density), *(shape for shape in shapes if shape[0] <= 1000))
        found |= each(kind, density, *shapes)
        found |= {f"gradient, {label}": check for label, check in slopes.items()}
    return found


_MAIN = 4097, 32, (128, 128)
_FAR = 1025, 32, (70, 130), 1e3
_ROWS = (17, 32, (70, 130)), (65, 32, (5,)), (33, 32, (8, 24, 15, 31)), (1000, 32, (128, 128))
#: Of each op: what is checked first, about the edges of tiles, and in a dry run.
SIZES: dict[str, tuple[Sizes, Sizes, Sizes]] = {
    "csm_loss": heads(loss=(comparisons.loss, comparisons.plain_gradients)),
    "score_head": heads(
        forward=(comparisons.scores, comparisons.plain_scores),
        backward=(comparisons.backward, comparisons.plain_backward),
    ),
    "langevin": heads(
        chain=(comparisons.chain, comparisons.plain_chain),
        preconditioned=(
            partial(comparisons.chain, squash=SQUASH),
            partial(comparisons.plain_chain, squash=SQUASH),
        ),
    ),
    "masked_linear": (
        layers((4097, 784, 512)),
        layers((1024, 784, 512), (65, 300, 129), (1, 1, 1)),
        layers((3, 5, 4)),
    ),
    "linear_csm_loss": (linears((241, 17, 300)), linears((5, 7, 33)), linears((2, 3, 4, 3, (9, 5)))),
    "langevin_draw": (
        draws(4097, 13, (70, 90)),
        draws(17, 13, (70, 70), (128, 128), 10, True, True),
        draws(3, 2, (5,), (9, 5), 2),
    ),
    "conditional_density": (
        densities(_MAIN),
        densities(*_ROWS) | densities(_FAR, kinds=(Preconditioned,)),
        densities((2, 3, (5,))),
    ),
    "probability_flow": (
        flows(_MAIN),
        flows(*_ROWS) | flows(_FAR, kinds=(Preconditioned,)),
        flows((3, 3, (9, 5))),
    ),
}


def narrow(backend: str) -> Callable[[Tensor], Tensor]:
    """How the backend's operands become tf32, of which plain PyTorch's are made in the same way."""
    return comparisons.truncate_tf32 if backend == "triton" else comparisons.round_tf32


def one_check(backend: str, precision: str, check: Check) -> Result:
    """Errors over what is allowed, and whether two runs give equal bits."""
    plain = check.plain or (lambda subject: on("reference", lambda: check.run(subject)))
    low = check.make(0).to(comparisons.DTYPES[precision])
    start = time.monotonic()
    first = on(backend, lambda: check.run(low))
    subjects.synchronize()
    seconds = time.monotonic() - start
    results = [
        comparisons.compared(
            subjects.stand_in(backend), check.run, plain, check.make(seed), precision, narrow(backend)
        )
        for seed in (SEEDS[:3] if subjects.DRY else SEEDS)
    ]
    found = check.shares(*results)
    same = all(torch.equal(first[name], value) for name, value in results[0][0].items())
    return {
        "share": max(found.values(), key=lambda share: (share != share, share)),
        "shares": found,
        "deterministic": same,
        "first_call_seconds": seconds,
        "passed": same and all(share <= 1 for share in found.values()),
    }


def run_checks(which: int, name: str, plan: Plan, keep: Keep) -> Result:
    op, precision = name.split()
    (backend,) = plan.backends
    subjects.set_precision(precision)
    cases: Result = {}
    for label, check in SIZES[op][2 if subjects.DRY else which].items():
        try:
            cases[label] = one_check(backend, precision, check)
        except Exception as error:
            if subjects.refused(error):
                cases[label] = {"refused": str(error)}
            else:
                traceback.print_exc()
                cases[label] = {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
        print(label, json.dumps(cases[label]), flush=True)
        keep({"cases": cases, "kernels": kernels(op, precision, backend)})
    ran = [case for case in cases.values() if "refused" not in case]
    if not ran:
        return {"status": "refused", "reason": next(iter(cases.values()))["refused"]}
    bad = [f"{label}: {reason(case)}" for label, case in cases.items() if not case.get("passed", True)]
    found = {
        name: max((case[name] for case in ran if name in case), key=lambda value: (value != value, value))
        for name in ("share", "first_call_seconds")
        if any(name in case for case in ran)
    }
    return {**found, "status": "failed", "reason": "; ".join(bad)} if bad else {**found, "status": "passed"}


def reason(case: Result) -> str:
    """Why a case did not pass."""
    if "error" in case:
        return case["error"].splitlines()[0][:300]
    high = [f"{name} {share:.3g}" for name, share in case["shares"].items() if not share <= 1]
    return ", ".join([*high, *([] if case["deterministic"] else ["two runs differ"])])


def launch(name: str, plan: Plan, keep: Keep) -> Result:
    """An op once on small subjects, for a checker to watch; its results are not looked at."""
    op, precision = name.split()
    dtype = subjects.set_precision(precision)
    _, edges, small = SIZES[op]
    for label, check in [*small.items(), *([] if subjects.DRY else edges.items())][:3]:
        on(plan.backends[0], partial(check.run, check.make(0).to(dtype)))
        subjects.synchronize()
        print("ran", label, flush=True)
    return {"kernels": kernels(op, precision, plan.backends[0])}


def kernels(op: str, precision: str, backend: str) -> list[Result]:
    """Registers, spills and shared memory: of Triton's kernels as loaded, of CUDA C++'s as tabulated."""
    return tabulated(op, precision) if backend == "cuda" else loaded()


def loaded() -> list[Result]:
    """Of the Triton kernels that this process has compiled or loaded."""
    found = []
    for name in sorted(name for name in sys.modules if name.startswith("fastcsm.kernels.")):
        for value in vars(sys.modules[name]).values():
            own = getattr(value, "__module__", None) == name and hasattr(value, "device_caches")
            for caches in value.device_caches.values() if own else ():
                found += [figures(kernel) for kernel in caches[0].values()]
    return found


def figures(kernel: Any) -> Result:
    """Of a kernel as Triton has it."""
    metadata = kernel.metadata
    registers, spills = getattr(kernel, "n_regs", None), getattr(kernel, "n_spills", None)
    own = {"name": metadata.name, "registers": registers, "spills": spills}
    return {**own, "shared": metadata.shared, "warps": metadata.num_warps}


def tabulated(op: str, precision: str) -> list[Result]:
    """Of the CUDA C++ kernels, for heads of two layers, from the committed table."""
    if subjects.DRY:
        return []
    table = json.loads(RESOURCES.read_text(encoding="utf-8"))["cuda"]["kernels"]
    ending = f" {precision} sm_{90 if torch.cuda.get_device_capability() >= (9, 0) else 80}"
    names = op.removeprefix("linear_") + ("_" if op == "masked_linear" else "_kernel")
    return [
        {"name": name, "table": "bench/results/resources.json", **figures}
        for name, figures in table.items()
        if name.startswith(names) and name.endswith(ending) and ("layers=" not in name or "layers=2" in name)
    ]
