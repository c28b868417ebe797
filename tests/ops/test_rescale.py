"""rescale: every backend against the product of numbers."""

import math

import pytest
import torch
from support import backend_params

import fastcsm
from fastcsm.ops.rescale import rescale

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def gradients(*more):
    """Of several dtypes and sizes, one where no vector begins; among them what 1 must not touch."""
    torch.manual_seed(0)
    found = [torch.randn(5000), torch.randn(1).double(), torch.randn(7, 9).half(), torch.randn(4097)[1:]]
    found[0][:3] = torch.tensor([math.nan, math.inf, -0.0])
    return [*found, torch.empty(0), *more]


def scaled(gradient, upstream):
    """In the wider of float32 and the gradient's dtype, rounded once."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(wide) * upstream.to(wide)).to(gradient.dtype)


def bits(tensor):
    """All of a tensor; of NaN that it is one."""
    return torch.where(tensor.isnan(), 12345, tensor.view(BITS[tensor.element_size()]))


def check(backend, *more):
    for value in (1.0, 0.0, -2.5, 65536.0, math.nan, math.inf):
        for dtype in (torch.float32, torch.float64):
            given, upstream = gradients(*[m.clone() for m in more]), torch.tensor(value, dtype=dtype)
            expected = [bits(scaled(gradient, upstream)) for gradient in given]
            with fastcsm.backend(backend):
                rescale(given, upstream)
            assert all(map(torch.equal, map(bits, given), expected))
    with fastcsm.backend(backend):
        rescale([], torch.ones(()))


@pytest.mark.filterwarnings("ignore:(invalid value|overflow)")
@pytest.mark.parametrize("backend", backend_params("rescale", "triton"))
def test_gradients_are_scaled_in_place(backend):
    check(backend)


def test_opcheck():
    given = [gradient.nan_to_num() for gradient in gradients()]
    torch.library.opcheck(torch.ops.fastcsm.rescale.default, (given, torch.tensor(2.0)))


def check_as_compiled(backend):
    """With bfloat16, which the interpreter does not round."""
    check(backend, torch.randn(33).bfloat16())
