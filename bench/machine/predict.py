"""Predicted times on devices that were not there: a stated model of counts, and of nothing else.

A unit of work, as ``cases.py`` counts it, keeps each part of a multiprocessor busy for

    issue            hardware's instructions / 4 schedulers
    special          special functions * 32 lanes / 16 a cycle
    shared memory    wavefronts, one of 128 bytes a cycle
    matrix units     operations / rate, at most 62% of Hopper's by mma.sync
    float64          instructions * 32 lanes / 64 (Hopper) or 32 (Ampere) a cycle
    L2               least sectors, one of 32 bytes a cycle
    device memory    bytes of its own / its share of the bandwidth (of heads; tiles of layers have none)

and the longest chain of its dependences takes ``path`` cycles. Blocks that share a multiprocessor share its
parts and overlap their chains: a round of c blocks takes the larger of the path and of c times the busiest
part. Hardware's instructions are those of PTX, weighted (``cases.weight``), times the ratio of the code's
length in SASS to its weighted length in PTX. How many blocks share a multiprocessor follows from registers
and shared memory of the compiled kernel. Left out: what issue and waiting cost each other, clocks that sink
under load, caches that miss. So a prediction is a bound from below: a measured time is expected between it
and twice it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Device(NamedTuple):
    """A GPU as the model knows it: rates are operations a cycle of one multiprocessor."""

    name: str
    architecture: int
    multiprocessors: int
    clock: float  # Hz under load
    matrix: float  # bfloat16 operations, half of them in tf32
    by_mma: float  # the part of that rate that mma.sync reaches
    float64: int
    shared: int  # bytes of a multiprocessor
    bandwidth: float  # bytes a second of device memory, of a copy


A100 = Device("A100", 80, 108, 1.41e9, 2048, 1.0, 32, 167_936, 1.4e12)
H100 = Device("H100", 90, 132, 1.70e9, 4096, 0.62, 64, 233_472, 3.0e12)
H200 = H100._replace(name="H200", bandwidth=4.3e12)
DEVICES = (A100, H100, H200)
#: Registers of a multiprocessor, threads it holds, and bytes of shared memory that every block takes besides.
REGISTERS, THREADS, RESERVED = 65_536, 2048, 1024


class Problem(NamedTuple):
    """A call to predict.

    Attributes:
        kernel: of ``cases.py``, with its frequencies.
        blocks, turns: of a launch on a device, and the units that a block works off, one after the other.
        hand: what gpu.md predicts by hand for an H100, by backend and precision, in words.
    """

    title: str
    kernel: str
    blocks: Mapping[str, float]
    turns: Mapping[str, float]
    hand: Mapping[tuple[str, str], str]


ROWS = 401_408
#: Inputs and outputs of a MADE's layers, of whose 128 x 128 x 64 pieces for 1024 rows half have edges.
LAYERS = ((784, 4096), (4096, 4096), (4096, 784 * 32))


def problems() -> Iterator[Problem]:
    """What gpu.md has predictions for, and the densities."""
    plain = {
        ("cuda", "bfloat16"): "0.38-0.45 ms",
        ("cuda", "tf32"): "0.65-0.80 ms",
        ("triton", "bfloat16"): "0.9-1.1 ms",
        ("triton", "tf32"): "1.1 ms",
        ("triton", "float32"): "2-3 ms",
    }
    for frequencies, hand in ((0, plain), (16, {})):
        yield Problem(
            f"csm_loss, {ROWS} rows, C = 32, 2 x 128, E = {frequencies}",
            f"csm_loss_kernel E={frequencies}",
            {"triton": 0, "cuda": 0},  # one for each multiprocessor
            {"triton": ROWS / 64, "cuda": ROWS / 32},
            hand,
        )
    yield Problem(
        "langevin_draw, 512 samples, D = 784, 200 steps, E = 0",
        "langevin_draw_kernel E=0",
        {"triton": 512 / 16, "cuda": 512 / 8},
        {"triton": 784 * 200, "cuda": 784 * 200},
        {("cuda", "bfloat16"): "65 ms"},
    )
    yield Problem(
        "langevin, 4096 rows, 200 steps, E = 0",
        "langevin_kernel E=0",
        {"triton": 4096 / 16, "cuda": 4096 / 8},
        {"triton": 200, "cuda": 200},
        {("triton", "bfloat16"): "0.25 ms", ("triton", "tf32"): "0.3 ms"},
    )
    for kernel in ("fwd", "bwd_x", "bwd_weight"):
        layers = LAYERS[1:] if kernel == "bwd_x" else LAYERS
        units = sum(1024 * i * o / (128 * 128 * 64) / 2 for i, o in layers)
        yield Problem(
            f"masked layers of a MADE, 1024 rows, 2 x 4096: {kernel}",
            f"masked_linear_{kernel}_kernel",
            {"triton": units / 32, "cuda": units / 32},
            {"triton": 32, "cuda": 32},
            {(backend, "bfloat16"): "1.0-1.25 ms in all" for backend in ("triton", "cuda")},
        )
    yield Problem(
        "conditional_density, 12544 rows, E = 16",
        "conditional_density_kernel E=16",
        {"triton": 12544, "cuda": 0},
        {"triton": 1, "cuda": 12544},
        {},
    )
    yield Problem(
        "probability_flow, 12544 rows, E = 16",
        "probability_flow_kernel E=16",
        {"triton": 0, "cuda": 0},
        {"triton": 12544 / 32, "cuda": 12544 / 16},
        {},
    )


class Prediction(NamedTuple):
    """Seconds, and which part of the model binds."""

    seconds: float
    binds: str


def resident(device: Device, figures: Mapping[str, Any], registers: int) -> int:
    """Blocks of a kernel that share a multiprocessor."""
    threads = figures["threads"]
    by_registers = REGISTERS // (math.ceil(registers / 8) * 8 * threads)
    by_shared = device.shared // (figures["shared"] + RESERVED)
    return max(min(by_registers, by_shared, THREADS // threads, 32), 1)


def busy(device: Device, figures: Mapping[str, Any], precision: str, ratio: float) -> dict[str, float]:
    """Cycles for which a unit keeps each part of a multiprocessor busy."""
    rate = device.matrix * (1 if figures["wgmma"] else device.by_mma) / (1 if precision == "bfloat16" else 2)
    return {
        "issue": figures["weighted"] * ratio / 4,
        "special functions": figures["special"] * 32 / 16,
        "shared memory": figures["wavefronts"],
        "matrix units": figures["flops"] / rate,
        "float64": figures["kinds"].get("float64", 0) * 32 / device.float64,
        "L2": figures["least_sectors"],
        "device memory": figures["memory"] * device.clock * device.multiprocessors / device.bandwidth,
    }


def predict(
    device: Device,
    problem: Problem,
    backend: str,
    precision: str,
    figures: Mapping[str, Any],
    compiled: Mapping[str, int],
) -> Prediction:
    """The time of a problem by a unit's counts and the compiled kernel's registers and instructions."""
    if backend == "cuda" and problem.kernel.startswith("probability_flow"):
        precision = "bfloat16"  # its matrix units multiply sums of three
    parts = busy(device, figures, precision, compiled["instructions"] / figures["static"])
    worst = max(parts, key=parts.__getitem__)
    at_once = resident(device, figures, compiled["registers"])
    if backend == "cuda" and not problem.blocks[backend]:
        at_once = 1
    blocks = problem.blocks[backend] or device.multiprocessors * at_once
    turns = problem.turns[backend] if problem.blocks[backend] else problem.turns[backend] / blocks
    together = min(at_once, math.ceil(blocks / device.multiprocessors))
    side = figures["side"] if not problem.blocks[backend] else 1
    rounds = math.ceil(blocks / (device.multiprocessors * together))
    path, load = figures["path"] / side, together * parts[worst]
    cycles = rounds * math.ceil(turns) * max(path, load)
    return Prediction(cycles / device.clock, "dependences" if path > load else worst)
