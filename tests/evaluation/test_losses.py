import math

import pytest
import torch
from preconditioned_models import LEVELS, model, moments_of, written

from fastcsm import evaluation


@pytest.mark.parametrize("precondition", ["standard", "moments"])
def test_losses_of_preconditioned_models_are_in_their_own_units(precondition):
    """sigma^2 (s^2 / 2 + s') and (sigma s + z)^2 / 2 of y = (x - m) / tau, at every level."""
    found, x = model(precondition, features=3).eval(), torch.randn(40, 3).double()
    generator = torch.Generator().manual_seed(5)
    z_hat, z = (torch.randn(x.shape, generator=generator).double() for _ in range(2))
    context, m, log_scale = moments_of(found.context_net(x + LEVELS[1] * z_hat).detach(), precondition)
    y = (x - m) / log_scale.exp()
    assert precondition == "standard" or (y - x).abs().mean() > 0.5
    rows = evaluation.evaluate(found, x, sigmas=[20.0, 0.7, 0.05], seed=5)
    assert [row["sigma"] for row in rows] == [20.0, 0.7, 0.05]
    for row in rows:
        sigma = row["sigma"]
        s, ds = written(found.head, context, y + sigma * z, sigma)
        csm, denoising = sigma**2 * (s**2 / 2 + ds), (sigma * s + z) ** 2 / 2
        for name, values in (("csm", csm), ("denoising", denoising)):
            of_rows = values.mean(1)
            assert row[name]["mean"] == pytest.approx(of_rows.mean().item(), abs=1e-9)
            error = of_rows.std().item() / math.sqrt(len(x))
            assert row[name]["standard_error"] == pytest.approx(error, abs=1e-9)
