"""Whether a kernel computes an offset into rows in less than 64 bits: ``python bench/compiled/offsets.py``.

Translates every Triton kernel, for over 2^31 rows and heads of every depth, into Triton's intermediate
language, and names the arguments that have a short offset added; the exit code is then 1.
"""

import re
import sys

import torch
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend

from fastcsm.bench.compiled import launches
from fastcsm.bench.compiled.launches import Head, Network
from fastcsm.bench.compiled.resources import source
from fastcsm.kernels import launch

#: Arguments with one entry, or one row, for each row of a batch that may pass 2^31 entries.
ROWS = {"context", "x", "score", "derivative", "grad_score", "grad_derivative", "grad_context", "grad_x"}
ROWS |= {"alpha", "beta", "gamma", "samples", "dimensions", "states", "y", "grad", "grad_y", "preactivation"}
ROWS |= {"clean", "units", "sums", "point", "log_density", "log_normalizer", "cdf", "error", "ends", "nodes"}
ROWS |= {"node_weights", "count", "change"}


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


def main() -> int:
    rows, dtype, short = 2**31 + 5, torch.bfloat16, []
    found = launches.of_layers(dtype, rows)
    heads = (
        Head(3, 0, (5,)), Head(0, 2, (5,)), Head(70, 1, (130, 70)), Head(5, 0, (33, 16, 7)),
        Head(5, 2, (8, 24, 15, 31)), Head(32, 16),
    )  # fmt: skip
    for head in heads:
        found += launches.of_heads(dtype, head, rows, backward=True)
    found += launches.of_draw(dtype, Head(), rows=rows)
    found += launches.of_draw(dtype, Head(32, 3, (70, 5, 9)), Network(3, 5, (20, 20, 20), True), rows)
    for entry in found:
        short += [f"{entry.kernel.__name__}: {name}" for name in short_offsets(translate(entry))]
    print(f"{len(found)} launches translated", *short, sep="\n")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
