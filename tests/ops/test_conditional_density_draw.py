"""conditional_density_draw: what a backend's parts make of it, and the CPU's, against the reference."""

import pytest
import torch
from densities import Restoring
from support import backend_params

import fastcsm
from fastcsm import backends
from fastcsm.functional import Draw, Head, Interval, Network, conditional_density_draw
from fastcsm.nn import MADE


class Parts(backends.Reference):
    """The reference's ops without its draws, which are composed of them."""

    name = "parts"

    def refuses(self, op, request):
        return [f"it has no {op}"] if op.endswith("_draw") else super().refuses(op, request)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    backends.register(Parts())
    yield
    del backends.registry.known["parts"]


COMPILED = backend_params("conditional_density_draw")[1:]


ORDER = [2, 0, 3, 1]
X = torch.linspace(-1, 1, 28, dtype=torch.float64).view(7, 4)


def draw(backend, dtype, sigmas, order=ORDER, residual=False, x=X, **which):
    torch.manual_seed(0)
    made = MADE(4, (11, 11, 11), 5, order=order, activation="tanh", residual=residual)
    layers = [*made.layers, made.output]
    case = Restoring(rows=1, context=5 + (len(sigmas) > 0), hidden=(9, 6)).to(dtype)
    network = Network(
        [layer.weight.detach().to(dtype) for layer in layers],
        [layer.bias.detach().to(dtype) for layer in layers],
        [layer.out_degrees for layer in layers[:-1]],
        order,
        "tanh",
        residual,
    )
    head = Head(case.weights, case.biases, case.frequencies, case.activation)
    which = {"seed": 2**63 + 1, "samples": torch.arange(3, 10), "denoise": 0.01} | which
    with fastcsm.backend(backend):
        return conditional_density_draw(
            x.to(dtype),
            head,
            network,
            Interval(-1.0, 1.0, 1e-6),
            sigmas=sigmas,
            flow_tolerance=1e-6,
            draw=Draw(**which),
        )


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("sigmas", [(), (0.3,), (0.3, 0.1)])
@pytest.mark.parametrize("backend", ["parts", *COMPILED])
def test_same_draw_as_the_reference(backend, sigmas, residual):
    got, exact = (draw(name, torch.float64, sigmas, residual=residual) for name in (backend, "reference"))
    for value, expected in zip(got, exact, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
    assert not torch.equal(*got)


@pytest.mark.parametrize("backend", ["reference", "parts", *COMPILED])
def test_in_parts_it_is_the_same_draw(backend):
    whole, clean = draw(backend, torch.float64, (0.3,))
    x, cleaned = torch.full_like(X, torch.nan), torch.zeros_like(X)
    for first, last in ((0, 1), (1, 1), (1, 4)):
        x, part = draw(backend, torch.float64, (0.3,), x=x, first=first, last=last)
        cleaned[:, ORDER[first:last]] = part[:, ORDER[first:last]]
    torch.testing.assert_close(x, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(cleaned, clean, rtol=0, atol=1e-12)
    given = draw(backend, torch.float64, (), x=X, first=2, denoise=0.0)
    assert torch.equal(given[0][:, ORDER[:2]], X[:, ORDER[:2]])
    assert torch.equal(*given)


def test_16_bit_quantiles_are_found_in_float32():
    """Contexts and the draw are rounded, probabilities are not."""
    got, exact = (
        draw(name, dtype, (), order=[0, 1, 2, 3], last=1)[0][:, 0]
        for name, dtype in (("parts", torch.bfloat16), ("reference", torch.float64))
    )
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=0.02, atol=0.02)
