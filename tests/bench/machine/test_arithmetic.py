"""Single instructions of the machine against whole numbers and float64 in Python, edge cases among them."""

import math

import numpy as np
import pytest
import torch
from planted import HEAD, launch

from fastcsm.bench.machine import host

pytestmark = pytest.mark.skipif(bool(host.why_not()), reason=host.why_not())

EDGES = [0, 1, 2, 31, 32, 33, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 2, 2**16, 2**24 + 1]
ROWS = 128


def signed(x, bits=32):
    return x - 2**bits if x >> (bits - 1) & 1 else x


def run(lines, columns, results=1):
    """(ROWS, results) words: ``lines`` of PTX from %r1... (the columns, ROWS words each) to %r10...."""
    given = torch.from_numpy(np.stack(columns, 1).astype(np.uint32).view(np.int32)).contiguous()
    out = torch.zeros(ROWS, results, dtype=torch.int32)
    loads = "".join(f"ld.global.u32 %r{k + 1}, [%rd11+{4 * k}];\n" for k in range(len(columns)))
    stores = "".join(f"st.global.u32 [%rd10+{4 * k}], %r{10 + k};\n" for k in range(results))
    text = f"""{HEAD}
.visible .entry one(.param .u64 out, .param .u64 in)
{{
  .reg .pred %p<9>; .reg .b16 %rs<20>; .reg .b32 %r<40>; .reg .b64 %rd<40>;
  .reg .f32 %f<20>; .reg .f64 %fd<20>;
  ld.param.u64 %rd10, [out];
  ld.param.u64 %rd11, [in];
  mov.u32 %r30, %tid.x;
  mul.wide.u32 %rd12, %r30, {4 * len(columns)};
  add.s64 %rd11, %rd11, %rd12;
  mul.wide.u32 %rd12, %r30, {4 * results};
  add.s64 %rd10, %rd10, %rd12;
  {loads}{lines}
  {stores}ret;
}}"""
    launch(text, [out, given], threads=ROWS, orders=1)
    return out.numpy().view(np.uint32)


def words(seed):
    drawn = np.random.default_rng(seed).integers(0, 2**32, ROWS, dtype=np.uint64)
    drawn[: len(EDGES)] = EDGES
    return np.roll(drawn, 5 * seed)


def byte(a, b, k):
    return (b << 32 | a) >> 8 * k & 255


WHOLE = {
    "add.s32": lambda a, b, c: a + b,
    "add.s16x2": lambda a, b, c: (a + b & 2**16 - 1) | (a >> 16) + (b >> 16) << 16,
    "sub.u32": lambda a, b, c: a - b,
    "mul.lo.s32": lambda a, b, c: a * b,
    "mul.hi.u32": lambda a, b, c: a * b >> 32,
    "mul.hi.s32": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "min.s32": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32": lambda a, b, c: max(a, b),
    "div.s32": lambda a, b, c: int(signed(a) / signed(b)) if b else None,
    "rem.s32": lambda a, b, c: int(math.fmod(signed(a), signed(b))) if b else None,
    "div.u32": lambda a, b, c: a // b if b else None,
    "and.b32": lambda a, b, c: a & b,
    "xor.b32": lambda a, b, c: a ^ b,
    "not.b32": lambda a, b, c: ~a,
    "neg.s32": lambda a, b, c: -a,
    "abs.s32": lambda a, b, c: abs(signed(a)),
    "shl.b32": lambda a, b, c: a << b if b < 32 else 0,
    "shr.u32": lambda a, b, c: a >> min(b, 32),
    "shr.s32": lambda a, b, c: signed(a) >> min(b, 31),
    "shf.l.wrap.b32": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.r.clamp.b32": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "prmt.b32": lambda a, b, c: sum(
        (255 * (byte(a, b, c >> 4 * k & 7) >> 7) if c >> 4 * k & 8 else byte(a, b, c >> 4 * k & 7)) << 8 * k
        for k in range(4)
    ),
    "popc.b32": lambda a, b, c: a.bit_count(),
    "clz.b32": lambda a, b, c: 32 - a.bit_length(),
    "brev.b32": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "bfind.u32": lambda a, b, c: a.bit_length() - 1,
    "bfind.shiftamt.u32": lambda a, b, c: 32 - a.bit_length() if a else -1,
    "bfe.u32": lambda a, b, c: a >> (b & 255) & ((1 << (c & 255)) - 1) if b & 255 < 32 else 0,
    "lop3.b32": lambda a, b, c: (a & b) | (~a & c),
}
ONE = ("not", "neg", "abs", "popc", "clz", "brev", "bfind")
THREE = ("mad", "shf", "prmt", "bfe", "lop3")


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    columns = [words(k) for k in range(3)]
    if name.startswith(("shl", "shr")):
        columns[1] = columns[1] % 40
    if name.startswith("bfe"):
        columns[1:] = [column % 34 for column in columns[1:]]
    op = name.split(".")[0]
    operands = ["%r1", "%r2", "%r3"][: 1 if op in ONE else 3 if op in THREE else 2]
    extra = ", 0xca" if op == "lop3" else ""
    found = run(f"{name} %r10, {', '.join(operands)}{extra};", columns)[:, 0]
    for row, values in zip(found, zip(*(map(int, column) for column in columns))):
        exact = WHOLE[name](*values)
        if exact is not None:
            assert int(row) == exact % 2**32, (name, values)


def test_sums_of_64_bits_by_carries():
    columns = [words(k) for k in range(4)]
    lines = "add.cc.u32 %r10, %r1, %r3;\naddc.u32 %r11, %r2, %r4;\n"
    lines += "mad.lo.cc.u32 %r12, %r1, %r2, %r3;\nmadc.hi.u32 %r13, %r1, %r2, %r4;"
    found = run(lines, columns, 4).astype(np.uint64)
    low, high, third, fourth = (column.astype(object) for column in columns)
    both = (low + (high << 32) + third + (fourth << 32)) % 2**64
    assert (found[:, 0] + (found[:, 1] << np.uint64(32)) == both.astype(np.uint64)).all()
    product = (low * high + third + (fourth << 32)) % 2**64
    assert (found[:, 2] + (found[:, 3] << np.uint64(32)) == product.astype(np.uint64)).all()


FLOATS = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.5,
        2.5,
        3.5,
        1e-40,
        -1e-40,
        3e38,
        -3e38,
        np.inf,
        -np.inf,
        np.nan,
        0.1,
        2**31,
        -(2**31),
    ],
    np.float32,
)


def floats(seed):
    drawn = np.random.default_rng(seed).normal(size=ROWS).astype(np.float32) * np.float32(3)
    drawn[: len(FLOATS)] = FLOATS
    return np.roll(drawn, 5 * seed)


def rounded_down(x):
    y = np.float32(x)
    return np.where(y.astype(np.float64) > x, np.nextafter(y, np.float32(-np.inf)), y)


def tf32(x):
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


SINGLE = {
    "add.f32 %f10, %f1, %f2": lambda a, b, c: a + b,
    "sub.f32 %f10, %f1, %f2": lambda a, b, c: a - b,
    "mul.f32 %f10, %f1, %f2": lambda a, b, c: a * b,
    "fma.rn.f32 %f10, %f1, %f2, %f3": lambda a, b, c: a.astype(np.longdouble) * b + c,
    "div.rn.f32 %f10, %f1, %f2": lambda a, b, c: a / b,
    "sqrt.rn.f32 %f10, %f1": lambda a, b, c: np.sqrt(a),
    "min.f32 %f10, %f1, %f2": lambda a, b, c: np.fmin(a, b),
    "max.NaN.f32 %f10, %f1, %f2": lambda a, b, c: np.maximum(a, b),
    "abs.f32 %f10, %f1": lambda a, b, c: np.abs(a),
    "cvt.rni.f32.f32 %f10, %f1": lambda a, b, c: np.rint(a),
    "cvt.rmi.f32.f32 %f10, %f1": lambda a, b, c: np.floor(a),
    "cvt.sat.f32.f32 %f10, %f1": lambda a, b, c: np.where(np.isnan(a), 0, np.clip(a, 0, 1)),
    "cvt.f64.f32 %fd1, %f1; cvt.rn.f32.f64 %f10, %fd1": lambda a, b, c: a,
    "cvt.rn.bf16.f32 %rs1, %f1; cvt.f32.bf16 %f10, %rs1": lambda a, b, c: (
        torch.from_numpy(a).bfloat16().float().numpy()
    ),
    "cvt.rn.f16.f32 %rs1, %f1; cvt.f32.f16 %f10, %rs1": lambda a, b, c: a.astype(np.float16),
    "add.ftz.f32 %f10, %f1, %f2": lambda a, b, c: (
        np.where(np.abs(a) < 2**-126, 0 * a, a) + np.where(np.abs(b) < 2**-126, 0 * b, b)
    ),
    "selp.f32 %f10, %f1, %f2, %p1": lambda a, b, c: np.where(~(a < b), a, b),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_precision(name):
    a, b, c = (floats(k) for k in range(3))
    moves = "".join(f"mov.b32 %f{k}, %r{k};\n" for k in (1, 2, 3))
    lines = f"{moves}setp.geu.f32 %p1, %f1, %f2;\n{name};\nmov.b32 %r10, %f10;"
    found = run(lines, [x.view(np.uint32) for x in (a, b, c)])[:, 0].view(np.float32)
    with np.errstate(all="ignore"):
        exact = np.asarray(SINGLE[name](a, b, c)).astype(np.float32)
    np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("cvt.rzi.s32.f32", lambda x: 0 if math.isnan(x) else int(np.clip(np.trunc(x), -(2**31), 2**31 - 1))),
        ("cvt.rni.s32.f32", lambda x: 0 if math.isnan(x) else int(np.clip(np.rint(x), -(2**31), 2**31 - 1))),
        ("cvt.rzi.u32.f32", lambda x: 0 if math.isnan(x) else int(np.clip(np.trunc(x), 0, 2**32 - 1))),
    ],
)
def test_floats_to_whole_numbers(name, function):
    a = floats(0)
    found = run(f"mov.b32 %f1, %r1;\n{name} %r10, %f1;", [a.view(np.uint32)])[:, 0]
    assert [int(x) for x in found] == [function(float(x)) % 2**32 for x in a]


#: The largest error that each document states, relative (first) or absolute.
APPROXIMATE = {
    "ex2.approx.ftz.f32": (np.exp2, 2**-22, 0),
    "lg2.approx.f32": (lambda x: np.log2(np.abs(x)), 2**-22, 2**-22),
    "rcp.approx.ftz.f32": (lambda x: 1 / x, 2**-23, 0),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(np.abs(x)), 2**-22, 0),
    "sqrt.approx.f32": (lambda x: np.sqrt(np.abs(x)), 2**-23, 0),
    "sin.approx.f32": (np.sin, 0, 2**-20.5),
    "cos.approx.f32": (np.cos, 0, 2**-20.5),
    "tanh.approx.f32": (np.tanh, 2**-11, 0),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_functions_err_as_documented(name):
    """Never more than that, and more than a correctly rounded function, so that tests meet the worst."""
    function, relative, absolute = APPROXIMATE[name]
    x = np.random.default_rng(0).uniform(-3, 3, ROWS).astype(np.float32)
    if name.startswith(("lg2", "rsqrt", "sqrt")):
        x = np.abs(x)
    found = run(f"mov.b32 %f1, %r1;\n{name} %f2, %f1;\nmov.b32 %r10, %f2;", [x.view(np.uint32)])
    exact = function(x.astype(np.float64))
    error = np.abs(found[:, 0].view(np.float32) - exact)
    allowed = np.abs(exact) * relative + absolute
    rounding = 2.0**-24 * np.abs(exact)
    assert (error <= allowed + rounding).all()
    assert error.max() > 0.5 * allowed[error.argmax()]
