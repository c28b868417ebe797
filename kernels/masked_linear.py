"""masked_linear: f((W * M) x + b) and its gradients; no loop enters a block that the mask empties."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .configurations import linear_config, precision_of
from .launch import launch, programs, reduce_partials


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
    t = tl.program_id(0) * T + tl.arange(0, T)
    if FORWARD:
        own = tl.load(out_degrees + t, mask=t < outputs, other=0)
        most = tl.max(tl.where(t < outputs, own, -(2**63) + 1), 0)
        least = tl.min(tl.where(t < outputs, own, 2**63 - 1), 0)
        end, full = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32) + inputs
        for start in range(0, inputs, BLOCK):
            i = start + tl.arange(0, BLOCK)
            degree = tl.load(in_degrees + i, mask=i < inputs, other=0)
            end = tl.maximum(end, tl.where((i < inputs) & (degree <= most), i + 1, 0))
            full = tl.minimum(full, tl.where((i < inputs) & (degree > least), i, inputs))
        tl.store(bounds + 2 * tl.program_id(0), tl.max(end, 0))
        tl.store(bounds + 2 * tl.program_id(0) + 1, tl.min(full, 0))
    else:
        own = tl.load(in_degrees + t, mask=t < inputs, other=0)
        most = tl.max(tl.where(t < inputs, own, -(2**63) + 1), 0)
        least = tl.min(tl.where(t < inputs, own, 2**63 - 1), 0)
        first, full = tl.zeros((BLOCK,), tl.int32) + outputs, tl.zeros((BLOCK,), tl.int32)
        for start in range(0, outputs, BLOCK):
            o = start + tl.arange(0, BLOCK)
            degree = tl.load(out_degrees + o, mask=o < outputs, other=0)
            first = tl.minimum(first, tl.where((o < outputs) & (degree >= least), o, outputs))
            full = tl.maximum(full, tl.where((o < outputs) & (degree < most), o + 1, 0))
        tl.store(bounds + 2 * tl.program_id(0), tl.min(first, 0))
        tl.store(bounds + 2 * tl.program_id(0) + 1, tl.max(full, 0))


@triton.jit
def _add_product(
    acc,
    x,
    weight,
    rows,
    outs,
    first,
    in_degrees,
    own,
    batch,
    inputs,
    outputs,
    BK: tl.constexpr,
    EDGE: tl.constexpr,
    P: tl.constexpr,
):
    """acc + x[rows, first:first + BK] W[outs, first:first + BK]^T; with EDGE only over edges."""
    i = first + tl.arange(0, BK)
    xs = tl.load(
        x + rows[:, None] * inputs + i[None, :],
        mask=(rows[:, None] < batch) & (i[None, :] < inputs),
        other=0.0,
    )
    there = (outs[None, :] < outputs) & (i[:, None] < inputs)
    if EDGE:
        degree = tl.load(in_degrees + i, mask=i < inputs, other=0)
        there = there & (degree[:, None] <= own[None, :])
    w = tl.load(weight + outs[None, :].to(tl.int64) * inputs + i[:, None], mask=there, other=0.0)
    return tl.dot(xs, w, acc, input_precision=P, out_dtype=acc.dtype)


@triton.jit(do_not_specialize=["batch"])
def masked_linear_fwd_kernel(
    x,
    weight,
    bias,
    in_degrees,
    out_degrees,
    bounds,
    y,
    preactivation,
    batch: tl.int64,
    inputs: tl.int32,
    outputs: tl.int32,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    # The last outputs have most edges: their tiles start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    outs = tile * BN + tl.arange(0, BN)
    own = tl.load(out_degrees + outs, mask=outs < outputs, other=0)
    end, full = tl.load(bounds + 2 * tile), tl.load(bounds + 2 * tile + 1) // BK * BK
    acc = tl.zeros((BM, BN), COMPUTE)
    for first in range(0, full, BK):
        acc = _add_product(
            acc, x, weight, rows, outs, first, in_degrees, own, batch, inputs, outputs, BK, False, P
        )
    for first in range(full, end, BK):
        acc = _add_product(
            acc, x, weight, rows, outs, first, in_degrees, own, batch, inputs, outputs, BK, True, P
        )
    acc += tl.load(bias + outs, mask=outs < outputs, other=0.0).to(COMPUTE)[None, :]
    inside = (rows[:, None] < batch) & (outs[None, :] < outputs)
    place = rows[:, None] * outputs + outs[None, :]
    if ACTIVATION != "identity":
        tl.store(preactivation + place, acc.to(y.dtype.element_ty), mask=inside)
        acc, _, _ = activate(acc, ACTIVATION)
    tl.store(y + place, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def masked_linear_bwd_x_kernel(
    grad,
    weight,
    in_degrees,
    out_degrees,
    bounds,
    grad_x,
    batch: tl.int64,
    inputs: tl.int32,
    outputs: tl.int32,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    P: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    ins = tile * BN + tl.arange(0, BN)
    own = tl.load(in_degrees + ins, mask=ins < inputs, other=0)
    start, full = tl.load(bounds + 2 * tile), tl.load(bounds + 2 * tile + 1)
    middle = tl.minimum(start + tl.cdiv(tl.maximum(full - start, 0), BK) * BK, outputs)
    acc = tl.zeros((BM, BN), COMPUTE)
    for first in range(start, middle, BK):
        o = first + tl.arange(0, BK)
        g = tl.load(
            grad + rows[:, None] * outputs + o[None, :],
            mask=(rows[:, None] < batch) & (o[None, :] < outputs),
            other=0.0,
        )
        degree = tl.load(out_degrees + o, mask=o < outputs, other=0)
        there = (o[:, None] < outputs) & (ins[None, :] < inputs) & (own[None, :] <= degree[:, None])
        w = tl.load(weight + o[:, None].to(tl.int64) * inputs + ins[None, :], mask=there, other=0.0)
        acc = tl.dot(g, w, acc, input_precision=P, out_dtype=COMPUTE)
    for first in range(middle, outputs, BK):
        o = first + tl.arange(0, BK)
        g = tl.load(
            grad + rows[:, None] * outputs + o[None, :],
            mask=(rows[:, None] < batch) & (o[None, :] < outputs),
            other=0.0,
        )
        there = (o[:, None] < outputs) & (ins[None, :] < inputs)
        w = tl.load(weight + o[:, None].to(tl.int64) * inputs + ins[None, :], mask=there, other=0.0)
        acc = tl.dot(g, w, acc, input_precision=P, out_dtype=COMPUTE)
    inside = (rows[:, None] < batch) & (ins[None, :] < inputs)
    tl.store(grad_x + rows[:, None] * inputs + ins[None, :], acc.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "slice_rows"])
def masked_linear_bwd_weight_kernel(
    grad,
    x,
    in_degrees,
    out_degrees,
    grad_weight,
    batch: tl.int64,
    slice_rows: tl.int64,
    inputs: tl.int32,
    outputs: tl.int32,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    P: tl.constexpr,
):
    """The gradient of one tile of the weight over one slice of the batch; zero where there is no edge."""
    COMPUTE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    outs = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM + tl.arange(0, BM)
    ins = tl.program_id(1) * BN + tl.arange(0, BN)
    out_degree = tl.load(out_degrees + outs, mask=outs < outputs, other=-(2**63) + 1)
    in_degree = tl.load(in_degrees + ins, mask=ins < inputs, other=2**63 - 1)
    begin = tl.program_id(2) * slice_rows
    end = tl.minimum(begin + slice_rows, batch)
    if tl.min(in_degree, 0) > tl.max(out_degree, 0):
        end = begin
    acc = tl.zeros((BM, BN), COMPUTE)
    for first in range(begin, end, BK):
        b = first + tl.arange(0, BK).to(tl.int64)
        g = tl.load(
            grad + b[None, :] * outputs + outs[:, None],
            mask=(b[None, :] < end) & (outs[:, None] < outputs),
            other=0.0,
        )
        xs = tl.load(
            x + b[:, None] * inputs + ins[None, :],
            mask=(b[:, None] < end) & (ins[None, :] < inputs),
            other=0.0,
        )
        acc = tl.dot(g, xs, acc, input_precision=P, out_dtype=COMPUTE)
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEED_BIAS: tl.constexpr,
):
    """grad = grad_y f'(a) of one slice of the batch, and its sum over the slice."""
    COMPUTE: tl.constexpr = sums.dtype.element_ty
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
        tl.store(sums + tl.program_id(1).to(tl.int64) * outputs + outs, total, mask=outs < outputs)


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor, in_degrees: Tensor, out_degrees: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.masked_linear.masked_linear`."""
    outputs, inputs = weight.shape
    y = x.new_empty(len(x), outputs)
    preactivation = x.new_empty(0) if activation == "identity" else torch.empty_like(y)
    if y.numel() == 0:
        return y, preactivation
    config = linear_config(x.dtype, inputs, outputs)
    tiles = triton.cdiv(outputs, config.bn)
    bounds = _reach(in_degrees, out_degrees, tiles, config.bn, True)
    launch(
        masked_linear_fwd_kernel,
        (triton.cdiv(len(x), config.bm), tiles, 1),
        (x, weight, bias, in_degrees, out_degrees, bounds, y, preactivation, len(x), inputs, outputs),
        config.warps,
        config.stages,
        **config.tile(),
        ACTIVATION=activation,
        P=precision_of(x.dtype),
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
    grad = _grad_of_preactivation(grad_y, preactivation, activation, grad_bias)
    config = linear_config(x.dtype, inputs, outputs)
    constants: dict[str, Any] = {**config.tile(), "P": precision_of(x.dtype)}
    compiled = config.warps, config.stages
    if need_x and inputs > 0:
        tiles = triton.cdiv(inputs, config.bn)
        bounds = _reach(in_degrees, out_degrees, tiles, config.bn, False)
        launch(
            masked_linear_bwd_x_kernel,
            (triton.cdiv(len(x), config.bm), tiles),
            (grad, weight, in_degrees, out_degrees, bounds, grad_x, len(x), inputs, outputs),
            *compiled,
            **constants,
        )
    if grad_weight.numel() > 0:
        tiles = triton.cdiv(outputs, config.bm), triton.cdiv(inputs, config.bn)
        slices = _slices(x, tiles[0] * tiles[1])
        target = grad_weight
        if slices > 1:
            target = x.new_empty(slices, *weight.shape, dtype=_compute(x))
        launch(
            masked_linear_bwd_weight_kernel,
            (*tiles, slices),
            (grad, x, in_degrees, out_degrees, target, len(x), triton.cdiv(len(x), slices), inputs, outputs),
            *compiled,
            **constants,
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
    sums = grad_y.new_empty(slices, outputs if need_bias else 0, dtype=_compute(grad_y))
    launch(
        masked_linear_bwd_activation_kernel,
        (tiles, slices),
        (grad_y, preactivation, grad, sums, batch, triton.cdiv(batch, slices), outputs),
        4,
        BM=32,
        BN=64,
        ACTIVATION=activation,
        NEED_BIAS=need_bias,
    )
    if need_bias:
        reduce_partials(sums, slices, [grad_bias])
    return grad


def _compute(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _slices(x: Tensor, tiles: int) -> int:
    """Parts of the batch, so that tiles and parts fill the device; parts hold at least 256 rows."""
    return min(triton.cdiv(programs(x.device, 1 << 30), tiles), triton.cdiv(len(x), 256))
