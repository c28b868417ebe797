"""What calls launch on a GPU, and that none of them waits for it: counted without one."""

import pytest
import torch

pytest.importorskip("triton")

from on_a_device import META, Ops, listed, named, on_meta

from fastcsm import nn, objectives
from fastcsm.samplers import fused


def model(features=6, hidden=(8, 8), context=4, head=(16, 16), form="conditional", **options):
    torch.manual_seed(0)
    net = nn.MADE(features, hidden, context, **options)
    head = nn.ScoreHead(context + (form == "conditional"), head, frequencies=3)
    return nn.ARCSM(net, head, noise=nn.NoiseSchedule(1.0, 0.1, 3, form=form))


def step(arcsm, rows, noise):
    """Launches of a loss and its gradients."""
    there = on_meta(arcsm)
    x = torch.empty(rows, arcsm.context_net.features, device=META)
    noise = tuple(torch.empty_like(x) for _ in range(3)) if noise else None
    parameters = [p for p in there.parameters() if p.requires_grad]
    return listed(lambda: torch.autograd.grad(there.csm_loss(x, noise=noise), parameters))


def test_a_training_step_is_a_handful_of_launches():
    found = step(model(784, (1024, 1024), 32, (128, 128)), 128, noise=True)
    assert found.names()["csm_loss_kernel"] == 1
    assert len(found.ours) <= 20
    assert found.torchs.total() <= 16


@pytest.mark.parametrize("form", ["conditional", "staged"])
def test_a_backward_pass_rescales_all_gradients_at_once(form):
    found = step(model(form=form), 5, noise=False)
    ((upstream, scaled, _),) = [one.args for one in found.ours if named(one) == "rescale_kernel"]
    assert upstream.shape == ()
    own = {grad.untyped_storage()._cdata for grad in found.results[-8:]}  # of the output layer and the head
    assert own < {gradient.untyped_storage()._cdata for gradient in scaled}
    assert not any("mul_" in name for name in found.torchs)


def test_a_coefficient_of_the_host_is_not_copied():
    arcsm, x = model(), torch.empty(5, 6, device=META)
    head, context = on_meta(arcsm.head), torch.empty(5, 6, 5, device=META)
    found = listed(lambda: objectives.csm_loss(head, context, x, row_weight=torch.tensor(0.5)))
    assert found.names()["csm_loss_kernel"] == 1


def draw(arcsm, n, **options):
    """Our launches of a draw."""
    there = on_meta(arcsm)
    found = listed(lambda: there.sample(n, **options))
    assert found.results.shape == (n, arcsm.context_net.features)
    return found.names()


def test_a_draw_is_one_launch(monkeypatch):
    large = model(784, (1024, 1024), 32, (128, 128))
    assert draw(large, 512, method="langevin", steps=200) == {"langevin_draw_kernel": 1}
    options = {"given": torch.empty(6, device=META), "known": 2, "denoise": True, "method": "langevin"}
    small = model(order=[3, 0, 4, 1, 2, 5], residual=True)
    assert draw(small, 5, **options) == {"langevin_draw_kernel": 1}
    staged = model(form="staged")
    for _ in range(2):
        staged.advance_stage()
    assert draw(staged, 5) == {"langevin_draw_kernel": 1}
    # Of three samples: 16 units in 3 models, and their sums.
    monkeypatch.setattr(fused, "_DEVICE_BYTES", 3 * 4 * (3 + 1) * 16)
    assert draw(staged, 10) == {"langevin_draw_kernel": 4}
    assert draw(staged, 10, batch_size=10) == {"langevin_draw_kernel": 1}


def test_progress_is_told_between_parts_of_a_draw():
    seen = []
    launches = draw(model(8), 5, method="langevin", progress=lambda *done: seen.append(done))
    assert launches == {"langevin_draw_kernel": 4}
    assert seen[4:] == [(2, 8), (4, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize("method", ["flow", "inverse_cdf"])
def test_an_exact_draw_is_a_launch_or_two_a_variable(method):
    flow = {"probability_flow_kernel": 6} if method == "flow" else {}
    order = [3, 0, 4, 1, 2, 5]
    assert draw(model(order=order), 5, method=method) == {"conditional_density_kernel": 6} | flow


PLANTED = {
    "a tensor copied to the device": lambda x: x + torch.ones(3).to(META),
    "numbers copied to the device": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=META),
    "a list as index": lambda x: x[:, [0, 2]],
    "a mask as index": lambda x: x[x > 0],
    "a number read": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).any()),
    "a tensor read": lambda x: x.tolist(),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_waits_is_found(name):
    x = torch.empty(3, 3, device=META)
    with pytest.raises((AssertionError, RuntimeError), match=r"host|meta|nonzero"), Ops(x):
        PLANTED[name](x)
