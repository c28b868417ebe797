"""What every compiled kernel executes, counted without a GPU: ``python bench/compiled/counts.py``.

The machine (machine/) runs the kernels of Triton and of csrc/cuda as compiled for sm_80 and sm_90 and counts,
for each unit of work, instructions, special functions, wavefronts of shared memory, sectors of device memory,
barriers, matrix operations, and the longest chain of dependences. A kernel that got worse than the table in
bench/results/counts_<backend>.json is named, figure by figure, and the exit code is 1; ``--accept`` writes
the figures found instead. They depend on the compiler's version; another one is not compared. ``--predict``
prints what the tables say of times on A100, H100 and H200 (machine/predict.py), and runs nothing.
"""

import contextlib
import importlib.metadata
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fastcsm
from fastcsm.bench.compiled import table
from fastcsm.bench.machine import cases, predict

TABLES = {
    backend: table.Table(table.RESULTS / f"counts_{backend}.json", tool, cases.FIGURES)
    for backend, tool in (("triton", "triton"), ("cuda", "nvcc"))
}


def counted(backend: str, only: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, a call that gives its figures) of the backend's cases whose name matches ``only``."""
    if backend == "triton":
        from fastcsm.bench.machine import triton_jit
        from fastcsm.kernels import configurations

        configurations.FEW = 0  # the layers stand for large ones
        for architecture in (80, 90):
            place = partial(triton_jit.on_the_machine, architecture)
            yield from cases.every(backend, "triton_machine", architecture, place, only)
    else:
        from fastcsm.bench.machine import cuda_launchers

        # Ampere's code is the same but for how many blocks of langevin share a multiprocessor.
        cuda_launchers.on_the_machine(90, orders=1)
        yield from cases.every(backend, "emulation", 90, contextlib.nullcontext, only)


def version(backend: str) -> str:
    """Of the backend's compiler."""
    if backend == "triton":
        return importlib.metadata.version("triton")
    record = Path(fastcsm.__file__).with_name("_build.json")
    return json.loads(record.read_text(encoding="utf-8")).get("nvcc", "none")


def compiled(resources: dict[str, Any], backend: str, label: str) -> dict[str, int] | None:
    """Registers and instructions of the kernel of a line of the table, as resources.json has them."""
    kernels = resources["kernels"] if backend == "triton" else resources["cuda"]["kernels"]
    if label in kernels:
        return kernels[label]
    kernel, *_, precision, architecture = label.split()
    words = {"csm_loss_kernel": "layers=2 rows=32", "score_head_fwd_kernel": "rows=32"}
    word = words.get(kernel, "tile=128x128" if kernel.endswith(("fwd_kernel", "bwd_x_kernel")) else "")
    if kernel == "probability_flow_kernel":  # its products are exact whatever torch's precision
        word, precision = "change", precision.replace("tf32", "float32")
    return kernels.get(" ".join(filter(None, (kernel, word, precision, architecture))))


def predictions() -> Iterator[tuple[str, ...]]:
    """Rows of the table of predicted times."""
    resources = json.loads((table.RESULTS / "resources.json").read_text(encoding="utf-8"))
    tables = {backend: own.read()["kernels"] for backend, own in TABLES.items()}
    combinations = itertools.product(predict.problems(), ("cuda", "triton"), cases.DTYPES)
    for problem, backend, precision in combinations:
        found = {}
        for device in predict.DEVICES:
            name = f"{problem.kernel} {precision} sm_"
            figures = tables[backend].get(f"{name}{90 if backend == 'cuda' else device.architecture}")
            code = compiled(resources, backend, f"{name}{device.architecture}")
            if figures and code:
                found[device.name] = predict.predict(device, problem, backend, precision, figures, code)
        if len(found) == len(predict.DEVICES):
            times = [f"{one.seconds * 1e3:.3g} ms ({one.binds})" for one in found.values()]
            hand = problem.hand.get((backend, precision), "")
            yield problem.title, f"{backend}, {precision}", *times, hand


def page() -> str:
    """The table of predicted times, as bench/README.md has it."""
    head = ["| call | kernel | A100 | H100 | H200 | H100 by hand |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in predictions())]) + "\n"


def main() -> int:
    p = table.parser(__doc__, "PATTERN")
    p.add_argument("--backend", choices=tuple(TABLES), help="default: both")
    p.add_argument("--predict", action="store_true", help="only print the predicted times")
    options = p.parse_args()
    if options.predict:
        print(page(), end="")
        return 0
    lines = []
    for backend in [options.backend] if options.backend else TABLES:

        def found(backend: str = backend) -> Iterator[tuple[str, dict[str, Any]]]:
            for name, count in counted(backend, options.only):
                try:
                    yield name, count()
                except Exception as error:
                    if type(error).__name__ != "OutOfResources":
                        raise
                    print(f"{name:<60} cannot be launched: {error}")

        print(f"{backend}:")
        lines += [f"{backend} {line}" for line in TABLES[backend].guard(version(backend), found, options)]
    return table.said(lines)


if __name__ == "__main__":
    sys.exit(main())
