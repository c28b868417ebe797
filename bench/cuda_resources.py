"""What every CUDA C++ kernel needs of a GPU: ``python bench/cuda_resources.py``.

Reads the built library (fastcsm/_cuda*.so), which needs no GPU: a thread's registers and bytes of stack,
how many spills and matrix instructions the code has, and a block's shared memory at the default head (C = 32,
16 frequencies, 2 x 128 units). Compared with the part "cuda" of bench/results/resources.json as resources.py
compares Triton's kernels; ``--accept`` writes it. The figures depend on nvcc's version; another one is not
compared.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from resources import ARCHITECTURES, MATRIX, TABLE, TOOL, compare

import fastcsm

PACKAGE = Path(fastcsm.__file__).parent
PRECISIONS = ("bfloat16", "tf32", "float32")  # in the order of csrc/cuda/device.h
OPS = {
    "score_head_fwd_kernel": "score_head",
    "csm_loss_kernel": "csm_loss",
    "langevin_kernel": "langevin",
    "langevin_draw_kernel": "langevin_draw",
    "conditional_density_kernel": "conditional_density",
    "probability_flow_kernel": "probability_flow",
    **{
        f"masked_linear_{kernel}_kernel": f"masked_linear_{kernel}"
        for kernel in ("fwd", "bwd_x", "bwd_weight", "bwd_activation", "sum")
    },
}
INPUTS, LAYERS = 32 + 1 + 2 * 16, 2


def run(option: str, library: Path, architecture: int) -> str:
    command = [TOOL, option, "--gpu-architecture", f"sm_{architecture}", library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
            if kernel[1] == "probability_flow_kernel":
                label = "change " if "ELb1E" in symbol else "point "
            yield kernel[1], label + PRECISIONS[int(precision[1])], body


def measure(library: Path) -> dict[str, dict[str, int]]:
    """Figures of every kernel in the library, by name."""
    torch.ops.load_library(str(library))
    kernels = {}
    for architecture in ARCHITECTURES:
        usage = {
            (kernel, label): body for kernel, label, body in parts(run("-res-usage", library, architecture))
        }
        for kernel, label, code in parts(run("-sass", library, architecture)):
            resources = dict(re.findall(r"(REG|STACK):(\d+)", usage[kernel, label]))
            found = Counter(
                re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9_]+)", code, re.MULTILINE)
            )
            layers, tile = re.search(r"layers=(\d)", label), re.search(r"tile=\d+x(\d+)", label)
            sizes = int(tile[1]) if tile else INPUTS, int(layers[1]) if layers else LAYERS
            # The smaller of two tiles is what a block of one byte would take.
            most = 1 if "rows=16" in label else 1 << 30
            shared, _ = torch.ops.fastcsm_cuda.shared_bytes(OPS[kernel], "bfloat16" in label, *sizes, most)
            kernels[f"{kernel} {label} sm_{architecture}"] = {
                "registers": int(resources["REG"]),
                "stack": int(resources["STACK"]),
                "spills": found["LDL"] + found["STL"],
                "shared": shared,
                "matrix": sum(found[name] for name in MATRIX),
                "instructions": sum(found.values()),
            }
    return kernels


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--accept", action="store_true", help="write the figures found instead of comparing them")
    p.add_argument("--library", type=Path, help="default: the installed one")
    arguments = p.parse_args()
    library = arguments.library or next(iter(sorted(PACKAGE.glob("_cuda*.so"))), None)
    if library is None:
        print("not compared: the CUDA library is not built")
        return 0
    nvcc = json.loads((PACKAGE / "_build.json").read_text(encoding="utf-8")).get("nvcc")
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    before = table.get("cuda", {"nvcc": None, "kernels": {}})
    if before["nvcc"] != nvcc and not arguments.accept:
        print(f"not compared: the table is of nvcc {before['nvcc']} and the library of {nvcc}")
        return 0
    kernels = measure(library)
    for name, figures in kernels.items():
        print(f"{name:<60}", *(f"{figure} {value}" for figure, value in figures.items()))
    if arguments.accept:
        table["cuda"] = {"nvcc": nvcc, "kernels": dict(sorted(kernels.items()))}
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return 0
    lines = compare(before, kernels)
    print("\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
