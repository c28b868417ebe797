import copy
import math

import pytest
import torch
from scipy import stats

from fastcsm.nn import MixtureMADE


def _model(**options):
    torch.manual_seed(1)
    model = MixtureMADE(3, (12, 12), 4, **options).double().eval()
    with torch.no_grad():
        model.made.output.weight.mul_(3.0)
    return model


def test_each_conditional_is_the_mixture():
    model = _model()
    x = torch.randn(50, 3, dtype=torch.float64)
    logits, means, log_scales = model.made(x).unflatten(-1, (3, 4)).unbind(-2)
    density = stats.logistic.pdf(
        x.unsqueeze(-1).numpy(), means.detach().numpy(), log_scales.exp().detach().numpy()
    )
    expected = (logits.softmax(-1) * torch.from_numpy(density)).sum(-1).log()
    torch.testing.assert_close(model.log_density(x).log_density, expected)
    torch.testing.assert_close(model.log_prob(x), expected.sum(-1))


def test_a_variable_sees_only_those_before_it():
    model = _model(order=[2, 0, 1])
    x = torch.randn(1, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model.log_density(x).log_density, x)[
        0, :, 0
    ]  # (D of, D by)
    assert (jacobian != 0).tolist() == [[True, False, True], [True, True, True], [False, False, True]]


def test_the_mass_of_a_plane_is_one():
    torch.manual_seed(0)
    model = MixtureMADE(2, (16,), 5).double().eval()
    line = torch.linspace(-12, 12, 1501, dtype=torch.float64)
    mass = model.log_prob(torch.cartesian_prod(line, line)).exp().sum() * (line[1] - line[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-4)


def test_far_from_the_data_it_is_finite():
    model = MixtureMADE(3, (8,), 4)
    with torch.no_grad():
        model.made.output.bias.view(3, 3, 4)[:, 2] = -40.0
    x = torch.tensor([[1e4, -1e4, 0.3]])
    found = model.log_prob(x)
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("residual", [False, True])
def test_draws_follow_the_density(residual):
    model = _model(order=[1, 2, 0], residual=residual)
    x = model.sample(4000, seed=3)
    assert torch.equal(x, model.sample(4000, seed=3))
    assert not torch.equal(x, model.sample(4000, seed=4))
    # Each value's conditional distribution function is uniform.
    logits, means, log_scales = model.made(x).unflatten(-1, (3, 4)).unbind(-2)
    below = torch.sigmoid((x.unsqueeze(-1) - means) * torch.exp(-log_scales))
    cdf = (logits.softmax(-1) * below).sum(-1).detach().numpy()
    for d in range(3):
        assert stats.kstest(cdf[:, d], "uniform").pvalue > 1e-3
    assert model.sample(0).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_draws_of_16_bits_are_those_of_float32_rounded(dtype):
    model = _model().to(dtype)
    x, exact = model.sample(2000, seed=1), copy.deepcopy(model).float().sample(2000, seed=1)
    assert x.dtype is dtype
    assert ((x - exact).abs() < 0.1).float().mean() > 0.95
    assert (x[:, 0] == exact[:, 0].to(dtype)).all()


def test_it_learns_two_modes():
    torch.manual_seed(0)
    x = 0.05 * torch.randn(2000, 2) + torch.where(torch.rand(2000, 1) < 0.5, -0.6, 0.6)
    model = MixtureMADE(2, (16,), 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.05)) + math.log(2)
    assert loss.item() == pytest.approx(entropy, abs=0.25)


def test_what_is_refused():
    with pytest.raises(ValueError, match="components must be at least 1, got 0"):
        MixtureMADE(2, (4,), 0)
    with pytest.raises(ValueError, match=r"low must be below high, got 1\.0 and 1\.0"):
        MixtureMADE(2, (4,), low=1.0)


def test_draws_are_of_what_calling_gives():
    model = _model(order=[2, 0, 1], dropout=0.5).train()
    read = model.sample(4, seed=1)
    assert model.training
    model.made.output.register_forward_hook(lambda module, inputs, output: output + 0.0)
    torch.testing.assert_close(model.sample(4, seed=1), read)
    model.made.register_forward_hook(lambda module, inputs, output: output + 0.5)
    assert not torch.allclose(model.sample(4, seed=1), read)
