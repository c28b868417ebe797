"""The machine's matrix units: what they read and add up, and faults planted around them."""

import numpy as np
import planted
import pytest
import torch
from planted import BARRIER, launch, plant

from fastcsm.bench.machine import host

pytestmark = pytest.mark.skipif(bool(host.why_not()), reason=host.why_not())


def swizzled(matrix, width):
    """(R, 16) halves as wgmma reads rows of 32 bytes by a descriptor with a swizzle of ``width`` bytes."""
    rows = len(matrix)
    memory = np.zeros(rows * width // 2, np.uint16)
    for r in range(rows):
        for k in range(16):
            at = r // 8 * 8 * width + r % 8 * width + 2 * k
            at ^= (at >> 7 & (width // 16 - 1)) << 4 if width > 16 else 0
            memory[at // 2] = matrix[r, k]
    return memory


def halves(matrix):
    return matrix.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


MODES = {128: 1, 64: 2, 32: 3}


def product(text=planted.PRODUCT, width=128, said=None):
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-8, 9, (64, 16), generator=generator).float()
    b = torch.randint(-8, 9, (8, 16), generator=generator).float()
    memory = np.zeros(8192, np.uint16)
    for at, matrix in ((0, a), (4096, b)):
        laid = swizzled(halves(matrix), width)
        memory[at : at + len(laid)] = laid
    mode = MODES[said or width]
    descriptors = [
        start >> 4 | 1 << 16 | (8 * width >> 4) << 32 | (mode if mode < 2 else mode - 4) << 62
        for start in (0, 8192)
    ]
    out = torch.zeros(128, 4)
    launch(text, [out, torch.from_numpy(memory.view(np.int16))], *descriptors, threads=128)
    lane, k = torch.arange(128)[:, None], torch.arange(4)
    d = torch.empty(64, 8)
    d[16 * (lane // 32) + lane % 32 // 4 + 8 * (k // 2), 2 * (lane % 4) + k % 2] = out
    return d, a @ b.t()


@pytest.mark.parametrize("width", MODES)
def test_wgmma_reads_swizzled_operands(width):
    found, exact = product(width=width)
    assert torch.equal(found, exact)


def test_a_wrong_swizzle_shows():
    found, exact = product(width=128, said=64)
    assert not torch.equal(found, exact)


PRODUCT_FAULTS = {
    "accumulator used too early": (
        "  wgmma.wait_group.sync.aligned 0;\n",
        "",
        "a register that wgmma writes is used before",
    ),
    "too many groups may be on their way": (
        "wait_group.sync.aligned 0",
        "wait_group.sync.aligned 1",
        "a register that wgmma writes is used before",
    ),
    "no proxy fence": ("  fence.proxy.async.shared::cta;\n", "", "with no fence.proxy.async since"),
    "no fence of registers": ("  wgmma.fence.sync.aligned;\n", "", "wgmma with no wgmma.fence"),
    "no barrier before": (BARRIER, "", "shared memory read before it was written"),
    "operand written while it is read": (
        "  wgmma.wait_group",
        "  st.shared.u32 [operands+8192], %r4;\n  wgmma.wait_group",
        "with no barrier after another's",
    ),
    "operand written before it was waited for": (
        "  wgmma.wait_group",
        f"{BARRIER}  st.shared.u32 [operands+8192], %r4;\n{BARRIER}  wgmma.wait_group",
        "changed before wgmma.wait_group",
    ),
    "never awaited": (
        "  wgmma.wait_group.sync.aligned 0;\n  .loc 1 140 1",
        "  ret;\n  .loc 1 140 1",
        "a wgmma that was never waited for",
    ),
    "a warp of four": (
        "  wgmma.fence",
        "  setp.lt.s32 %p3, %r1, 16;\n  @%p3 ret;\n  wgmma.fence",
        "have left before",
    ),
    "operand out of bounds": ("[a];", "[a];\n  add.s64 %rd3, %rd3, 1000;", "shared memory out of bounds"),
}


@pytest.mark.parametrize("name", PRODUCT_FAULTS)
def test_a_fault_around_wgmma_is_reported(name):
    old, new, sentence = PRODUCT_FAULTS[name]
    with pytest.raises(host.Fault, match="kernel product") as caught:
        product(plant(planted.PRODUCT, old, new))
    assert any(sentence in fault for fault in caught.value.faults), caught.value


def fragments(text=planted.FRAGMENTS, a=None, b=None, architecture=80):
    generator = torch.Generator().manual_seed(0)
    if a is None:
        a = torch.randint(-8, 9, (16, 16), generator=generator).float()
        b = torch.randint(-8, 9, (16, 8), generator=generator).float()
    memory = np.concatenate([halves(a).ravel(), halves(b).ravel(), np.zeros(128, np.uint16)])
    out = torch.zeros(32, 4)
    given = torch.from_numpy(memory.view(np.int16))
    launch(text, [out, given], threads=32, architecture=architecture)
    lane, k = torch.arange(32)[:, None], torch.arange(4)
    d = torch.empty(16, 8)
    d[lane // 4 + 8 * (k // 2), 2 * (lane % 4) + k % 2] = out
    return d, a @ b


def test_fragments_of_mma():
    found, exact = fragments()
    assert torch.equal(found, exact)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{%r12, %r13, %r14, %r15}, {%r16", "{%r12, %r14, %r13, %r15}, {%r16"),
        ("{%r16, %r17}, {%f5", "{%r17, %r16}, {%f5"),
        (".x2.trans", ".x2"),
        ("shl.b32 %r9, %r9, 5", "shl.b32 %r9, %r9, 4"),
    ],
)
def test_a_wrong_fragment_shows(old, new):
    found, exact = fragments(plant(planted.FRAGMENTS, old, new))
    assert not torch.equal(found, exact)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[%r9];", "[%r9+8];", "misaligned: a matrix's row"),
        ("  ldmatrix", "  setp.lt.s32 p, %r1, 8;\n  @p ldmatrix", "predicate is false for lanes"),
        ("  bar.warp.sync -1;\n", "", "race: a read of shared memory"),
    ],
)
def test_a_fault_around_ldmatrix_is_reported(old, new, sentence):
    text = plant(planted.FRAGMENTS, old, new).replace(".reg .b32 %r<40>;", ".reg .b32 %r<40>;\n.reg .pred p;")
    with pytest.raises(host.Fault, match="kernel fragments") as caught:
        fragments(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("architecture", "kept"), [(80, 2**-1), (90, 2**-2)])
def test_tensor_cores_truncate(architecture, kept):
    """2^23 and fractions: what lies below the bits that are kept is cut off, not rounded."""
    a, b = torch.zeros(16, 16), torch.zeros(16, 8)
    a[:, 0], b[0] = 2.0**12, 2.0**11
    a[:, 1], b[1] = 1.0, 2 * kept - 2**-6
    found, _ = fragments(a=a, b=b, architecture=architecture)
    assert (found == 2**23).all()
    a[:, 1], b[1] = 1.0, 1.984375
    found, _ = fragments(a=a, b=b, architecture=architecture)
    assert (found == 2**23 + 1).all()
