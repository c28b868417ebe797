import copy
import math

import pytest
import torch
from torch import nn

from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead

V = 0.25
A = torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.0, 0.0], [-0.5, 0.6, 0.0]])
N = 20_000


class LinearContext(nn.Module):
    """Context of x_d: its mean given the variables before it."""

    features = 3

    def forward(self, x):
        return (x @ A.to(x).T).unsqueeze(-1)


def _linear_head(v):
    """s(c, x) = (c - x) / v as an nn.Sequential that runs fused."""
    head = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        head[0].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        head[2].weight.copy_(torch.tensor([[1 / v, -1 / v]]))
        head[0].bias.zero_()
        head[2].bias.zero_()
    return head


class ConditionalHead(nn.Module):
    """Sigma times the score of N(c, v + sigma^2), from [c, log sigma, x]."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(V))

    def forward(self, h):
        c, sigma, x = h[..., :1], h[..., 1:2].exp(), h[..., 2:]
        return sigma * (c - x) / (self.v + sigma**2)


def _covariance(conditional_variance):
    inverse = torch.linalg.inv(torch.eye(3) - A)
    return conditional_variance * inverse @ inverse.T


def _check_moments(x, conditional_variance):
    expected = _covariance(conditional_variance)
    deviation = expected.diag().sqrt()
    assert (x.mean(0).abs() < 5 * deviation / math.sqrt(len(x))).all()
    error = (torch.cov(x.T) - expected).abs() / (deviation[:, None] * deviation)
    assert error.max() < 5 * math.sqrt(2 / len(x))


def test_plain_model_reaches_the_discretised_gaussian():
    model = ARCSM(LinearContext(), _linear_head(V))
    step = 0.4 * V
    x = model.sample(N, method="langevin", seed=3, steps=60, step_size=step)
    _check_moments(x, V / (1 - step / V / 4))


@pytest.mark.filterwarnings("ignore:the score head runs")
@pytest.mark.parametrize("denoise", [False, True])
def test_conditional_model_reaches_the_last_level(denoise):
    noise = NoiseSchedule(1.0, 0.2, 4)
    model = ARCSM(LinearContext(), ConditionalHead(), noise=noise)
    last = V + 0.2**2
    step = 0.3 * 0.2**2
    x = model.sample(N, method="langevin", seed=1, steps=80, step_size=step, denoise=denoise)
    reached = last / (1 - step / last / 4)
    if not denoise:
        return _check_moments(x, reached)
    assert x[:, 0].var() == pytest.approx(reached * (V / last) ** 2, rel=0.05)


def test_staged_model_uses_each_stage():
    noise = NoiseSchedule(1.0, 0.2, 3, form="staged")
    model = ARCSM(LinearContext(), _linear_head(V + 1.0), noise=noise)
    for sigma in noise.sigmas[1:]:
        model.advance_stage()
        with torch.no_grad():
            model.head[2].weight.copy_(torch.tensor([[1.0, -1.0]]) / (V + sigma**2))
    step = 0.3 * 0.2**2
    x = model.sample(N, method="langevin", seed=1, steps=80, step_size=step)
    last = V + 0.2**2
    _check_moments(x, last / (1 - step / last / 4))


def test_staged_model_must_be_finished():
    model = ARCSM(LinearContext(), _linear_head(V), noise=NoiseSchedule(form="staged"))
    with pytest.raises(ValueError, match="finished 0 of 10 stages"):
        model.sample(2, method="langevin")


class Unfused(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, h):
        return self.head(h[..., :-1], h[..., -1])


def _model(order=None, dropout=0.0):
    torch.manual_seed(0)
    net = MADE(5, (16,), 4, order=order, dropout=dropout)
    return ARCSM(net, ScoreHead(5, (16, 16), frequencies=3), noise=NoiseSchedule(1.0, 0.1, 3)).double()


class Opaque(nn.Module):
    """A context network that is not a MADE."""

    def __init__(self, made):
        super().__init__()
        self.made, self.features, self.order = made, made.features, made.order

    def forward(self, x):
        return self.made(x)


def _staged_model():
    torch.manual_seed(0)
    net = MADE(5, (16, 16, 16), 4, order=[3, 0, 4, 1, 2], residual=True)
    model = ARCSM(
        net, ScoreHead(4, (16,), frequencies=3), noise=NoiseSchedule(1.0, 0.1, 3, form="staged")
    ).double()
    for _ in range(2):
        model.advance_stage()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    return model


def _replace(model, kind):
    """The same model, by the loop over dimensions."""
    other = copy.deepcopy(model)
    for part in (other, *other.stages):
        if kind == "head":
            part.head = Unfused(part.head)
        else:
            part.context_net = Opaque(part.context_net)
    return other


@pytest.mark.filterwarnings("ignore:the score head runs")
@pytest.mark.parametrize("kind", ["head", "context_net"])
@pytest.mark.parametrize("make", [_model, _staged_model])
def test_fused_and_plain_loops_draw_the_same(make, kind):
    model = make()
    options = {"seed": 2, "steps": 5, "denoise": True, "given": torch.linspace(-1, 1, 5), "known": 2}
    fused, plain = (m.sample(6, method="langevin", **options) for m in (model, _replace(model, kind)))
    torch.testing.assert_close(fused, plain, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("net", [LinearContext(), MADE(3, (8,), 1)])
def test_what_is_not_given_may_be_nan(net):
    model = ARCSM(net, _linear_head(V))
    given = torch.tensor([0.5, math.nan, math.nan])
    x = model.sample(4, steps=3, step_size=0.1, given=given, known=1)
    assert torch.equal(x, model.sample(4, steps=3, step_size=0.1, given=given.nan_to_num(), known=1))


@pytest.mark.parametrize("order", [None, [3, 0, 4, 1, 2]])
def test_given_variables_are_kept_and_move_those_after_them_only(order):
    model = _model(order)
    places = model.context_net.order
    given = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = model.sample(6, seed=3, steps=3, given=given, known=2)
    assert torch.equal(x[:, places[:2]], given[:, places[:2]])
    other = given.clone()
    other[:, places[2:]] = torch.nan
    assert torch.equal(model.sample(6, seed=3, steps=3, given=other, known=2), x)
    assert torch.equal(model.sample(6, seed=3, steps=3, given=given, known=5), given)
    other = given.clone()
    other[:, places[1]] += 1
    assert (model.sample(6, seed=3, steps=3, given=other, known=2) - x)[:, places[2:]].abs().min() > 0
    row = model.sample(6, seed=3, steps=3, given=given[0], known=2)
    assert torch.equal(row[:, places[:2]], given[:1, places[:2]].expand(6, 2))


@pytest.mark.parametrize("order", [None, [3, 0, 4, 1, 2]])
def test_a_seed_means_the_same_samples_for_any_split(order):
    model = _model(order)
    x = model.sample(7, seed=5, steps=4)
    torch.testing.assert_close(model.sample(7, seed=5, steps=4, batch_size=3), x, atol=1e-9, rtol=1e-9)
    tail = model.sample(3, method="langevin", seed=5, steps=4, first_sample=4)
    torch.testing.assert_close(tail, x[4:], atol=1e-9, rtol=1e-9)
    assert (model.sample(7, seed=6, steps=4) - x).abs().min() > 1e-9


def test_contexts_come_from_earlier_variables_only():
    model = _model([3, 0, 4, 1, 2])
    x = model.sample(4, seed=5, steps=4)
    with torch.no_grad():
        for parameter, degrees in ((model.context_net.output.weight, model.context_net.output.out_degrees),):
            parameter[degrees == 4] += 1.0
    moved = (model.sample(4, seed=5, steps=4) - x).abs().max(0).values > 0
    assert moved.tolist() == [False, False, True, False, False]


def test_mode_is_restored_and_dropout_is_off():
    model = _model(dropout=0.5).train()
    x = model.sample(3, steps=2)
    assert model.training
    assert torch.equal(model.sample(3, steps=2), x)
    model.eval().sample(1, steps=1)
    assert not model.training


def test_progress_and_empty_draw():
    seen = []
    _model().sample(4, steps=1, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 10) for k in range(1, 11)]
    assert _model().sample(0, steps=1).shape == (0, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": -1}, "n must be at least 0"),
        ({"n": 2.0}, "n must be a whole number, got 2.0"),
        ({"steps": 3.5}, "steps must be a whole number, got 3.5"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": 0.0}, "step_size must be a positive"),
        ({"step_size": math.nan}, "step_size must be a positive"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"known": 1}, "known is 1, expected given"),
        ({"known": 6, "given": torch.zeros(5)}, r"known must be in \[0, 5\]"),
        ({"known": 1, "given": torch.zeros(3, 5)}, r"given must have shape \(2, 5\) or \(5,\), got \(3, 5\)"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        _model().sample(**({"n": 2} | options), method="langevin")


def test_a_model_without_noise_needs_a_step_size():
    model = ARCSM(LinearContext(), _linear_head(V))
    with pytest.raises(ValueError, match="step_size must be given"):
        model.sample(2, method="langevin")
    with pytest.raises(ValueError, match="denoise is True"):
        model.sample(2, method="langevin", step_size=0.1, denoise=True)
