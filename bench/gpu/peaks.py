"""What a GPU does at most: copies, torch.mm, and matrix instructions in a loop on registers.

The matrix instructions are mma.sync's, which the CUDA C++ kernels use, and those of ``tl.dot`` with operands
that stay in shared memory, which Triton's kernels use.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import subjects

Call = Callable[[], Any]


class Rate(NamedTuple):
    """A call, and the operations or bytes that it takes."""

    work: float
    call: Call


@triton.jit
def mma_loop_kernel(operands, out, iterations, ASM: tl.constexpr, BLOCK: tl.constexpr):
    """Every element is a matrix instruction of its warp: a thread's elements do not wait for one another."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, BLOCK)
    a0, a1, a2 = tl.load(operands + at), tl.load(operands + at + 1), tl.load(operands + at + 2)
    a3, b0, b1 = tl.load(operands + at + 3), tl.load(operands + at + 4), tl.load(operands + at + 5)
    zero = tl.zeros((BLOCK,), tl.float32)
    c0, c1, c2, c3 = zero, zero, zero, zero
    for _ in range(iterations):
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            ASM,
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            (a0, a1, a2, a3, b0, b1, c0, c1, c2, c3),
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    tl.store(out + i, c0 + c1 + c2 + c3)


@triton.jit
def dot_loop_kernel(a, b, out, iterations, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left, right = tl.load(a + m[:, None] * K + k), tl.load(b + k[:, None] + n * K)
    sums = tl.zeros((M, N), tl.float32)
    for _ in range(iterations):
        sums = tl.dot(left, right, sums, input_precision="tf32")
    tl.store(out + tl.program_id(0) * N + n, tl.sum(sums, 0))


_SHAPES = {"bfloat16": ("m16n8k16", "bf16", 16), "tf32": ("m16n8k8", "tf32", 8)}


def processors() -> int:
    return 1 if subjects.DRY else torch.cuda.get_device_properties(0).multi_processor_count


def mma_loop(precision: str, iterations: int = 4000, warps: int = 8, each: int = 8) -> Rate:
    """mma.sync on registers, ``each`` independent accumulators a warp.

    Raises:
        RuntimeError: in the interpreter, which has no instructions.
    """
    if subjects.DRY:
        raise RuntimeError("the interpreter has no matrix instructions")
    shape, kind, depth = _SHAPES[precision]
    asm = (
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    )
    programs, block = 2 * processors(), 32 * warps * each
    values = torch.randn(block + 8, device=subjects.device()) * 1e-3
    if precision == "bfloat16":
        values = values.repeat_interleave(2).bfloat16()
    operands = values.view(torch.int32)
    out = torch.empty(programs * block, device=subjects.device())

    def run() -> Tensor:
        mma_loop_kernel[(programs,)](
            operands, out, iterations, ASM=asm, BLOCK=block, num_warps=warps, enable_fp_fusion=True
        )
        return out

    return Rate(2.0 * 16 * 8 * depth * warps * each * programs * iterations, run)


def dot_loop(precision: str, iterations: int = 2000) -> Rate:
    """``tl.dot`` of operands that stay where they are."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    m, n, k = (16, 16, 16) if subjects.DRY else (128, 128, 64)
    iterations = 2 if subjects.DRY else iterations
    programs = 2 * processors()
    a, b = (torch.randn(rows, k, device=subjects.device()).mul(1e-3).to(dtype) for rows in (m, n))
    out = torch.empty(programs * n, device=subjects.device())

    def run() -> Tensor:
        dot_loop_kernel[(programs,)](a, b, out, iterations, M=m, N=n, K=k, num_warps=4, enable_fp_fusion=True)
        return out

    return Rate(2.0 * m * n * k * programs * iterations, run)


def product(precision: str, m: int, k: int, n: int) -> Rate:
    """torch.mm; the precision must be in force."""
    dtype = subjects.PRECISIONS[precision][0]
    shapes = (m, k), (k, n)
    a, b = (torch.randn(shape, device=subjects.device(), dtype=dtype) for shape in shapes)
    return Rate(2.0 * m * k * n, lambda: a @ b)


def copy(count: int = 1 << 30) -> Rate:
    """A copy on the device, bytes read and written."""
    count = 1 << 16 if subjects.DRY else count
    source = torch.randint(0, 99, (count,), dtype=torch.int8, device=subjects.device())
    target = torch.empty_like(source)
    return Rate(2.0 * count, lambda: target.copy_(source))


def square(precision: str) -> Rate:
    size = 64 if subjects.DRY else 8192
    return product(precision, size, size, size)
