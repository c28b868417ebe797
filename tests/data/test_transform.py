import json

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from fastcsm.data import Transform
from fastcsm.data.fitting import dequantised, with_logits

ALPHAS = (1e-6, 0.05)


def _logits(levels, alpha, features=3, rows=50):
    """A transform by logits, fitted to rows of black, of any and of nearly white pixels."""
    values = np.random.default_rng(0).integers(0, levels, (rows, features), dtype=np.uint8)
    values[:, 0], values[:, -1] = 0, np.maximum(values[:, -1], levels - 2)
    return with_logits(Transform((features,), levels), values, alpha)


def _grid(offset=0.0):
    """A transform of whole numbers, of decimals and of numbers on no grid."""
    rng = np.random.default_rng(0)
    table = np.stack(
        [offset + 2 * rng.integers(0, 30, 90), rng.integers(0, 30, 90) / 10, rng.normal(size=90)], 1
    )
    shift, scale = tuple(table.mean(0).tolist()), tuple(table.std(0).tolist())
    return dequantised(Transform((3,), 0, shift, scale), table, None), table


@pytest.mark.parametrize("alpha", [0.0, *ALPHAS])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_all_grey_values_come_back(levels, alpha):
    transform = _logits(levels, alpha) if alpha else Transform((3,), levels)
    values = torch.arange(levels, dtype=torch.uint8)[:, None].expand(-1, 3)
    for u in (0.0, 0.5, 0.999):
        x = transform.encode(values, torch.full(values.shape, u))
        assert x.dtype is torch.float32
        low, high = transform.data_range
        assert low - 1e-5 <= x.min() < x.max() <= high + 1e-5
        assert (transform.decode(x) == values.numpy()).all()
        between = transform.decode(x[1:-1], whole=False)
        np.testing.assert_allclose(between, values[1:-1].numpy() + u, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.6e9])
def test_values_on_grids_come_back(offset):
    transform, table = _grid(offset)
    for u in (0.0, 0.5, 0.999):
        x = transform.encode(torch.from_numpy(table), torch.full((90, 3), u))
        back = transform.decode(x)
        np.testing.assert_array_equal(back[:, 0], table[:, 0])
        np.testing.assert_allclose(back[:, 1:], table[:, 1:], rtol=0, atol=3e-7)
        assert np.abs(back[:, 1] - table[:, 1]).max() < 1e-13


@pytest.mark.parametrize("alpha", ALPHAS)
def test_logits_are_those_of_the_paper(alpha):
    transform = _logits(256, alpha)
    v, u = torch.randint(0, 256, (40, 3)), torch.rand(40, 3)
    y = (v + u.double()).requires_grad_()
    p = alpha + (1 - 2 * alpha) * y / 256
    shift, scale = torch.tensor([transform.shift, transform.scale], dtype=torch.float64)
    x = (p.log() - (1 - p).log() - shift) / scale
    torch.testing.assert_close(transform.encode(v.byte(), u), x.detach().float(), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(x.sum(), y)
    found = transform.log_volume(x.detach())
    torch.testing.assert_close(found, -slope.log().sum(1), rtol=1e-9, atol=1e-9)
    assert torch.allclose(transform.log_volume(x.detach().float()), found, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, *ALPHAS])
def test_a_density_of_model_space_is_one_of_grey_values(alpha):
    """Its integral over the values is the law's mass where they lie."""
    transform = _logits(17, alpha, features=1) if alpha else Transform((1,), 17)
    parts = 4000
    u = ((torch.arange(parts) + 0.5) / parts).repeat(17)[:, None]
    x = transform.encode(torch.arange(17, dtype=torch.uint8).repeat_interleave(parts)[:, None], u).double()
    law, low_high = Normal(0.2, 0.7), torch.tensor(transform.data_range).double()
    density = (law.log_prob(x).sum(1) - transform.log_volume(x)).exp()
    low, high = law.cdf(low_high)
    assert high - low > 0.5
    assert density.sum() / parts == pytest.approx(float(high - low), abs=1e-4)


def test_a_density_of_model_space_is_one_of_numbers():
    transform, _ = _grid()
    x = torch.zeros(5, 3, dtype=torch.float64).requires_grad_()
    scale = torch.autograd.grad((x * torch.tensor(transform.scale)).sum(), x)[0]
    torch.testing.assert_close(transform.log_volume(x.detach()), scale.log().sum(1))
    assert transform.log_volume(x).dtype is torch.float64


def test_transforms_survive_json():
    for transform in (_logits(17, 0.05), _grid()[0], Transform((2,), 256)):
        assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


@pytest.mark.parametrize("levels", [0, 256])
def test_older_checkpoints_have_neither(levels):
    pair = () if levels else (0.5, 2.0)
    saved = {"shape": [2], "grey_levels": levels, "shift": pair, "scale": pair}
    assert Transform.from_dict(saved) == Transform((2,), levels, pair, pair)
    assert Transform.from_dict(saved).data_range == (-1.0, 1.0)


def test_model_space_in_words():
    assert _logits(17, 1e-6).space == (
        "grey values v as logit(1e-06 + 0.999998 (v + u) / 17), less their mean, over their deviation"
    )
    assert _grid()[0].space == (
        "every column less its mean, over its deviation, with uniform noise in columns (steps) 0 (2), 1 (0.1)"
    )
    many = dequantised(Transform((9,), 0, (0.0,) * 9, (1.0,) * 9), np.arange(18.0).reshape(2, 9), None)
    assert many.space.endswith("4 (9), 5 (9) and 3 more")
