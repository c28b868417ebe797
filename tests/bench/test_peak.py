"""The operations that ``torch.ops.fastcsm_cpu.peak`` says it did; their rate is bench's business."""

import platform

import pytest
import torch

from fastcsm.backends import CPU

pytestmark = pytest.mark.skipif(bool(CPU().missing()), reason="needs the CPU library")
WIDEST = {"baseline": 4, "avx2": 8, "avx512": 16, "avx512_bf16": 16, "amx": 16}  # floats of a vector
PRECISIONS = ("float32", "float64", "bfloat16")


@pytest.fixture(params=WIDEST)
def isa(request):
    """Every instruction set of this processor, one after the other."""
    library = torch.ops.fastcsm_cpu
    if request.param not in library.isas():
        pytest.skip(f"this processor has no {request.param}")
    before = library.isa()
    library.set_isa(request.param)
    yield request.param
    library.set_isa(before)


def per_round(isa: str, precision: str) -> int:
    """Two a multiply-add: of every lane of every chain, or of the products of four tiles."""
    if precision == "bfloat16" and isa == "amx":
        return 2 * 4 * 16 * 16 * 32
    registers = 32 if WIDEST[isa] == 16 or platform.machine() != "x86_64" else 16
    products = 2 if precision == "bfloat16" and isa == "avx512_bf16" else 1
    return 2 * products * (registers * 3 // 4) * WIDEST[isa] // (2 if precision == "float64" else 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_operation_is_counted(isa, precision, threads):
    for workers in (1, 2):
        threads(workers)
        for rounds in (1, 1000):
            found = torch.ops.fastcsm_cpu.peak(precision, rounds)
            assert found == workers * rounds * per_round(isa, precision)


@pytest.mark.parametrize(
    ("precision", "rounds", "sentence"),
    [
        ("float16", 10, "precision must be float32, float64 or bfloat16, got 'float16'"),
        ("", 10, "precision must be float32, float64 or bfloat16, got ''"),
        ("float32", 0, "rounds must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(precision, rounds, sentence):
    with pytest.raises(ValueError, match=sentence):
        torch.ops.fastcsm_cpu.peak(precision, rounds)
