"""How many instructions the processor's kernels take: ``python bench/compiled/instructions.py``.

Runs every op of the C++ library once, on small inputs and one thread, under valgrind's tool callgrind, and
counts the instructions of the library's own functions: those of libtorch, libm and Python count nothing. That
needs no quiet machine. valgrind knows no AVX-512, so that the AVX2 kernels run on every processor. An op that
takes over 2% more than bench/results/instructions.json is named and the exit code is 1; ``--accept`` writes
the counts found instead. They depend on the compiler; those of another one are not compared.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

import fastcsm
from fastcsm.backends import CPU
from fastcsm.bench.compiled import table
from fastcsm.bench.machine import host

PACKAGE = Path(fastcsm.__file__).parent
TABLE = table.Table(table.RESULTS / "instructions.json", "compiler", ("instructions",))
ISA = "avx2"
#: valgrind is driven by requests, which its header defines as macros of C.
REQUESTS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; }
void count(void) { CALLGRIND_TOGGLE_COLLECT; }
void done(const char* name) { CALLGRIND_TOGGLE_COLLECT; CALLGRIND_DUMP_STATS_AT(name); }
"""


def calls(only: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """(title, call) of every line of the table: the benchmarks' own cases at small sizes."""
    from fastcsm.bench.harness.case import Case
    from fastcsm.bench.harness.measure import at_precision
    from fastcsm.bench.micro import registry as micro

    model = {"features": 16, "hidden": (64, 64), "context": 32, "head": (64, 64)}
    draw = {**model, "samples": 8, "levels": 2, "steps": 5}
    cases: list[tuple[Case, str]] = [
        (micro.ScoresOfRows(rows=256), "fastcsm"),
        (micro.ScoresOfRows(rows=256, backward=True), "fastcsm"),
        (micro.CsmLoss(rows=256), "fastcsm"),
        (micro.CsmLoss(rows=256), "fastcsm_medium"),
        (micro.CsmLoss(rows=256, denoising=True), "fastcsm"),
        (micro.CsmLoss(rows=256, dtype="bfloat16"), "fastcsm"),
        (micro.CsmLoss(rows=128, dtype="float64"), "fastcsm"),
        (micro.CsmLoss(rows=256, activation="silu", frequencies=16), "fastcsm"),
        (micro.CsmLoss(rows=4096, context=4, hidden=(8,)), "fastcsm"),
        (micro.CsmLoss(rows=1), "fastcsm"),
        *((micro.CsmLoss(rows=256, hidden=(16, 16), activation=f), "fastcsm") for f in ("tanh", "gelu")),
        (micro.Langevin(rows=64, levels=2, steps=10), "fastcsm"),
        (micro.MaskedLayers(features=64, hidden=(128, 128), batch=32), "fastcsm"),
        (micro.MaskedLayers(features=64, hidden=(128, 128), batch=32, backward=True), "fastcsm"),
        (micro.TrainingStep(**model, batch=32), "fastcsm"),
        (micro.Draw(**draw), "fastcsm"),
        (micro.Draw(**draw, sets=2), "fastcsm"),
        (micro.LogDensity(rows=32), "fastcsm"),
        (micro.FlowOfRows(rows=32), "fastcsm"),
        (micro.FlowOfRows(rows=32, squash=3.0), "fastcsm"),
        (micro.ExactDraw(**draw), "inverse_cdf"),
        (micro.ExactDraw(**draw), "flow"),
    ]
    for case, name in cases:
        contender = case.contenders(["highest", "medium"], compiled=False)[name]
        call = contender.memory or contender.call
        title = case.title() + ("" if name == "fastcsm" else f", {name.removeprefix('fastcsm_')}")
        if only in title:
            yield title, at_precision(contender.precision, call)


def count(requests: Path, only: str) -> None:
    """Under callgrind: make all inputs, then count every call; prints the instruction set and the library."""
    torch.set_num_threads(1)
    valgrind = ctypes.CDLL(str(requests))
    found = list(calls(only))
    next(call for _, call in calls("backward"))()  # torch imports much in its first backward pass
    valgrind.begin()
    for title, call in found:
        valgrind.count()
        call()
        valgrind.done(title.encode())
    print(torch.ops.fastcsm_cpu.isa(), CPU().path().resolve())


def parse(text: str, library: str) -> tuple[str, int]:
    """Title and instructions of the library's own functions in one file that callgrind wrote.

    Lines are "ob=(id) path" for the object of what follows, "calls=..." whose next line is the cost of what
    was called, and costs: a position and a number.
    """
    title, total, own, called = "", 0, False, False
    names: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("desc: Trigger: "):
            title = line.partition("Client Request: ")[2]
        elif line.startswith(("ob=", "cob=")):
            number, _, path = line.partition("=")[2].partition(" ")
            names[number] = path or names[number]
            if line.startswith("ob="):
                own = names[number] == library
        elif line.startswith("calls="):
            called = True
        elif line[:1].isdigit() or line.startswith(("+", "-", "*")):
            cost = line.split()[1:]  # nothing is zero
            if own and cost and not called:
                total += int(cost[0])
            called = False
    return title, total


def why_not() -> str:
    """Why nothing can be counted here; "" if it can."""
    for program in ("valgrind", "cc"):
        if shutil.which(program) is None:
            return f"{program} is not on PATH"
    header = ["cc", "-E", "-include", "valgrind/callgrind.h", "-x", "c", os.devnull]
    if subprocess.run(header, capture_output=True, check=False).returncode != 0:
        return "valgrind's header valgrind/callgrind.h is not installed"
    missing = CPU().missing()
    return missing[0] if missing else ""


def measure(only: str) -> tuple[str, dict[str, dict[str, int]]]:
    """The instruction set that ran, and instructions of every op by title.

    Raises:
        RuntimeError: if valgrind or the compiler of its requests fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, requests = folder / "requests.c", folder / "requests.so"
        source.write_text(REQUESTS)
        host.run(["cc", "-shared", "-fPIC", "-O1", "-o", requests, source])
        options = ["--instr-atstart=no", "--collect-atstart=no", f"--callgrind-out-file={folder}/counts"]
        program = [sys.executable, __file__, "--only", only, "--requests", requests]
        ran = host.run(["valgrind", "--quiet", "--tool=callgrind", *options, *program], env=environment)
        isa, _, library = ran.strip().partition(" ")
        found = dict(parse(path.read_text(), library) for path in sorted(folder.glob("counts.*")))
    return isa, {title: {"instructions": total} for title, total in sorted(found.items())}


def main() -> int:
    p = table.parser(__doc__)
    p.add_argument("--requests", type=Path, help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.requests:
        count(options.requests, options.only)
        return 0
    if reason := why_not():
        print(f"not counted: {reason}")
        return 0
    compiler = json.loads((PACKAGE / "_build.json").read_text(encoding="utf-8"))["compiler"]

    def found() -> Iterable[tuple[str, dict[str, int]]]:
        isa, kernels = measure(options.only)
        if isa != ISA:
            print(f"not compared: the kernels ran as {isa} under valgrind, and the table is of {ISA}")
            sys.exit(0)
        return kernels.items()

    return table.said(TABLE.guard(compiler, found, options))


if __name__ == "__main__":
    sys.exit(main())
