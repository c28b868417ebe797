"""How many instructions the processor's kernels take: ``python bench/instructions.py``.

Runs every op of the C++ library once, on small inputs and one thread, under valgrind's tool callgrind, and
counts the instructions of the library's own functions: those of libtorch, libm and Python count nothing. That
needs no quiet machine. valgrind knows no AVX-512, so that the AVX2 kernels run on every processor. An op that
takes over 2% more than bench/results/instructions.json is named and the exit code is 1; ``--accept`` writes
the counts found instead. They depend on the compiler; those of another one are not compared.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import table

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "results" / "instructions.json"
FIGURES = ("instructions",)
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
    from fastcsm import benchmark

    model = {"features": 16, "hidden": (64, 64), "context": 32, "head": (64, 64)}
    draw = {**model, "samples": 8, "levels": 2, "steps": 5}
    cases: list[tuple[benchmark.Case, str]] = [
        (benchmark.ScoresOfRows(rows=256), "fastcsm"),
        (benchmark.ScoresOfRows(rows=256, backward=True), "fastcsm"),
        (benchmark.CsmLoss(rows=256), "fastcsm"),
        (benchmark.CsmLoss(rows=256), "fastcsm_medium"),
        (benchmark.CsmLoss(rows=256, denoising=True), "fastcsm"),
        (benchmark.CsmLoss(rows=256, dtype="bfloat16"), "fastcsm"),
        (benchmark.CsmLoss(rows=128, dtype="float64"), "fastcsm"),
        (benchmark.CsmLoss(rows=256, activation="silu", frequencies=16), "fastcsm"),
        (benchmark.CsmLoss(rows=4096, context=4, hidden=(8,)), "fastcsm"),
        *((benchmark.CsmLoss(rows=256, hidden=(16, 16), activation=f), "fastcsm") for f in ("tanh", "gelu")),
        (benchmark.Langevin(rows=64, levels=2, steps=10), "fastcsm"),
        (benchmark.MaskedLayers(features=64, hidden=(128, 128), batch=32), "fastcsm"),
        (benchmark.MaskedLayers(features=64, hidden=(128, 128), batch=32, backward=True), "fastcsm"),
        (benchmark.TrainingStep(**model, batch=32), "fastcsm"),
        (benchmark.Draw(**draw), "fastcsm"),
        (benchmark.Draw(**draw, staged=True), "fastcsm"),
        (benchmark.LogDensity(rows=32), "fastcsm"),
        (benchmark.FlowOfRows(rows=32), "fastcsm"),
        (benchmark.ExactDraw(**draw), "inverse_cdf"),
        (benchmark.ExactDraw(**draw), "flow"),
    ]
    for case, name in cases:
        contender = case.contenders(["highest", "medium"], compiled=False)[name]
        call = contender.memory or contender.call
        title = case.title() + ("" if name == "fastcsm" else f", {name.removeprefix('fastcsm_')}")
        if only in title:
            yield title, benchmark.measure.at_precision(contender.precision, call)


def count(requests: Path, only: str) -> None:
    """Under callgrind: make all inputs, then count every call; prints the instruction set and the library."""
    import ctypes

    import torch

    from fastcsm.backends import CPU

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
    title, total, names, own, called = "", 0, {}, False, False
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
    from fastcsm.backends import CPU

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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, requests = folder / "requests.c", folder / "requests.so"
        source.write_text(REQUESTS)
        _run(["cc", "-shared", "-fPIC", "-O1", source, "-o", requests], environment)
        options = ["--instr-atstart=no", "--collect-atstart=no", f"--callgrind-out-file={folder}/counts"]
        program = [sys.executable, __file__, "--only", only, "--requests", requests]
        ran = _run(["valgrind", "--quiet", "--tool=callgrind", *options, *program], environment)
        isa, _, library = ran.strip().partition(" ")
        found = dict(parse(path.read_text(), library) for path in sorted(folder.glob("counts.*")))
    return isa, {title: {"instructions": total} for title, total in sorted(found.items())}


def _run(command: list, environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--accept", action="store_true", help="write the counts found instead of comparing them")
    p.add_argument("--only", default="", metavar="TEXT", help="only cases whose title contains TEXT")
    p.add_argument("--requests", type=Path, help=argparse.SUPPRESS)
    arguments = p.parse_args()
    if arguments.requests:
        count(arguments.requests, arguments.only)
        return 0
    reason = why_not()
    if reason:
        print(f"not counted: {reason}")
        return 0
    compiler = json.loads((ROOT / "fastcsm" / "_build.json").read_text(encoding="utf-8"))["compiler"]
    before = table.read(TABLE, "compiler")
    reason = table.not_compared(before, "compiler", compiler)
    if reason and not arguments.accept:
        print(reason)
        return 0
    isa, kernels = measure(arguments.only)
    if isa != ISA:
        print(f"not compared: the kernels ran as {isa} under valgrind, and the table is of {ISA}")
        return 0
    for title, figures in kernels.items():
        print(f"{title:<100} {figures['instructions']:>12,}")
    if arguments.accept:
        table.write(TABLE, "compiler", compiler, kernels, partly=bool(arguments.only))
        return 0
    lines = table.compare(before, kernels, FIGURES)
    print("\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
