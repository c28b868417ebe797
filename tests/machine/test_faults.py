"""The machine reports what is wrong, where: sound kernels with one fault planted in each."""

import struct

import numpy as np
import planted
import pytest
import torch
from machine import host

pytestmark = pytest.mark.skipif(bool(host.why_not()), reason=host.why_not())


def launch(text, tensors, *numbers, grid=1, threads=64, architecture=90, orders=2):
    """Run the only kernel of ``text`` with the tensors' addresses, then 8-byte ``numbers``, as parameters."""
    module = host.load(text)
    (name,) = module.kernels
    values = struct.pack(f"<{len(tensors)}Q", *(t.data_ptr() for t in tensors))
    values += struct.pack(f"<{len(numbers)}q", *numbers)
    ranges = [
        host.Range(f"tensor {k}", t.data_ptr(), t.numel() * t.element_size()) for k, t in enumerate(tensors)
    ]
    return host.launch(
        module, name, (grid,), threads, 0, values, ranges, architecture=architecture, orders=orders
    )


def passing(text=planted.PASSING, rows=128):
    out, given = torch.full((128,), -1, dtype=torch.int32), torch.arange(100, 228, dtype=torch.int32)
    report = launch(text, [out[:rows], given[:rows]], rows, grid=2)
    return out, given, report


def test_a_sound_kernel_runs():
    out, given, report = passing()
    number, blocks = torch.arange(64), given.reshape(2, 64).long()
    mine = (number + 1) % 64 + blocks[:, (number + 1) % 64]
    crossed = mine ^ mine[:, number ^ 1]
    assert torch.equal(out.reshape(2, 64).long(), crossed[:, (number + 1) % 64])
    assert report.counts["kinds"]["barrier"] == 2 * 2 * 3
    assert report.counts["shared_wavefronts"] == report.counts["shared_least"] == 2 * 2 * 6
    assert report.counts["bytes_written"] == 2 * 64 * 4
    assert report.counts["global_sectors"] == report.counts["global_least"] == 2 * 2 * 8
    assert report.counts["duplicates"] == report.counts["dead_reads"] == 0


BARRIER = "  bar.sync 0;\n"
#: (text to replace, what by, which occurrence): the fault's sentence, the line it names.
FAULTS = {
    "guard of a read": (
        "selp.b32 %r21, 4, 0, %p1",
        "mov.u32 %r21, 4",
        0,
        "a read of device memory out of bounds",
        20,
    ),
    "guard of a write": ("@%p1 st.global", "st.global", 0, "a write to device memory out of bounds", 50),
    "stride of a tensor": (
        "mul.wide.s32 %rd3, %r4, 4",
        "mul.wide.s32 %rd3, %r4, 8",
        0,
        "of tensor 1, which has 512",
        20,
    ),
    "misaligned write": ("[%rd5], %r19", "[%rd5+2], %r19", 0, "misaligned: 4 bytes", 50),
    "misaligned vector": (
        "ld.shared.u32 %r15, [%r10]",
        "ld.shared.v2.u32 {%r15, %r20}, [%r10]",
        0,
        "misaligned: 8 bytes",
        30,
    ),
    "misaligned copy": ("[%r12], [%rd4], 4", "[%r12+2], [%rd4], 4", 0, "misaligned: 4 bytes", 20),
    "shared memory overrun": (
        "st.shared.u32 [%r7], %r2",
        "st.shared.u32 [%r7+512], %r2",
        0,
        "shared memory out of bounds",
        20,
    ),
    "read before write": (
        "st.shared.u32 [%r7], %r2;",
        "",
        0,
        "shared memory read before it was written",
        30,
    ),
    "no barrier after writes": (BARRIER, "", 0, "race: a read of shared memory", 30),
    "no barrier after reads": (BARRIER, "", 1, "race: a write to shared memory with no barrier after", 40),
    "no barrier in a warp": (BARRIER, "  bar.warp.sync -1;\n", 2, "race: a read of shared memory", 50),
    "two writes of different values": (
        "st.shared.u32 [%r7], %r18",
        "st.shared.u32 [%r6], %r18",
        0,
        "no barrier after another's write",
        40,
    ),
    "divergent barrier": (BARRIER, "  @%p2 bar.sync 0;\n", 1, "predicate is false for lanes", 40),
    "barrier that lanes have left": (BARRIER, "  @%p2 ret;\n" + BARRIER, 1, "have left before", 40),
    "barrier that a warp never reaches": (
        BARRIER,
        "  setp.lt.u32 %p3, %r2, 32;\n  @%p3 ret;\n" + BARRIER,
        1,
        "the block's warps never meet at barrier 0",
        40,
    ),
    "lanes that part and never meet": (
        BARRIER,
        "  @%p2 bra $L_else;\n  bar.sync 0;\n  bra $L_end;\n$L_else:\n  bar.sync 0;\n$L_end:\n",
        1,
        "lanes that must meet at this instruction never do",
        40,
    ),
    "shuffle with lanes missing": ("  shfl.sync", "  @%p2 shfl.sync", 0, "predicate is false for lanes", 40),
    "shuffle from a lane outside": (
        "shfl.sync.bfly.b32 %r18, %r17, 1, 31, -1",
        "@%p2 shfl.sync.bfly.b32 %r18, %r17, 16, 31, 65535",
        0,
        "a shuffle from lane 16, which takes no part",
        40,
    ),
    "copy used before it was waited for": (
        "cp.async.wait_group 0;",
        "",
        0,
        "whose asynchronous copy was not waited for",
        30,
    ),
    "too many copies may be on their way": (
        "cp.async.wait_group 0",
        "cp.async.wait_group 1",
        0,
        "whose asynchronous copy was not waited for",
        30,
    ),
    "copy awaited after the barrier": (
        "  cp.async.wait_group 0;\n" + BARRIER,
        BARRIER + "  cp.async.wait_group 0;\n",
        0,
        "race: a read of shared memory",
        30,
    ),
    "copy that is never awaited": (
        "  ret;",
        "  cp.async.ca.shared.global [%r12], [%rd4], 4;\n  ret;",
        0,
        "a copy that was never waited for",
        50,
    ),
    "copy onto what is being read": (
        "  ld.shared.u32 %r16, [%r13];",
        "  ld.shared.u32 %r16, [%r13];\n  cp.async.ca.shared.global [%r7], [%rd4], 4;\n  cp.async.wait_all;",
        0,
        "race: a write to shared memory with no barrier after another's read",
        30,
    ),
    "two writes of threads to a tensor": (
        "[%rd5], %r19",
        "[%rd1], %r19",
        0,
        "race: two writes to device memory",
        50,
    ),
    "a tensor another block writes": (
        "  ld.shared.u32 %r19, [%r10];",
        "  ld.global.u32 %r20, [%rd1];\n  ld.shared.u32 %r19, [%r10];\n  add.s32 %r19, %r19, %r20;",
        0,
        "of device memory",
        50,
    ),
    "stack overrun": ("st.local.u32 [stack]", "st.local.u32 [stack+16]", 0, "the stack is overrun", 30),
    "parameters overrun": ("[n]", "[n+16]", 0, "parameters are overrun", 10),
    "order of blocks matters": (
        "@%p1 st.global.u32 [%rd5], %r19",
        "atom.global.exch.b32 %r20, [%rd1], %r4",
        0,
        "another order of warps and blocks gives other bits",
        None,
    ),
    "a loop that never ends": (
        "  ret;",
        "$L_again:\n  bra $L_again;",
        0,
        "still running after",
        50,
    ),
    "an instruction that the machine lacks": (
        "shfl.sync.bfly.b32 %r18, %r17, 1, 31, -1",
        "match.any.sync.b32 %r18, %r17, -1",
        0,
        "unknown instruction: match.any.sync.b32",
        40,
    ),
}


def plant(text, old, new, which=0):
    parts = text.split(old)
    assert len(parts) > which + 1, old
    return old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :])


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_reported(name, monkeypatch):
    old, new, which, sentence, line = FAULTS[name]
    monkeypatch.setattr(host, "LIMIT", 100_000)
    text = plant(planted.PASSING, old, new, which)
    with pytest.raises(host.Fault, match="kernel passing") as caught:
        passing(text, rows=100 if name.startswith("guard") else 128)
    found = [fault for fault in caught.value.faults if sentence in fault]
    assert found, caught.value
    if line:
        assert f"planted.cu:{line}:1" in found[0]
    if line and "unknown" not in sentence:
        assert ", lane " in found[0]


def test_an_access_belongs_to_the_tensor_of_its_address():
    """Not to a neighbour in memory, of which it would stay within bounds."""
    both = torch.arange(256, dtype=torch.int32)
    launch(planted.PASSING, [both[:128], both[128:]], 128, grid=2)
    text = plant(planted.PASSING, "[%rd4], 4", "[%rd4+-512], 4")
    with pytest.raises(
        host.Fault, match=r"was made from the address of tensor 1: kernel passing, planted.cu:20:1"
    ):
        launch(text, [both[:128], both[128:]], 128, grid=2)


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


def handing(text=planted.HANDING):
    out = torch.zeros(32, dtype=torch.int32)
    launch(text, [out], orders=4)
    return out


def test_warps_meet_at_memory_barriers():
    assert torch.equal(handing(), 2 * torch.arange(32, dtype=torch.int32) + 1)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "mbarrier.try_wait.parity.shared.b64 %p3, [%r5], %r7;",
            "setp.eq.u32 %p3, %r1, %r1;",
            "shared memory read before it was written",
        ),
        (
            "mbarrier.try_wait.parity.shared.b64 %p3, [%r6], %r7;",
            "setp.eq.u32 %p3, %r1, %r1;",
            "still running after",
        ),
        ("@%p1 mbarrier.init.shared.b64 [%r6], 32;", "", "an mbarrier that was not initialised"),
        ("[%r6], 32", "[%r6], 33", "still running after"),
    ],
)
def test_a_fault_around_memory_barriers_is_reported(old, new, sentence, monkeypatch):
    monkeypatch.setattr(host, "LIMIT", 10_000)
    with pytest.raises(host.Fault, match="kernel handing") as caught:
        handing(plant(planted.HANDING, old, new))
    assert sentence in str(caught.value)
