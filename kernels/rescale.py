"""rescale: gradients times a number on the device in one launch, which ends at once where the number is 1."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, multiprocessors

#: Members of a tuple are compiled for their value's kind: as multiples of 16 that need 64 bits all are alike.
_SIZE = tl.constexpr(1 << 56)


@triton.jit
def _scale(values, size, factor, BLOCK: tl.constexpr):
    STORE: tl.constexpr = values.dtype.element_ty
    COMPUTE: tl.constexpr = tl.float64 if STORE == tl.float64 else tl.float32
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        i = block * BLOCK + tl.arange(0, BLOCK)
        scaled = tl.load(values + i, mask=i < size).to(COMPUTE) * factor.to(COMPUTE)
        tl.store(values + i, scaled.to(STORE), mask=i < size)


@triton.jit
def rescale_kernel(upstream, gradients, sizes, BLOCK: tl.constexpr):
    factor = tl.load(upstream)
    if factor != 1:
        for k in tl.static_range(len(gradients)):
            _scale(gradients[k], (sizes[k] - _SIZE) >> 4, factor, BLOCK)


def rescale(gradients: Sequence[Tensor], upstream: Tensor) -> None:
    """Arguments of :func:`fastcsm.reference.rescale.rescale`; the gradients are contiguous."""
    gradients = tuple(gradient for gradient in gradients if gradient.numel() > 0)
    if gradients:
        block = 4096
        blocks = sum(triton.cdiv(gradient.numel(), block) for gradient in gradients)
        sizes = tuple(_SIZE.value + 16 * gradient.numel() for gradient in gradients)
        grid = (min(multiprocessors(upstream.device), blocks),)
        launch(rescale_kernel, grid, (upstream, gradients, sizes), 8, BLOCK=block)
