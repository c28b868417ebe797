"""What every Triton kernel needs of a GPU, read from its compiled code: ``python bench/resources.py``.

Compiles the kernels ahead of time for sm_80 and sm_90, which needs no GPU, and reads a thread's registers and
bytes of stack, a program's shared memory, and how many spills and matrix instructions its code has. A kernel
that got worse than bench/results/resources.json is named, figure by figure, and the exit code is 1;
``--accept`` writes the figures found instead. They depend on Triton's version; another one is not compared.
``--fits`` compiles what every op takes of its configurations, for devices of less shared memory and other
heads, and fails where nothing fits: bench/results/fits.json.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("TRITON_INTERPRET=1 is set: kernels that are interpreted cannot be compiled; unset it.")

import table
import torch
import triton
from fastcsm.kernels import (
    conditional_density,
    configurations,
    csm_loss,
    langevin,
    launch,
    masked_linear,
    probability_flow,
    score_head,
)
from machine import host, triton_jit
from torch import Tensor
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

TABLE = Path(__file__).parent / "results" / "resources.json"
FITS = TABLE.with_name("fits.json")
FIGURES = ("stack", "spills", "shared", "instructions")
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ARCHITECTURES = (80, 90)
DTYPES = {"tf32": torch.float32, "bfloat16": torch.bfloat16, "float32": torch.float32}
MATRIX = ("HMMA", "HGMMA", "QGMMA", "IMMA")
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def anything_fits(entry: launch.Launch) -> launch.Fit:
    return launch.Fit()


def judge_of(architecture: int, limit: int) -> launch.Judge:
    """Says what a launch asks of a device that gives a program ``limit`` bytes of shared memory."""

    def judge(entry: launch.Launch) -> launch.Fit:
        return launch.Fit(compiled(entry, architecture).metadata.shared, limit)

    return judge


def head_launches(
    dtype: torch.dtype,
    frequencies: int,
    rows: int = 1 << 20,
    context: int = 32,
    widths: tuple[int, ...] = (128, 128),
    backward: bool = False,
    judge: launch.Judge = anything_fits,
) -> list[launch.Launch]:
    """The launches of the head's ops, by default at the default sizes.

    Without ``backward`` those are left out that do another's work: score_head's backward pass, quantiles, and
    the nodes of the quadrature.
    """
    sizes = [context + 1 + 2 * frequencies, *widths, 1]
    head = (
        empty(rows, context, dtype=dtype),
        empty(rows, dtype=dtype),
        [empty(o, i, dtype=dtype) for i, o in pairwise(sizes)],
        [empty(o, dtype=dtype) for o in sizes[1:]],
        empty(frequencies, dtype=dtype),
        "silu" if frequencies else "softplus",
    )
    one, number = empty(1), empty(rows, dtype=torch.int64)
    # A conditional head's last context feature is not in memory.
    given = empty(rows, max(context - 1, 0), dtype=dtype)
    options = 25.0, [-3.2] * min(context, 1), -1.2, 1.2, 1e-4, 4
    with launch.recorded(judge) as launches:
        score_head.score_head(*head)
        if backward:
            score_head.score_head_backward(head[1], head[1], *head, True, True, True)
        csm_loss.csm_loss(*head, one, one, one, True, backward, True)
        langevin.langevin(*head, [0.1], [1.0], [], 20, 0, number, number, 1)
        conditional_density.conditional_density(given, *head[1:], *options, False)
        if backward:
            conditional_density.conditional_density(given, *head[1:], *options, True)
            conditional_density.conditional_density_nodes(given, *head[1:], *options)
        if context > 0:
            probability_flow.probability_flow(given, *head[1:], 0.04, 1.0, 1e-4, True)
    return launches


def draw_launches(
    dtype: torch.dtype,
    frequencies: int,
    rows: int = 512,
    models: int = 1,
    variables: int = 784,
    hidden: tuple[int, ...] = (512, 512),
    widths: tuple[int, ...] = (128, 128),
    residual: bool = False,
    judge: launch.Judge = anything_fits,
) -> list[launch.Launch]:
    """The launches of a draw: conditional by one model, or staged by several."""
    context, stage = 32, int(models == 1)
    head = [context + stage + 1 + 2 * frequencies, *widths, 1]
    made = [variables, *hidden, variables * context]
    with launch.recorded(judge) as launches:
        langevin.langevin_draw(
            empty(rows, variables, dtype=dtype),
            [empty(o, i, dtype=dtype) for i, o in pairwise(head)] * models,
            [empty(o, dtype=dtype) for o in head[1:]] * models,
            empty(frequencies, dtype=dtype),
            "silu" if frequencies else "softplus",
            [empty(o, i, dtype=dtype) for i, o in pairwise(made)] * models,
            [empty(o, dtype=dtype) for o in made[1:]] * models,
            [empty(width, dtype=torch.int64) for width in hidden],
            empty(variables, dtype=torch.int64),
            "silu",
            residual,
            *([0.1] * 10, [1.0] * 10, [0.0] * 10 * stage, 20, 0),
            empty(rows, dtype=torch.int64),
            *(0, variables, 0.01),
        )
    return launches


def layer_launches(dtype: torch.dtype, rows: int = 1024) -> list[launch.Launch]:
    """The launches of a masked layer 4096 x 4096."""
    x, weight = empty(rows, 4096, dtype=dtype), empty(4096, 4096, dtype=dtype)
    degrees = empty(4096, dtype=torch.int64)
    with launch.recorded() as launches:
        masked_linear.masked_linear(x, weight, empty(4096, dtype=dtype), degrees, degrees, "silu")
        masked_linear.masked_linear_backward(x, x, x, weight, degrees, degrees, "silu", True, True, True)
    return launches


def cases(only: str) -> Iterator[tuple[str, launch.Launch, int]]:
    """(name, launch, architecture) of the lines of the table whose names contain ``only``."""
    for (precision, dtype), architecture in itertools.product(DTYPES.items(), ARCHITECTURES):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        fits = judge_of(architecture, host.SHARED_LIMIT[architecture])
        with triton_jit.with_driver(architecture):
            launches = [
                (name_of(entry, "", precision, architecture), entry) for entry in layer_launches(dtype)
            ]
        for head, context, frequencies in ((" E=0", 32, 0), (" E=16", 32, 16), (" C=33 E=16", 33, 16)):

            def name(entry: launch.Launch, rest: Any = (head, precision, architecture)) -> str:
                return name_of(entry, *rest)

            def judge(entry: launch.Launch, name: Any = name, fits: launch.Judge = fits) -> launch.Fit:
                return fits(entry) if only in name(entry) else launch.Fit()

            with triton_jit.with_driver(architecture):
                found = head_launches(
                    dtype, frequencies, context=context, backward=context == 33, judge=judge
                )
                if context == 33:
                    found = [entry for entry in found if entry.kernel.__name__.startswith(("score", "csm"))]
                else:
                    found += draw_launches(dtype, frequencies, judge=judge)
            launches += [(name(entry), entry) for entry in found]
        for label, entry in dict(launches).items():
            if only in label and not label.startswith(("reach_kernel", "reduce_partials_kernel")):
                yield label, entry, architecture


def name_of(entry: launch.Launch, head: str, precision: str, architecture: int) -> str:
    return f"{entry.kernel.__name__}{head} {precision} sm_{architecture}"


#: Arguments with one entry, or one row, for each row of a batch that may pass 2^31 entries.
ROWS = ("context", "x", "score", "derivative", "grad_score", "grad_derivative", "grad_context", "grad_x")
ROWS += ("alpha", "beta", "gamma", "samples", "dimensions", "states", "y", "grad", "grad_y", "preactivation")
ROWS += ("clean", "units", "sums", "point", "log_density", "log_normalizer", "cdf", "error", "ends")
ROWS += ("nodes", "node_weights", "count", "change")


def translate(entry: launch.Launch, architecture: int = 90) -> str:
    """The kernel in Triton's intermediate language, which takes the compiler's front end a second."""
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    options = backend.parse_options(dict(entry.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    return str(source(entry).make_ir(target, options, functions, backend.get_module_map(), context))


def short_offsets(text: str) -> list[str]:
    """The arguments of ROWS, or members of them, that a kernel adds an offset of less than 64 bits to."""
    short = set()
    for function in text.split("tt.func "):
        splats = dict(re.findall(r"(%\S+) = tt\.splat %([\w.]+) : !tt\.ptr", function))
        sums = re.findall(r"tt\.addptr (%\S+), %\S+ : \S+, tensor<(?:\d+x)*(i\d+)>", function)
        found = [(splats[base], width) for base, width in sums if base in splats]
        found += re.findall(r"tt\.addptr %([\w.]+), %\S+ : !tt\.ptr\S+, (i\d+)", function)
        short |= {name for name, width in found if name.split(".")[-1] in ROWS and width != "i64"}
    return sorted(short)


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


def measure(entry: launch.Launch, architecture: int) -> dict[str, int]:
    """Figures of one kernel compiled for one architecture."""
    kernel = compiled(entry, architecture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage, code = (
            subprocess.run([TOOL, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    resources = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    found = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9_]+)", code, re.MULTILINE))
    return {
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]),
        "spills": found["LDL"] + found["STL"],
        "shared": kernel.metadata.shared,
        "matrix": sum(found[name] for name in MATRIX),
        "instructions": sum(found.values()),
    }


def compare(before: dict[str, Any], kernels: dict[str, dict[str, int]]) -> list[str]:
    """What got worse, or is not in the table, a line each."""
    lines = table.compare(before, kernels, FIGURES)
    for name in before["kernels"].keys() & kernels.keys():
        matrix = before["kernels"][name]["matrix"]
        if matrix > 0 and kernels[name]["matrix"] == 0:
            lines.append(f"{name}: matrix {matrix} -> 0")
    return lines


def translate_all() -> int:
    """Translate every kernel for over 2^31 rows and heads of every depth; names what has short offsets."""
    rows, short = 2**31 + 5, []
    launches = layer_launches(torch.bfloat16, rows)
    heads = ((0, 3, (5,)), (2, 0, (5,)), (1, 70, (130, 70)), (0, 5, (33, 16, 7)), (2, 5, (8, 24, 15, 31)))
    for frequencies, context, widths in (*heads, (16, 32, (128, 128))):
        launches += head_launches(torch.bfloat16, frequencies, rows, context, widths, backward=True)
    launches += draw_launches(torch.bfloat16, 0, rows) + draw_launches(
        torch.bfloat16, 3, rows, models=3, variables=5, hidden=(20, 20, 20), widths=(70, 5, 9), residual=True
    )
    for entry in launches:
        short += [f"{entry.kernel.__name__}: {name}" for name in short_offsets(translate(entry))]
    print(f"{len(launches)} launches translated", *short, sep="\n")
    return int(bool(short))


def table_of(version: str) -> Path:
    """Where the figures of a version of Triton are: that of GPU machines has a table of its own."""
    own = TABLE.with_name(f"resources-{version}.json")
    return own if own.exists() else TABLE


#: What a program may have of shared memory, by the architecture whose code is compiled for a device: 8.6, 8.9
#: and 12.0 take the matrix instructions of 8.0, which read operands as its code does.
LIMITS = ((80, 101_376), (80, 166_912), (90, 232_448))
HEADS = {
    "C=33 E=16 2x128": (33, 16, (128, 128)),
    "C=32 E=0 2x128": (32, 0, (128, 128)),
    "C=33 E=16 1x128": (33, 16, (128,)),
    "C=33 E=16 4x64": (33, 16, (64, 64, 64, 64)),
    "C=33 E=16 2x512": (33, 16, (512, 512)),
}


def fits(only: str) -> int:
    """Compile what every op takes of its configurations, for heads, precisions and devices; 1 if none fits.

    Writes to FITS what was found of those whose names contain ``only``: tiles, warps, and shared memory.
    """
    found, missing = json.loads(FITS.read_text(encoding="utf-8")) if FITS.exists() else {}, []
    kinds = {**DTYPES, "float16": torch.float16}
    for (head, sizes), (precision, dtype) in itertools.product(HEADS.items(), kinds.items()):
        context, frequencies, widths = sizes
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for architecture, limit in LIMITS:
            label = f"{head} {precision} {limit}"
            if only not in label:
                continue
            own = judge_of(architecture, limit)
            with triton_jit.with_driver(architecture):
                entries = ops_of(dtype, frequencies, context, widths, limit, own, missing)
            for entry in entries:
                asked = tuple(entry.constants["S"])[6], entry.options["num_warps"], own(entry).shared
                name = f"{label} {entry.kernel.__name__} (Triton {triton.__version__})"
                found[name] = "{} rows, {} warps, {} bytes".format(*asked)
            FITS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
            print(label, *missing, flush=True)
    return int(bool(missing))


def ops_of(
    dtype: torch.dtype,
    frequencies: int,
    context: int,
    widths: tuple[int, ...],
    limit: int,
    judge: launch.Judge,
    missing: list[str],
) -> list[launch.Launch]:
    """The launches of the ops that are not refused at this limit; ``missing`` gets those that do not fit."""
    entries = []
    for op in ("pass", "other"):
        if op == "pass" and configurations.least_shared("csm_loss", dtype, widths) > limit:
            continue
        kernels = ("csm_loss_kernel", "score_head_bwd_kernel")

        def own(entry: launch.Launch, op: str = op, kernels: tuple[str, ...] = kernels) -> launch.Fit:
            return judge(entry) if (entry.kernel.__name__ in kernels) == (op == "pass") else launch.Fit()

        try:
            given = head_launches(dtype, frequencies, 1 << 20, context, widths, True, own)
            given += draw_launches(dtype, frequencies, widths=widths, judge=own)
        except launch.DoesNotFit as error:
            missing.append(str(error))
            continue
        entries += [one for one in given if (one.kernel.__name__ in kernels) == (op == "pass")]
    return [one for one in entries if one.kernel.__name__ != "reduce_partials_kernel"]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--accept", action="store_true", help="write the figures found instead of comparing them")
    p.add_argument("--only", default="", metavar="TEXT", help="only kernels whose name contains TEXT")
    p.add_argument("--translate", action="store_true", help="only translate the kernels, for many heads")
    p.add_argument("--fits", action="store_true", help="compile what fits each device: fits.json")
    arguments = p.parse_args()
    if arguments.translate:
        return translate_all()
    if arguments.fits:
        return fits(arguments.only)
    path = table_of(triton.__version__)
    before = table.read(path, "triton")
    reason = table.not_compared(before, "triton", triton.__version__)
    if reason and not arguments.accept:
        print(reason)
        return 0
    kernels, too_large = {}, []
    for name, entry, architecture in cases(arguments.only):
        kernels[name] = found = measure(entry, architecture)
        print(f"{name:<60}", *(f"{figure} {value}" for figure, value in found.items()), flush=True)
        if found["shared"] > host.SHARED_LIMIT[architecture]:
            too_large.append(f"{name}: shared {found['shared']} exceeds {host.SHARED_LIMIT[architecture]}")
    if arguments.accept:
        table.write(path, "triton", triton.__version__, kernels, partly=bool(arguments.only))
        lines = too_large
    else:
        lines = too_large + compare(before, kernels)
    print("\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
