"""The machine reports what is wrong, where: sound kernels with one fault planted in each."""

import planted
import pytest
import torch
from planted import BARRIER, launch, plant

from fastcsm.bench.machine import host

pytestmark = pytest.mark.skipif(bool(host.why_not()), reason=host.why_not())


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
