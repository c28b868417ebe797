"""What every CUDA C++ kernel needs of a GPU: ``python bench/compiled/cuda_resources.py``.

Reads the built library (fastcsm/_cuda*.so), which needs no GPU: a thread's registers and bytes of stack,
how many spills and matrix instructions the code has, and a block's shared memory at the default head (C = 32,
16 frequencies, 2 x 128 units). Compared with the part "cuda" of bench/results/resources.json as resources.py
compares Triton's kernels; ``--accept`` writes it. The figures depend on nvcc's version; another one is not
compared.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import fastcsm
from fastcsm.bench.compiled import table
from fastcsm.bench.compiled.resources import ARCHITECTURES, TABLE, dumped, figures

PACKAGE = Path(fastcsm.__file__).parent
PRECISIONS = ("bfloat16", "tf32", "float32")  # in the order of csrc/cuda/device.h
NAMES = ("csm_loss", "langevin", "langevin_draw", "conditional_density", "probability_flow")
LAYER = (f"masked_linear_{kernel}" for kernel in ("fwd", "bwd_x", "bwd_weight", "bwd_activation", "sum"))
#: What the library calls the kernels whose shared memory it is asked for.
OPS = {"score_head_fwd_kernel": "score_head", **{f"{name}_kernel": name for name in (*NAMES, *LAYER)}}
#: Kernels of which there is one for preconditioned heads too.
PRECONDITIONED = ("langevin_kernel", "conditional_density_kernel", "probability_flow_kernel")
INPUTS, LAYERS = 32 + 1 + 2 * 16, 2


def parts(text: str) -> Iterator[tuple[str, str, str]]:
    """(kernel, what it was instantiated with, what is said of it) of each kernel in cuobjdump's output."""
    pieces = re.split(r"^\s*Function\s*:?\s*(\w+):?\s*$", text, flags=re.MULTILINE)
    for symbol, body in zip(pieces[1::2], pieces[2::2], strict=True):
        kernel = re.search(r"\d((?!\d)[a-z_]+?_kernel)(?:I|E)", symbol)
        precision, layers = re.search(r"PrecisionE(\d)", symbol), re.search(r"ELi(\d)E", symbol)
        if kernel and precision and kernel[1] in OPS:
            label = f"layers={layers[1]} " if layers else ""
            if rows := re.search(r"PrecisionE\d(?:ELi\d)?ELi(\d\d)E", symbol):
                label += f"rows={rows[1]} "
            if tile := re.search(r"ShapeILi(\d+)ELi(\d+)E", symbol):
                label = f"tile={tile[1]}x{tile[2]} "
            flags = re.findall(r"ELb(\d)(?=E)", symbol)
            if kernel[1] == "probability_flow_kernel":
                label = "change " if flags[0] == "1" else "point "
            if kernel[1] in PRECONDITIONED and flags[-1] == "1":
                label += "preconditioned "
            yield kernel[1], label + PRECISIONS[int(precision[1])], body


def measure(library: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """(name, figures) of every kernel in the library."""
    torch.ops.load_library(str(library))

    def dump(target: str) -> tuple[str, str]:
        usage, code = (dumped(library, o, "--gpu-architecture", target) for o in ("-res-usage", "-sass"))
        return usage, code

    targets = [f"sm_{architecture}" for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(dump, targets))
    for target, (usages, codes) in zip(targets, texts, strict=True):
        usage = {(kernel, label): body for kernel, label, body in parts(usages)}
        for kernel, label, code in parts(codes):
            layers, tile = re.search(r"layers=(\d)", label), re.search(r"tile=\d+x(\d+)", label)
            sizes = int(tile[1]) if tile else INPUTS, int(layers[1]) if layers else LAYERS
            # The smaller of two tiles is what a block of one byte would take.
            most = 1 if "rows=16" in label else 1 << 30
            shared, _ = torch.ops.fastcsm_cuda.shared_bytes(OPS[kernel], "bfloat16" in label, *sizes, most)
            yield f"{kernel} {label} {target}", figures(usage[kernel, label], code, shared)


def main() -> int:
    p = table.parser(__doc__)
    p.add_argument("--library", type=Path, help="default: the installed one")
    options = p.parse_args()
    library = options.library or next(iter(sorted(PACKAGE.glob("_cuda*.so"))), None)
    if library is None:
        print("not compared: the CUDA library is not built")
        return 0
    nvcc = json.loads((PACKAGE / "_build.json").read_text(encoding="utf-8")).get("nvcc")

    def found() -> Iterator[tuple[str, dict[str, int]]]:
        return (one for one in measure(library) if options.only in one[0])

    return table.said(TABLE._replace(tool="nvcc", part="cuda").guard(nvcc, found, options))


if __name__ == "__main__":
    sys.exit(main())
