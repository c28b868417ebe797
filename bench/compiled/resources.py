"""What every Triton kernel needs of a GPU, by its compiled code: ``python bench/compiled/resources.py``.

Compiles the kernels ahead of time for sm_80 and sm_90, which needs no GPU, and reads a thread's registers and
bytes of stack, a program's shared memory, and how many spills and matrix instructions its code has. A kernel
that got worse than bench/results/resources.json is named, figure by figure, and the exit code is 1;
``--accept`` writes the figures found instead. They depend on Triton's version; another one is not compared.
"""

import itertools
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcsm.bench.compiled import launches, table
from fastcsm.bench.compiled.launches import Head
from fastcsm.bench.machine import host, triton_jit
from fastcsm.bench.machine.cases import DTYPES, set_precision
from fastcsm.kernels import launch

FIGURES = ("stack", "spills", "shared", "instructions")
TABLE = table.Table(table.RESULTS / "resources.json", "triton", FIGURES)
ARCHITECTURES = (80, 90)
MATRIX = ("HMMA", "HGMMA", "QGMMA", "IMMA")
#: Triton's names of pointers, by what they point to.
FLOATS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TYPES = {**FLOATS, torch.int64: "*i64", torch.int32: "*i32"}


def judge_of(architecture: int, limit: int) -> launch.Judge:
    """Says what a launch asks of a device that gives a program ``limit`` bytes of shared memory."""
    return lambda entry: launch.Fit(compiled(entry, architecture).metadata.shared, limit)


def named(
    dtype: torch.dtype, rest: str, only: str, fits: launch.Judge
) -> Iterator[tuple[str, launch.Launch]]:
    """(name, launch) of what the table has in one precision; ``rest`` ends all names.

    Of those whose names contain ``only`` the configurations are such as ``fits`` lets pass.
    """

    def name(entry: launch.Launch, head: str = "") -> str:
        return f"{entry.kernel.__name__}{head} {rest}"

    def judge_named(head: str) -> launch.Judge:
        return lambda entry: fits(entry) if only in name(entry, head) else launch.Fit()

    for entry in launches.of_layers(dtype):
        yield name(entry), entry
    for label, head in ((" E=0", Head(32, 0)), (" E=16", Head(32, 16)), (" C=33 E=16", Head(33, 16))):
        default, judge = head.context == 32, judge_named(label)
        found = launches.of_heads(dtype, head, backward=not default, judge=judge)
        if default:
            found += launches.of_draw(dtype, head, judge=judge)
        for entry in found:
            if default or entry.kernel.__name__.startswith(("score", "csm")):
                yield name(entry, label), entry
    if dtype is torch.bfloat16:
        label = " preconditioned E=16"
        for entry in launches.of_preconditioned(dtype, Head(32, 16), judge=judge_named(label)):
            yield name(entry, label), entry


def cases(only: str) -> Iterator[tuple[str, launch.Launch, int]]:
    """(name, launch, architecture) of the lines of the table whose names contain ``only``."""
    for (precision, dtype), architecture in itertools.product(DTYPES.items(), ARCHITECTURES):
        set_precision(precision)
        fits = judge_of(architecture, host.SHARED_LIMIT[architecture])
        with triton_jit.with_driver(architecture):
            found = dict(named(dtype, f"{precision} sm_{architecture}", only, fits))
        for name, entry in found.items():
            if only in name and not name.startswith(("reach_kernel", "reduce_partials_kernel")):
                yield name, entry, architecture


def source(entry: launch.Launch) -> ASTSource:
    """What Triton would compile for this launch: types, constants, and what is known of alignment."""
    aligned: dict[tuple[int, ...], Any] = {}

    def kind(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            kinds = [kind(item, (*path, n)) for n, item in enumerate(value)]
            return type(value)(*kinds) if hasattr(value, "_fields") else tuple(kinds)
        parameter = entry.kernel.params[path[0]]
        tensor = isinstance(value, Tensor)
        if tensor or (value % 16 == 0 and not parameter.do_not_specialize):
            aligned[path] = [["tt.divisibility", 16]]
        return TYPES[value.dtype] if tensor else parameter.annotation_type or "i32"

    names = entry.kernel.arg_names
    signature = {name: kind(value, (n,)) for n, (name, value) in enumerate(zip(names, entry.args))}
    signature |= dict.fromkeys(entry.constants, "constexpr")
    return ASTSource(entry.kernel, signature=signature, constexprs=entry.constants, attrs=aligned)


def compiled(entry: launch.Launch, architecture: int) -> Any:
    """The kernel of a launch; from Triton's cache, if it was compiled before."""
    return triton.compile(source(entry), target=GPUTarget("cuda", architecture, 32), options=entry.options)


def figures(usage: str, code: str, shared: int) -> dict[str, int]:
    """Of one kernel, by what cuobjdump says of its resources and of its code."""
    resources = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    found = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9_]+)", code, re.MULTILINE))
    return {
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]),
        "spills": found["LDL"] + found["STL"],
        "shared": shared,
        "matrix": sum(found[name] for name in MATRIX),
        "instructions": sum(found.values()),
    }


def dumped(binary: Path, *options: str) -> str:
    """What cuobjdump says of compiled code."""
    return host.run([host.cuobjdump(), *options, binary])


def measure(entry: launch.Launch, architecture: int) -> dict[str, int]:
    """Figures of one kernel compiled for one architecture."""
    kernel = compiled(entry, architecture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        return figures(dumped(path, "-res-usage"), dumped(path, "-sass"), kernel.metadata.shared)


def table_of(version: str) -> table.Table:
    """The figures of a version of Triton: that of GPU machines has a table of its own."""
    own = TABLE._replace(path=TABLE.path.with_name(f"resources-{version}.json"))
    return own if own.path.exists() else TABLE


def main() -> int:
    options, too_large = table.parser(__doc__).parse_args(), []

    def found() -> Iterator[tuple[str, dict[str, int]]]:
        for name, entry, architecture in cases(options.only):
            own, limit = measure(entry, architecture), host.SHARED_LIMIT[architecture]
            if own["shared"] > limit:
                too_large.append(f"{name}: shared {own['shared']} exceeds {limit}")
            yield name, own

    return table.said([*table_of(triton.__version__).guard(triton.__version__, found, options), *too_large])


if __name__ == "__main__":
    sys.exit(main())
