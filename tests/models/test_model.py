"""What every model answers, in every dtype."""

import math

import preconditioned_models
import pytest
import torch
from test_densities_conditional import Any, gaussian_model, line_head, wave_model

import fastcsm
from fastcsm.nn import ARCSM, MADE, MixtureMADE, NoiseSchedule


def models():
    """Every kind of model with parts, on three variables, in float32."""
    conditional, plain = wave_model(3, torch.float32), gaussian_model(dtype=torch.float32)
    staged = ARCSM(MADE(3, (8,), 2), line_head(2, 4.0), noise=NoiseSchedule(1.0, 0.1, 2, form="staged"))
    staged.advance_stage()
    called = ARCSM(conditional.context_net, Any(conditional.head), noise=conditional.noise)
    moments = preconditioned_models.model("moments", features=3).float().eval()
    found = {"conditional": conditional, "called": called, "plain": plain, "staged": staged.eval()}
    return found | {"moments": moments}


@pytest.mark.parametrize(
    ("dtype", "given", "backend"),
    [
        (torch.bfloat16, torch.bfloat16, "auto"),
        (torch.bfloat16, torch.float32, "auto"),
        (torch.bfloat16, torch.float64, "reference"),
        (torch.float16, torch.float16, "reference"),
        (torch.float16, torch.float32, "auto"),
        (torch.float32, torch.bfloat16, "auto"),
        (torch.float32, torch.float64, "auto"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", list(models()))
def test_densities_are_at_least_float32(name, dtype, given, backend):
    """Of a model in any dtype and x in any: those of the same weights in float32, but for its contexts."""
    model, wide = models()[name].to(dtype).eval(), models()[name].to(dtype).float().eval()
    generator = torch.Generator().manual_seed(0)
    x, u = ((torch.rand(2, 3, generator=generator) - low).to(given) for low in (0.5, 0.0))
    bar = 8 * torch.finfo(dtype).eps + 2e-3
    with fastcsm.backend(backend):
        loss = model.likelihood_loss(x, model.draw_noise(x.shape))
        loss.backward()
        assert model.score(x).dtype == dtype
        assert model.bits_per_dim(x, 2).dtype == torch.float32
        for method in model.density_methods:
            found = model.log_density(x, method, tolerance=1e-3)
            answers = [found.log_density, model.cdf(x, method, tolerance=1e-3)]
            answers += [model.quantile(u, method, tolerance=1e-3)]
            assert {value.dtype for value in (loss, *found, *answers)} == {torch.float32}
            truth = [wide.log_density(x.float(), method).log_density, wide.cdf(x.float(), method)]
            truth += [wide.quantile(u.float(), method)]
            for value, expected in zip(answers, truth):
                assert (value - expected).abs().max() <= bar * (1 + expected.abs().max())
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize("called", [False, True])
def test_rows_without_a_density_may_be_left_out(called):
    """Their NaN reaches no gradient of a loss that has no part of them."""
    model = wave_model(3)
    if called:
        model = ARCSM(model.context_net, Any(model.head), noise=model.noise).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64) / 2
    lost = torch.cat([x, x.new_full((1, 3), math.inf), x.new_full((1, 3), 1e40)])
    grads = []
    for rows in (x, lost):
        values = model.log_density(rows, "quadrature").log_density
        there = values.isfinite()
        assert there.sum() == 15
        loss = torch.where(there, values, 0.0).sum()
        grads.append(torch.autograd.grad(loss, list(model.head.parameters())))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixtures_have_float32_densities(dtype):
    torch.manual_seed(0)
    model = MixtureMADE(3, (8,), 2).to(dtype)
    x = torch.rand(4, 3) * 2 - 1
    found = model.log_prob(x)
    assert found.dtype == torch.float32
    expected = MixtureMADE.log_prob(model.float(), x)
    torch.testing.assert_close(found, expected, rtol=8 * torch.finfo(dtype).eps, atol=0.02)
