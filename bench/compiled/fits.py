"""Which configuration every op takes on devices of less shared memory: ``python bench/compiled/fits.py``.

Compiles what every op takes of its configurations, for heads, precisions and devices, and writes tiles, warps
and shared memory to bench/results/fits.json; what does not fit is named, and the exit code is then 1.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable

import torch
import triton

from fastcsm.bench.compiled import launches, table
from fastcsm.bench.compiled.launches import Head
from fastcsm.bench.compiled.resources import judge_of
from fastcsm.bench.machine import triton_jit
from fastcsm.bench.machine.cases import DTYPES, set_precision
from fastcsm.kernels import configurations, launch

FITS = table.RESULTS / "fits.json"
#: What a program may have of shared memory, by the architecture whose code is compiled for a device: 8.6, 8.9
#: and 12.0 take the matrix instructions of 8.0, which read operands as its code does.
LIMITS = ((80, 101_376), (80, 166_912), (90, 232_448))
HEADS = {
    "C=33 E=16 2x128": Head(33, 16, (128, 128)),
    "C=32 E=0 2x128": Head(32, 0, (128, 128)),
    "C=33 E=16 1x128": Head(33, 16, (128,)),
    "C=33 E=16 4x64": Head(33, 16, (64, 64, 64, 64)),
    "C=33 E=16 2x512": Head(33, 16, (512, 512)),
}
#: Kernels that one of the configurations' limits refuses together.
PASSES = ("csm_loss_kernel", "score_head_bwd_kernel")


def launched(
    dtype: torch.dtype, head: Head, limit: int, judge: launch.Judge, missing: list[str]
) -> list[launch.Launch]:
    """The launches of the ops that are not refused at this limit; ``missing`` gets those that do not fit."""
    entries: list[launch.Launch] = []
    for passes in (True, False):
        if passes and configurations.least_shared("csm_loss", dtype, head.widths) > limit:
            continue

        def wanted(entry: launch.Launch, passes: bool = passes) -> bool:
            return (entry.kernel.__name__ in PASSES) == passes

        def own(entry: launch.Launch, wanted: Callable[[launch.Launch], bool] = wanted) -> launch.Fit:
            return judge(entry) if wanted(entry) else launch.Fit()

        try:
            given = launches.of_heads(dtype, head, backward=True, judge=own)
            given += launches.of_draw(dtype, head, judge=own)
        except launch.DoesNotFit as error:
            missing.append(str(error))
            continue
        entries += filter(wanted, given)
    return [one for one in entries if one.kernel.__name__ != "reduce_partials_kernel"]


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--only", default="", metavar="TEXT", help="only what has TEXT in its name")
    only = p.parse_args().only
    found = json.loads(FITS.read_text(encoding="utf-8")) if FITS.exists() else {}
    missing: list[str] = []
    kinds = {**DTYPES, "float16": torch.float16}
    for (name, head), (precision, dtype) in itertools.product(HEADS.items(), kinds.items()):
        set_precision(precision)
        for architecture, limit in LIMITS:
            label = f"{name} {precision} {limit}"
            if only not in label:
                continue
            own = judge_of(architecture, limit)
            with triton_jit.with_driver(architecture):
                entries = launched(dtype, head, limit, own, missing)
            for entry in entries:
                asked = tuple(entry.constants["S"])[6], entry.options["num_warps"], own(entry).shared
                kernel = f"{label} {entry.kernel.__name__} (Triton {triton.__version__})"
                found[kernel] = "{} rows, {} warps, {} bytes".format(*asked)
            FITS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
            print(label, *missing, flush=True)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
