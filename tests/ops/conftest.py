import pytest
import torch


@pytest.fixture
def isa(request):
    """The instruction set of the CPU library that the test is parametrised with (indirectly)."""
    library = torch.ops.fastcsm_cpu
    before = library.isa()
    library.set_isa(request.param)
    assert library.isa() == request.param
    yield request.param
    library.set_isa(before)


@pytest.fixture
def precision():
    """Sets the precision of float32 matrix products; the one before is restored after the test."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)
