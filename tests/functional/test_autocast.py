"""torch.autocast around the fused functions, which cast what torch.nn.functional.linear would."""

import pytest
import torch

import fastcsm
from fastcsm import functional, nn
from fastcsm.nn import NoiseSchedule


@pytest.fixture
def head():
    return nn.ScoreHead(6, (17, 9), frequencies=3)


def rows(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(5, 4, 6, generator=generator, dtype=dtype), torch.randn(5, 4, generator=generator))


def raw(head, dtype):
    tensors = [[t.to(dtype) for t in part] for part in (head.weights, head.biases)]
    return {"weights": tensors[0], "biases": tensors[1], "frequencies": head.frequencies.to(dtype)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
def test_loss_is_that_of_cast_arguments(head, dtype, mixed):
    context, x = rows()
    with torch.autocast("cpu", dtype=dtype):
        loss = fastcsm.csm_loss(head, context.to(dtype) if mixed else context, x, reduction="sum")
    loss.backward()
    expected = functional.csm_loss(context.to(dtype), x.to(dtype), **raw(head, dtype))
    assert loss.dtype is torch.float32
    assert torch.equal(loss, expected)
    grads = [parameter.grad for parameter in head.parameters()]
    assert all(grad.dtype is torch.float32 and grad.abs().sum() > 0 for grad in grads)


def test_scores_and_layers_come_in_its_dtype(head):
    context, x = rows()
    layer = nn.MaskedLinear(torch.arange(4), torch.arange(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s, ds = head.score_and_derivative(context, x)
        y = layer(x)
        assert nn.MADE(4, (8,), 3)(x).dtype is torch.bfloat16
    expected = functional.score_head(context.bfloat16(), x.bfloat16(), **raw(head, torch.bfloat16))
    assert torch.equal(s, expected[0])
    assert torch.equal(ds, expected[1])
    assert y.dtype is torch.bfloat16


def test_float64_and_a_switched_off_autocast_change_nothing(head):
    context, x = rows(torch.float64)
    plain = fastcsm.csm_loss(head.double(), context, x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fastcsm.csm_loss(head, context, x.double()), plain)
    context, x = rows()
    plain = fastcsm.csm_loss(head.float(), context, x)
    with torch.autocast("cpu", enabled=False):
        assert torch.equal(fastcsm.csm_loss(head, context, x), plain)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_sampling_and_densities_stay_in_float32(backend):
    context, x = rows()
    # s(c, x) = -10 tanh(0.1 x + c_1)
    weights = [torch.tensor([[1.0, 0, 0, 0, 0, 0, 0.1]]), torch.tensor([[-10.0]])]
    layers = {"weights": weights, "biases": [None, None], "activation": "tanh"}

    def run(context):
        drawn = functional.langevin(context, x, **layers, step_sizes=[0.1], steps=3)
        found = functional.conditional_density(context, x, **layers, low=-3.0, high=3.0)
        flow = functional.probability_flow(context[..., 1:], x, **layers, sigma_from=1.0, sigma_to=0.5)
        return drawn, found.log_density, flow.point

    with fastcsm.backend(backend), torch.no_grad():
        expected = run(context.bfloat16().float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = run(context.bfloat16())
    assert all(value.isfinite().all() and value.dtype is torch.float32 for value in got)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize("objective", ["csm", "denoising"])
def test_a_model_trains_under_it(objective):
    made, noise = nn.MADE(6, (20, 20), 5, residual=True), NoiseSchedule(1.0, 0.1)
    model = nn.ARCSM(made, nn.ScoreHead(6, (17, 9)), noise=noise, objective=objective)
    x = torch.randn(64, 6)
    with torch.no_grad():
        plain = model.csm_loss(x, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.csm_loss(x, torch.Generator().manual_seed(1))
    loss.backward()
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss.detach(), plain, rtol=0.05, atol=0.05)
    assert all(p.grad.dtype is torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        samples = model.sample(2, seed=0)
    assert torch.equal(samples, model.sample(2, seed=0))


def test_it_compiles_whole(head):
    context, x = rows()

    def loss(context, x):
        return functional.csm_loss(context, x, **raw(head, torch.float32))

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        compiled = torch.compile(loss, fullgraph=True, backend="eager")(context, x)
        assert torch.equal(compiled, loss(context, x))
