"""The instrument that runs CUDA kernels without a GPU: it reports what is wrong, and nothing else."""

import os
import subprocess

import emulation
import pytest

pytestmark = pytest.mark.skipif(bool(emulation.why_not()), reason=emulation.why_not())

FAULTS = {
    "read before write": "emulation: read before any write: 4 bytes",
    "atomic before write": "emulation: read before any write: 4 bytes",
    "divergent barrier": "emulation: barrier divergence: thread 0 waits for its block at cuda_test.cpp",
    "early return": "emulation: barrier divergence",
    "divergent shuffle": "emulation: barrier divergence",
    "race": "emulation: race of a",
    "race within a warp": "emulation: race of",
    "race in device memory": "emulation: race of two writes",
    "race of blocks": "emulation: race of a read and a write",
    "overflow of an array": "emulation: access outside of what was allotted",
    "overflow of the block": "heap-buffer-overflow",
    "overflow of a tensor": "heap-buffer-overflow",
    "misaligned vector": "misaligned address",
    "copy awaited too late": "emulation: access to where a copy is on its way",
    "copy without a barrier": "emulation: read before any write",
    "copy never awaited": "emulation: a copy that was never waited for",
    "copy onto a read": "emulation: race of",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    target = tmp_path_factory.mktemp("emulation") / "cuda_test"
    emulation.build(target, ["emulation/cuda_test.cpp"])

    def run(fault):
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run([target, fault], capture_output=True, text=True, env=environment, check=False)

    return run


def test_sound_kernels_run(program):
    done = program("none")
    assert done.returncode == 0, done.stderr
    first, last, exact, tf32, bf16, *sums = map(float, done.stdout.split())
    assert first == sum(range(1, 33))
    assert last == sum(range(33, 64))
    assert exact <= 2**-22
    assert 2**-16 < tf32 <= 2**-10
    assert 2**-13 < bf16 <= 2**-7
    # What lies below the bit that is kept is cut off, not rounded.
    assert sums == [2**23, 2**23 + 1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_reported(program, fault):
    done = program(fault)
    assert done.returncode != 0
    assert FAULTS[fault] in done.stderr, done.stderr[:2000]
    assert ("device memory" in done.stderr) == (fault in ("race in device memory", "race of blocks"))
