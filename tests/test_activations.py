import pytest
import torch
from torch import nn

from fastcsm import activations
from fastcsm.activations import ACTIVATIONS

GRID = torch.linspace(-30, 30, 2001, dtype=torch.float64)
TORCH = {
    "softplus": nn.Softplus(threshold=100),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(approximate="tanh"),
    "elu": nn.ELU(),
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_functions_are_those_of_torch(name):
    a = GRID.clone().requires_grad_()
    entry = activations.get(name)
    f = TORCH[name](a)
    (df,) = torch.autograd.grad(f.sum(), a, create_graph=True)
    (d2f,) = torch.autograd.grad(df.sum(), a, materialize_grads=True, allow_unused=True)
    for got, expected in ((entry.f(a), f), (entry.df(a), df), (entry.d2f(a), d2f)):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_autograd_of_each_function_is_the_next(name):
    a = GRID.clone().requires_grad_()
    entry = activations.get(name)
    for function, derivative in ((entry.f, entry.df), (entry.df, entry.d2f)):
        value = function(a)
        expected = torch.zeros_like(a)
        if value.requires_grad:
            (expected,) = torch.autograd.grad(value.sum(), a)
        torch.testing.assert_close(derivative(a), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_finite_everywhere_in_every_dtype(name, dtype):
    top = 6e4 if dtype is torch.float16 else 1e18
    a = torch.tensor([0.0, -0.0, 1e-6, 1.0, 20.0, 21.0, 88.0, 100.0, 710.0, 3e3, top], dtype=dtype)
    a = torch.cat([a, -a])
    for function in (ACTIVATIONS[name].f, ACTIVATIONS[name].df, ACTIVATIONS[name].d2f):
        value = function(a)
        assert value.dtype == dtype
        assert value.isfinite().all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_is_kept(name):
    nan = torch.tensor([float("nan")])
    assert ACTIVATIONS[name].f(nan).isnan()


def test_codes_are_the_compiled_backends_order():
    assert [(entry.name, entry.code) for entry in ACTIVATIONS.values()] == [
        ("softplus", 0),
        ("tanh", 1),
        ("silu", 2),
        ("gelu", 3),
        ("elu", 4),
        ("relu", 5),
        ("sigmoid", 6),
    ]


@pytest.mark.parametrize("name", ["swish", "", None, 3, ["silu"]])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=r"activation must be one of softplus, tanh, .*, got"):
        activations.get(name)
