"""How Triton's kernels are launched: shapes, addresses, replays, limits; run as triton_kernels.py."""

import mmap
import re
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
import triton_kernels
from densities import Restoring
from support import Case, bitwise_equal, split
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.errors import OutOfResources
from triton_kernels import ALL, BACKEND, chain

import fastcsm
from fastcsm import backends, functional
from fastcsm.bench.machine import host, triton_jit
from fastcsm.kernels import (
    conditional_density,
    csm_loss,
    langevin,
    launch,
    masked_linear,
    probability_flow,
    score_head,
)

machine = triton_kernels.machine  # the fixture
HEAD = {"context": 5, "hidden": (9,), "frequencies": 0}


@contextmanager
def compiled():
    """The names of the kernels that are compiled inside the ``with`` block."""
    names, before = [], triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda *, fn, **_: names.append(fn.name)
    try:
        yield names
    finally:
        triton.knobs.runtime.jit_post_compile_hook = before


def loss(case):
    """csm_loss and its gradients."""
    head = case.context, case.x, case.weights, case.biases, case.frequencies, case.activation
    results = csm_loss.csm_loss(*head, case.alpha, case.beta, case.gamma, True, True, True)
    return dict(enumerate(tree_leaves(results)))


def shifted(tensor, by=1):
    """The same numbers ``by`` elements into a storage, so that they are less aligned."""
    return torch.cat([tensor.new_full((by,), torch.nan), tensor.flatten()])[by:].view(tensor.shape)


def mapped(case, change):
    """A case whose tensors are changed."""
    other = case.to(case.x.dtype)
    for name, value in vars(other).items():
        if isinstance(value, torch.Tensor):
            setattr(other, name, change(value))
        elif name in ("weights", "biases"):
            setattr(other, name, [change(v) for v in value])
    return other


def test_other_rows_compile_nothing():
    """Coefficients of one number for all rows are other code than those of each row, and those of one row."""

    def run(rows, numbers):
        case = Case(rows=rows, **HEAD).to(torch.bfloat16)
        if numbers:
            case.alpha, case.beta, case.gamma = (c[:1] for c in (case.alpha, case.beta, case.gamma))
        loss(case)

    for numbers in (False, True):
        run(65, numbers)
    with compiled() as names:
        for rows in (1, 16, 64, 130):
            run(rows, False)
            run(rows, True)
    assert names == []


def test_another_u0_compiles_nothing():
    case = Case(rows=17, **HEAD).to(torch.bfloat16)
    with fastcsm.backend(BACKEND):
        first = chain(case, squash=3.0)
        with compiled() as names:
            other = chain(case, squash=0.5)
    assert names == []
    assert not bitwise_equal(first, other)


def test_where_tensors_begin_changes_nothing():
    case = Case(rows=65, **HEAD).to(torch.bfloat16)
    expected = loss(case)
    assert bitwise_equal(loss(mapped(case, shifted)), expected)


def test_layouts_change_nothing():
    """Transposed, expanded and strided arguments of the public functions."""
    case = Case(rows=9, **HEAD).to(torch.bfloat16)
    case.x = case.x[:1].expand(9)

    def scores(case):
        with fastcsm.backend(BACKEND):
            head = {"activation": case.activation, "frequencies": case.frequencies}
            return dict(enumerate(functional.score_head(*split(vars_of(case)), **head)))

    expected = scores(mapped(case, torch.Tensor.contiguous))
    assert bitwise_equal(scores(case), expected)
    case.context = case.context.t().contiguous().t()
    case.weights = [w.repeat_interleave(2, 1)[:, ::2] for w in case.weights]
    assert bitwise_equal(scores(case), expected)


def vars_of(case):
    """Case.leaves() with the strides they have."""
    named = {"context": case.context, "x": case.x}
    named |= {f"weights[{k}]": w for k, w in enumerate(case.weights)}
    return named | {f"biases[{k}]": b for k, b in enumerate(case.biases)}


class Graph(TorchDispatchMode):
    """What a CUDA graph keeps of a call: the launches and torch's own kernels, with the memory they had."""

    def __init__(self):
        super().__init__()
        self.nodes = []

    def __enter__(self):
        self.launches = triton_jit.launches_to(lambda one: self.nodes.append(one.run))
        self.launches.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self.launches.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if "empty" not in func.name():
            self.nodes.append(partial(self.again, func, args, kwargs, out))
        return out

    @staticmethod
    def again(func, args, kwargs, out):
        for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs))):
            if isinstance(old, torch.Tensor):
                old.copy_(new)

    def replay(self):
        for node in self.nodes:
            node()


def layer(x, weight, bias):
    """A masked layer's output and its gradients, of an upstream gradient that is the output."""
    degrees = torch.arange(weight.shape[1]), torch.arange(weight.shape[0])
    y, a = masked_linear.masked_linear(x, weight, bias, *degrees, "silu")
    rest = masked_linear.masked_linear_backward(y, a, x, weight, *degrees, "silu", True, True, True)
    return dict(enumerate((y, *rest)))


def test_a_layer_compiles_once():
    """Other numbers of rows, and tensors that begin elsewhere, take the code that is there."""
    tensors = [torch.randn(shape).bfloat16() for shape in ((40, 20), (30, 20), (30,))]
    expected = layer(*tensors)
    with compiled() as names:
        assert bitwise_equal(layer(*map(shifted, tensors)), expected)
        layer(tensors[0][:17], *tensors[1:])
    assert names == []


def flow(case):
    head = case.context[:, 1:].contiguous(), case.x, case.weights, case.biases, case.frequencies
    return dict(enumerate(probability_flow.probability_flow(*head, "silu", 0.5, 0.6, 1e-2, True, 0.0)))


def replayed(call, *tensors):
    """A captured call, replayed with other numbers in the same memory, gives what an eager call gives."""
    call()  # as before any capture: what is made once is made
    with Graph() as graph:
        results = call()
    for tensor in tensors:
        tensor.copy_(tensor.flatten().flip(0).view(tensor.shape))
    for _ in range(2):
        graph.replay()
        assert bitwise_equal({k: v.clone() for k, v in results.items()}, call())


@pytest.mark.parametrize("op", ["csm_loss", "masked_linear", *(["flow", "langevin"] if ALL else [])])
def test_a_replay_is_an_eager_call(op):
    case = Case(rows=65, **HEAD).to(torch.bfloat16)
    given = case.context, case.x, *case.weights, case.alpha
    if op == "csm_loss":
        replayed(lambda: loss(case), *given)
    elif op == "masked_linear":
        tensors = [torch.randn(40, 20), torch.randn(30, 20), torch.randn(30)]
        tensors = [tensor.to(torch.bfloat16) for tensor in tensors]
        replayed(lambda: layer(*tensors), *tensors)
    elif op == "flow":
        replayed(lambda: flow(case), *given)
    else:
        with fastcsm.backend(BACKEND):
            replayed(lambda: chain(case), *given)


def alone(one, block):
    """One block of a launch, whose others are left out."""
    ptx = one.ptx
    for axis, at, size in zip("xyz", block, one.grid):
        ptx = re.sub(rf"%ctaid\.{axis}\b", str(at), ptx)
        ptx = re.sub(rf"%nctaid\.{axis}\b", str(size), ptx)
    return one._replace(ptx=ptx, grid=(1, 1, 1)).run()


def only_last_block(one):
    if not one.kernel.startswith("reduce"):
        alone(one, [size - 1 for size in one.grid])


FAR = 2**31 + 77
LAST = 13  # rows of the last tile


def untouched(rows, like):
    """Memory for ``rows`` of a tensor's, that exists only where it is written."""
    size = rows * like[0].numel() * like.element_size()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # NORESERVE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=like.dtype).view(rows, *like.shape[1:])


def far(tensor, rows=FAR):
    """``rows`` rows, zeros that nothing touches but for the last."""
    whole = untouched(rows, tensor)
    whole[-LAST:] = tensor[-LAST:]
    return whole


@pytest.fixture
def tile_by_tile(monkeypatch):
    """As many programs as there are tiles or rows."""
    monkeypatch.setattr(launch, "INTERPRETED_PROGRAMS", 1 << 40)
    monkeypatch.setattr(conditional_density, "MOST_PROGRAMS", 1 << 40)


def _far_head(op, rows):
    """The last rows of an op's first results: of few rows, and of the last programs of many."""
    make = partial(Restoring, steepness=2.0) if op == "conditional_density" else Case
    case = make(rows=LAST, context=3, hidden=(9,), frequencies=0).to(torch.bfloat16)
    rest = case.weights, case.biases, case.frequencies, case.activation
    samples = torch.arange(LAST)

    def run(change):
        context, x = change(case.context), change(case.x)
        given = change(case.context[:, 1:].contiguous())
        if op == "score_head":
            return score_head.score_head(context, x, *rest)
        if op == "langevin":
            noise = 1, 3, change(samples), change(samples), 1
            return [langevin.langevin(context, x, *rest, [0.1], [1.0], [], *noise, 0.0)]
        if op == "probability_flow":
            return probability_flow.probability_flow(given, x, *rest, 0.5, 0.51, 1e-2, True, 0.0)
        return conditional_density.conditional_density(
            context, x, *rest, 1.0, [], -1.0, 1.0, 0.1, 2, 0.0, False
        )

    expected = run(lambda tensor: tensor)
    with triton_jit.launches_to(only_last_block):
        return expected, run(partial(far, rows=rows))


# Where a program has one row, rows are numbered in 32 bits, and elements of a row make the difference.
FAR_ROWS = {"score_head": FAR, "langevin": FAR, "probability_flow": FAR, "conditional_density": 2**30 + 77}


@pytest.mark.parametrize("op", FAR_ROWS if ALL else ["score_head"])
def test_rows_beyond_32_bits(tile_by_tile, op):
    """The last program's addresses are gigabytes beyond the first row's."""
    expected, got = _far_head(op, FAR_ROWS[op])
    last = 1 if op == "conditional_density" else LAST
    for result, value in zip(got, expected):
        assert bitwise_equal({"": result[-last:]}, {"": value[-last:]})


def test_a_layer_beyond_32_bits(tile_by_tile):
    rows, degrees = 2**30 + 77, (torch.zeros(3).long(), torch.ones(3).long())
    x, weight, bias = (torch.randn(shape).bfloat16() for shape in ((LAST, 3), (3, 3), (3,)))
    y, a = masked_linear.masked_linear(x, weight, bias, *degrees, "silu")
    grad_x = masked_linear.masked_linear_backward(y, a, x, weight, *degrees, "silu", True, True, True)[0]
    x = far(x, rows)
    with triton_jit.launches_to(only_last_block):
        far_y, _ = masked_linear.masked_linear(x, weight, bias, *degrees, "silu")
        assert torch.equal(far_y[-LAST:], y)
        given = far(y, rows), far(a, rows), x, weight, *degrees, "silu"
        far_grad = masked_linear.masked_linear_backward(*given, True, True, True)[0]
    assert torch.equal(far_grad[-LAST:], grad_x)


def test_gradients_beyond_32_bits(tile_by_tile, monkeypatch):
    """So too where every program sums gradients of its own, in memory of its own."""
    monkeypatch.setattr(launch, "PARTIAL_BYTES", 1 << 60)
    case = Case(rows=LAST, context=2, hidden=(13,), frequencies=0).to(torch.bfloat16)
    rest = case.weights, case.biases, case.frequencies, case.activation, *[torch.ones(1)] * 3
    expected = csm_loss.csm_loss(case.context, case.x, *rest, True, True, True)
    partials = []

    def run(one):
        only_last_block(one)
        partials.append(one.tensors)

    with triton_jit.launches_to(run):
        got = csm_loss.csm_loss(far(case.context), far(case.x), *rest, True, True, True)
    for result, value in zip(tree_leaves(got)[1:3], tree_leaves(expected)[1:3]):
        assert torch.equal(result[-LAST:], value)
    begin = launch.offsets([*case.weights, *case.biases])
    size = begin[-1] + launch.ALIGNED
    assert size * (FAR // 64) > 2**31
    slice_of_last = next(t for t in partials[0] if t.numel() == size * (FAR // 64 + 1))[-size:]
    for first, value in zip(begin, tree_leaves(expected)[3:]):
        found = slice_of_last[first : first + value.numel()]
        torch.testing.assert_close(found.bfloat16(), value.flatten())


def test_a_program_that_does_not_fit_is_refused():
    """Two operands of 8 KiB for each of the steps that are on their way."""
    x, y = torch.zeros(64, 2048, dtype=torch.bfloat16), torch.zeros(64, 64)
    with triton_jit.launches_to(lambda one: None):
        product[(1,)](x, x, y, 2048, SIZE=64, num_stages=4, enable_fp_fusion=True)
    with pytest.raises(OutOfResources, match="shared memory"):
        product[(1,)](x, x, y, 2048, SIZE=64, num_stages=20, enable_fp_fusion=True)


@triton.jit
def product(x, w, y, n, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(0, n, SIZE):
        total += tl.dot(tl.load(x + i * n + k + j), tl.load(w + j * n + k + i))
    tl.store(y + i * SIZE + j, total)


@triton.jit
def shift(x, y, options):
    tl.store(y, tl.load(x + options))


@triton.jit
def beyond(x, y, n):
    i = tl.arange(0, 32)
    tl.store(y + i, tl.load(x + i), mask=i < n)


def test_a_parameter_of_a_reserved_name_is_refused():
    with pytest.raises(SyntaxError, match="options"):
        shift[(1,)](torch.zeros(4), torch.zeros(4), 2, enable_fp_fusion=True)


def test_a_read_beyond_a_tensor_is_a_fault():
    with pytest.raises(host.Fault, match="beyond"):
        beyond[(1,)](torch.zeros(31), torch.zeros(31), 31, enable_fp_fusion=True)


def test_chosen_by_name_only():
    request = backends.Request("cpu", torch.float16, (8, 1))
    assert backends.select("score_head", request).__module__ != "fastcsm.kernels.score_head"
