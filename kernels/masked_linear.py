"""masked_linear: f((W * M) x + b) and its gradients; no loop enters a block that the mask empties."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.activations import activate
from .configurations import linear_config, linear_precision, reads_along_the_sum
from .launch import aligned, launch, multiprocessors, reduce_partials


class Product(NamedTuple):
    """How a product is compiled: a tile of (BM, BN), steps of BK along the sum, and precision P.

    TURNED takes the transposed product, whose first operand comes from registers, where matrix units read
    numbers of 4 bytes from shared memory only along the sum.
    """

    BM: int
    BN: int
    BK: int
    P: str
    TURNED: bool = False


@triton.jit(do_not_specialize=["inputs", "outputs"])
def reach_kernel(
    in_degrees,
    out_degrees,
    bounds,
    inputs: tl.int32,
    outputs: tl.int32,
    T: tl.constexpr,
    FORWARD: tl.constexpr,
):
    """Bounds of the loop of one tile of T units, and where within them every edge exists.

    FORWARD, tile of outputs: (first input past any edge, first input that some output of the tile lacks).
    Else, tile of inputs: (first output of any edge, first output from which on none lacks any).
    """
    BLOCK: tl.constexpr = 1024
    LARGE: tl.constexpr = 2**63 - 1
    # Counted from the last output, with degrees negated, a tile of inputs is like one of outputs.
    sign: tl.constexpr = 1 if FORWARD else -1
    own, degrees = (out_degrees, in_degrees) if FORWARD else (in_degrees, out_degrees)
    owners, size = (outputs, inputs) if FORWARD else (inputs, outputs)
    t = tl.program_id(0) * T + tl.arange(0, T)
    own = sign * tl.load(own + t, mask=t < owners, other=0)
    most = tl.max(tl.where(t < owners, own, -LARGE), 0)
    least = tl.min(tl.where(t < owners, own, LARGE), 0)
    end, full = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32) + size
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        degree = sign * tl.load(degrees + (i if FORWARD else size - 1 - i), mask=i < size, other=0)
        end = tl.maximum(end, tl.where((i < size) & (degree <= most), i + 1, 0))
        full = tl.minimum(full, tl.where((i < size) & (degree > least), i, size))
    end, full = tl.max(end, 0), tl.min(full, 0)
    tl.store(bounds + 2 * tl.program_id(0), end if FORWARD else size - end)
    tl.store(bounds + 2 * tl.program_id(0) + 1, full if FORWARD else size - full)


@triton.jit
def _zeros(dtype: tl.constexpr, PRODUCT: tl.constexpr):
    """The empty sum of a product, in float64 for float64, else in float32."""
    COMPUTE: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    SHAPE: tl.constexpr = (PRODUCT.BN, PRODUCT.BM) if PRODUCT.TURNED else (PRODUCT.BM, PRODUCT.BN)
    return tl.zeros(SHAPE, COMPUTE)


@triton.jit
def _add(acc, a, b, begin, end, edges, PRODUCT: tl.constexpr, EDGE: tl.constexpr):
    """acc + the sum of a[m, k] b[k, n] over k from begin, a multiple of BK, to end.

    a and b are (pointers along m or n, which of them exist, stride along k, size along k). ``edges`` is
    (degrees along k, degrees along n, whether k counts inputs); with EDGE b counts only where an edge is.
    """
    a_pointers, a_inside, a_stride, a_size = a
    b_pointers, b_inside, b_stride, b_size = b
    for first in range(begin, end, PRODUCT.BK):
        k = first + tl.arange(0, PRODUCT.BK)
        far = k.to(tl.int64)
        there = a_inside[:, None] & (k[None, :] < a_size)
        left = tl.load(a_pointers[:, None] + far[None, :] * a_stride, mask=there, other=0.0)
        there = b_inside[None, :] & (k[:, None] < b_size)
        right = tl.load(b_pointers[None, :] + far[:, None] * b_stride, mask=there, other=0.0)
        # A mask of edges would have the load read single numbers.
        if EDGE:
            degrees, own, FORWARD = edges
            degree = tl.load(degrees + k, mask=k < b_size, other=0)
            if FORWARD:
                there = there & (degree[:, None] <= own[None, :])
            else:
                there = there & (own[None, :] <= degree[:, None])
        if EDGE or PRODUCT.TURNED:
            right = tl.where(there, right, 0.0)
        if PRODUCT.TURNED:
            # A sum of its own, which is waited for: else the next step would overwrite registers being read.
            left, right = tl.trans(right), tl.trans(left)
            acc += tl.dot(left, right, input_precision=PRODUCT.P, max_num_imprecise_acc=PRODUCT.BK)
        else:
            acc = tl.dot(left, right, acc, input_precision=PRODUCT.P, out_dtype=acc.dtype)
    return acc


@triton.jit(do_not_specialize=["batch"])
def masked_linear_fwd_kernel(
    x,
    layer,
    y,
    preactivation,
    batch: tl.int64,
    inputs: tl.int32,
    outputs: tl.int32,
    PRODUCT: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    weight, bias, in_degrees, out_degrees, bounds = layer
    BK: tl.constexpr = PRODUCT.BK
    # The last outputs have most edges: their tiles start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * PRODUCT.BM + tl.arange(0, PRODUCT.BM)
    outs = tile * PRODUCT.BN + tl.arange(0, PRODUCT.BN)
    a = x + rows * inputs, rows < batch, 1, inputs
    b = weight + outs.to(tl.int64) * inputs, outs < outputs, 1, inputs
    edges = in_degrees, tl.load(out_degrees + outs, mask=outs < outputs, other=0), True
    end, full = tl.load(bounds + 2 * tile), tl.load(bounds + 2 * tile + 1) // BK * BK
    acc = _zeros(x.dtype.element_ty, PRODUCT)
    acc = _add(acc, a, b, 0, full, edges, PRODUCT, False)
    acc = _add(acc, a, b, full, end, edges, PRODUCT, True)
    acc += tl.load(bias + outs, mask=outs < outputs, other=0.0).to(acc.dtype)[None, :]
    inside = (rows[:, None] < batch) & (outs[None, :] < outputs)
    place = rows[:, None] * outputs + outs[None, :]
    if ACTIVATION != "identity":
        tl.store(preactivation + place, acc.to(y.dtype.element_ty), mask=inside)
        acc, _, _ = activate(acc, ACTIVATION)
    tl.store(y + place, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def masked_linear_bwd_x_kernel(
    grad,
    layer,
    grad_x,
    batch: tl.int64,
    inputs: tl.int32,
    outputs: tl.int32,
    PRODUCT: tl.constexpr,
):
    weight, in_degrees, out_degrees, bounds = layer
    BK: tl.constexpr = PRODUCT.BK
    tile = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * PRODUCT.BM + tl.arange(0, PRODUCT.BM)
    ins = tile * PRODUCT.BN + tl.arange(0, PRODUCT.BN)
    a = grad + rows * outputs, rows < batch, 1, outputs
    b = weight + ins, ins < inputs, inputs, outputs
    edges = out_degrees, tl.load(in_degrees + ins, mask=ins < inputs, other=0), False
    start, full = tl.load(bounds + 2 * tile) // BK * BK, tl.load(bounds + 2 * tile + 1)
    middle = tl.cdiv(tl.maximum(start, full), BK) * BK
    acc = _zeros(grad.dtype.element_ty, PRODUCT)
    acc = _add(acc, a, b, start, middle, edges, PRODUCT, True)
    acc = _add(acc, a, b, middle, outputs, edges, PRODUCT, False)
    if PRODUCT.TURNED:
        acc = tl.trans(acc)
    inside = (rows[:, None] < batch) & (ins[None, :] < inputs)
    tl.store(grad_x + rows[:, None] * inputs + ins[None, :], acc.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "slice_steps"])
def masked_linear_bwd_weight_kernel(
    grad,
    x,
    degrees,
    grad_weight,
    batch: tl.int64,
    slice_steps: tl.int32,
    inputs: tl.int32,
    outputs: tl.int32,
    stride: tl.int64,
    PRODUCT: tl.constexpr,
):
    """The gradient of one tile of the weight over one slice of the batch; zero where there is no edge.

    x is (batch, stride), or with TURNED (inputs, stride), filled up with zeros to a multiple of 16.
    """
    in_degrees, out_degrees = degrees
    ins = tl.program_id(1) * PRODUCT.BM + tl.arange(0, PRODUCT.BM)
    outs = (tl.num_programs(0) - 1 - tl.program_id(0)) * PRODUCT.BN + tl.arange(0, PRODUCT.BN)
    in_degree = tl.load(in_degrees + ins, mask=ins < inputs, other=2**63 - 1)
    out_degree = tl.load(out_degrees + outs, mask=outs < outputs, other=-(2**63) + 1)
    begin = tl.program_id(2).to(tl.int64) * slice_steps * PRODUCT.BK
    rows = tl.minimum(batch - begin, slice_steps * PRODUCT.BK).to(tl.int32)
    if tl.min(in_degree, 0) > tl.max(out_degree, 0):
        rows = 0
    if PRODUCT.TURNED:
        a = x + begin + ins * stride, ins < inputs, 1, tl.cdiv(rows, 16) * 16
    else:
        a = x + begin * stride + ins, ins < inputs, stride, rows
    b = grad + begin * outputs + outs, outs < outputs, outputs, rows
    acc = _add(_zeros(x.dtype.element_ty, PRODUCT), a, b, 0, rows, (), PRODUCT, False)
    if not PRODUCT.TURNED:
        acc = tl.trans(acc)
    acc = tl.where(in_degree[None, :] <= out_degree[:, None], acc, 0.0)
    place = outs[:, None].to(tl.int64) * inputs + ins[None, :]
    slice_start = tl.program_id(2).to(tl.int64) * outputs * inputs
    inside = (outs[:, None] < outputs) & (ins[None, :] < inputs)
    tl.store(grad_weight + slice_start + place, acc.to(grad_weight.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "slice_rows"])
def masked_linear_bwd_activation_kernel(
    grad_y,
    preactivation,
    grad,
    sums,
    batch: tl.int64,
    slice_rows: tl.int64,
    outputs: tl.int32,
    BN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEED_BIAS: tl.constexpr,
):
    """grad = grad_y f'(a) of one slice of the batch, and its sum over the slice."""
    BM: tl.constexpr = 32
    COMPUTE: tl.constexpr = tl.float64 if grad_y.dtype.element_ty == tl.float64 else tl.float32
    outs = tl.program_id(0) * BN + tl.arange(0, BN)
    begin = tl.program_id(1) * slice_rows
    end = tl.minimum(begin + slice_rows, batch)
    total = tl.zeros((BN,), COMPUTE)
    for first in range(begin, end, BM):
        rows = first + tl.arange(0, BM).to(tl.int64)
        inside = (rows[:, None] < end) & (outs[None, :] < outputs)
        place = rows[:, None] * outputs + outs[None, :]
        g = tl.load(grad_y + place, mask=inside, other=0.0).to(COMPUTE)
        if ACTIVATION != "identity":
            a = tl.load(preactivation + place, mask=inside, other=0.0).to(COMPUTE)
            _, d, _ = activate(a, ACTIVATION)
            g = g * d
            tl.store(grad + place, g.to(grad.dtype.element_ty), mask=inside)
        if NEED_BIAS:
            total += tl.sum(g, 0)
    if NEED_BIAS:
        place = tl.program_id(1).to(tl.int64) * outputs + outs
        tl.store(sums + place, total.to(sums.dtype.element_ty), mask=outs < outputs)


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor, in_degrees: Tensor, out_degrees: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.masked_linear.masked_linear`."""
    outputs, inputs = weight.shape
    y = x.new_empty(len(x), outputs)
    preactivation = x.new_empty(0) if activation == "identity" else torch.empty_like(y)
    if y.numel() == 0:
        return y, preactivation
    x, weight, bias, in_degrees, out_degrees = map(aligned, (x, weight, bias, in_degrees, out_degrees))
    config = linear_config("masked_linear_fwd", x.dtype, len(x), outputs)
    tiles = triton.cdiv(outputs, config.bn)
    bounds = _reach(in_degrees, out_degrees, tiles, config.bn, True)
    launch(
        masked_linear_fwd_kernel,
        (triton.cdiv(len(x), config.bm), tiles, 1),
        (x, (weight, bias, in_degrees, out_degrees, bounds), y, preactivation, len(x), inputs, outputs),
        *config[3:],
        PRODUCT=Product(*config[:3], linear_precision(x.dtype)),
        ACTIVATION=activation,
    )
    return y, preactivation


def _reach(in_degrees: Tensor, out_degrees: Tensor, tiles: int, tile: int, forward: bool) -> Tensor:
    bounds = torch.empty(tiles, 2, dtype=torch.int32, device=in_degrees.device)
    sizes = len(in_degrees), len(out_degrees)
    launch(reach_kernel, (tiles,), (in_degrees, out_degrees, bounds, *sizes), 4, T=tile, FORWARD=forward)
    return bounds


def masked_linear_backward(
    grad_y: Tensor,
    preactivation: Tensor,
    x: Tensor,
    weight: Tensor,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.masked_linear.masked_linear_backward`."""
    grad_weight = torch.empty_like(weight) if need_weight else x.new_empty(0)
    grad_bias = x.new_empty(len(weight) if need_bias else 0)
    layer = x, weight, in_degrees, out_degrees, activation
    grad_x = masked_linear_backward_into(grad_y, preactivation, *layer, need_x, grad_weight, grad_bias)
    return grad_x, grad_weight, grad_bias


def masked_linear_backward_into(
    grad_y: Tensor,
    preactivation: Tensor,
    x: Tensor,
    weight: Tensor,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    need_x: bool,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> Tensor:
    """Arguments and results of :func:`fastcsm.reference.masked_linear.masked_linear_backward_into`."""
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    outputs, inputs = weight.shape
    if grad_y.numel() == 0:
        for empty in (grad_x, grad_weight, grad_bias):
            empty.zero_()
        return grad_x
    given = grad_y, x, weight, in_degrees, out_degrees
    grad_y, x, weight, in_degrees, out_degrees = map(aligned, given)
    grad = _grad_of_preactivation(grad_y, preactivation, activation, grad_bias)
    precision = linear_precision(x.dtype)
    turned = reads_along_the_sum() and precision != "ieee"
    if need_x and inputs > 0:
        config = linear_config("masked_linear_bwd_x", x.dtype, len(x), inputs)
        tiles = triton.cdiv(inputs, config.bn)
        bounds = _reach(in_degrees, out_degrees, tiles, config.bn, False)
        launch(
            masked_linear_bwd_x_kernel,
            (triton.cdiv(len(x), config.bm), tiles),
            (grad, (weight, in_degrees, out_degrees, bounds), grad_x, len(x), inputs, outputs),
            *config[3:],
            PRODUCT=Product(*config[:3], precision, turned),
        )
    if grad_weight.numel() > 0:
        config = linear_config("masked_linear_bwd_weight", x.dtype, inputs, outputs)
        grid = triton.cdiv(outputs, config.bn), triton.cdiv(inputs, config.bm)
        slices = _slices(x, grid[0] * grid[1])
        target = grad_weight
        if slices > 1:
            target = x.new_empty(slices, *weight.shape, dtype=_compute(x))
        rows = _transposed(x) if turned else x
        sizes = len(x), triton.cdiv(len(x), slices * config.bk), inputs, outputs, rows.shape[1]
        launch(
            masked_linear_bwd_weight_kernel,
            (*grid, slices),
            (grad, rows, (in_degrees, out_degrees), target, *sizes),
            *config[3:],
            PRODUCT=Product(*config[:3], precision, turned),
        )
        if slices > 1:
            reduce_partials(target, slices, [grad_weight])
    return grad_x


def _grad_of_preactivation(
    grad_y: Tensor, preactivation: Tensor, activation: str, grad_bias: Tensor
) -> Tensor:
    """grad_y f'(a), and its sum over the batch in ``grad_bias`` unless that is empty."""
    need_bias = grad_bias.numel() > 0
    if activation == "identity" and not need_bias:
        return grad_y
    batch, outputs = grad_y.shape
    tiles = triton.cdiv(outputs, 64)
    slices = _slices(grad_y, tiles)
    grad = grad_y if activation == "identity" else torch.empty_like(grad_y)
    sums = grad_bias
    if need_bias and slices > 1:
        sums = grad_y.new_empty(slices, outputs, dtype=_compute(grad_y))
    launch(
        masked_linear_bwd_activation_kernel,
        (tiles, slices),
        (grad_y, preactivation, grad, sums, batch, triton.cdiv(batch, slices), outputs),
        4,
        BN=64,
        ACTIVATION=activation,
        NEED_BIAS=need_bias,
    )
    if need_bias and slices > 1:
        reduce_partials(sums, slices, [grad_bias])
    return grad


def _transposed(x: Tensor) -> Tensor:
    """x^T, whose rows are filled up with zeros to a multiple of 16."""
    rows = x.new_zeros(x.shape[1], triton.cdiv(len(x), 16) * 16)
    rows[:, : len(x)] = x.t()
    return rows


def _compute(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _slices(x: Tensor, tiles: int) -> int:
    """Parts of the batch, so that tiles and parts fill the device; they hold from 256 to 2^30 rows."""
    most, least = triton.cdiv(len(x), 256), triton.cdiv(len(x), 1 << 30)
    return max(min(triton.cdiv(multiprocessors(x.device), tiles), most), least)
