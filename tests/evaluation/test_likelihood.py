import math
import sys

import pytest
import torch
from sklearn.metrics import roc_auc_score

from fastcsm import evaluation
from fastcsm.data import Transform
from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead


class Logistic(torch.nn.Module):
    """Score of a logistic distribution of scale 1 around the first context feature; none at level 0."""

    def __init__(self, features, exists=True):
        super().__init__()
        self.features, self.sign = features, 1.0 if exists else -1.0
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs):
        return -self.sign * torch.tanh((inputs[..., -1:] - inputs[..., :1]) / 2)


def _model(exists=True):
    net = torch.nn.Module()
    net.features = 3
    net.forward = lambda x: torch.zeros(*x.shape, 1, dtype=x.dtype)
    return ARCSM(net, Logistic(3, exists)).eval()


def _logistic(*shape):
    u = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.logit(u)


@pytest.mark.filterwarnings("ignore:the score head runs")
def test_likelihood_of_a_known_density():
    x = _logistic(200, 3)
    found = evaluation.likelihood(_model(), x, "quadrature")
    exact = -(-x - 2 * torch.nn.functional.softplus(-x)).sum(1)
    assert found["nats"]["mean"] == pytest.approx(exact.mean().item(), abs=1e-5)
    assert found["nats"]["standard_error"] == pytest.approx(exact.std().item() / math.sqrt(200), abs=1e-5)
    assert found["nats_per_dimension"]["mean"] == pytest.approx(exact.mean().item() / 3, abs=1e-5)
    assert "bits_per_dimension" not in found
    assert (found["samples"], found["diverged"]) == (200, 0)
    for transform in (Transform((3,), 256), Transform((3,), 256, (0.5,) * 3, (2.0,) * 3, 1e-6)):
        grey = evaluation.likelihood(_model(), x, "quadrature", transform=transform, bits=True)
        assert grey["nats"] == found["nats"]
        given = exact + transform.log_volume(x)
        assert grey["nats_as_given"] == pytest.approx(evaluation.statistics(given), abs=1e-5)
        bits = given / (3 * math.log(2))
        assert grey["bits_per_dimension"]["mean"] == pytest.approx(bits.mean().item(), abs=1e-5)
        error = bits.std().item() / math.sqrt(200)
        assert grey["bits_per_dimension"]["standard_error"] == pytest.approx(error, abs=1e-5)
    assert grey["nats_of_logits"]["mean"] == pytest.approx(exact.mean().item() + 3 * math.log(2), abs=1e-5)


def test_statistics_of_few_and_of_strange_rows():
    nats = torch.arange(250.0)
    nats[3] = 1e9  # one of the three that are left out
    nats = nats[torch.randperm(250, generator=torch.Generator().manual_seed(0))]
    found, kept = evaluation.statistics(nats), [float(n) for n in range(248) if n != 3]
    assert found["trimmed_mean"] == pytest.approx(sum(kept) / 247)
    assert (found["worst"], found["median"]) == (1e9, 125.5)
    few = evaluation.statistics(torch.tensor([1.0, 2.0, 6.0]))
    assert (few["mean"], few["trimmed_mean"], few["median"], few["worst"]) == (3, 1.5, 2, 6)
    assert few["standard_error"] == pytest.approx(math.sqrt(7 / 3))
    one = evaluation.statistics(torch.tensor([4.0]))
    assert (one["mean"], one["trimmed_mean"], one["median"]) == (4, None, 4)


def test_rows_without_a_density_are_the_worst():
    nats = torch.tensor([math.nan, *range(299)])
    found = evaluation.statistics(nats)
    assert (found["mean"], found["median"], found["worst"]) == (149, 149.5, 298)
    assert found["trimmed_mean"] == pytest.approx(sum(range(297)) / 297)
    nats[:4] = math.nan
    assert evaluation.statistics(nats)["trimmed_mean"] is None
    nats[:160] = math.nan
    assert evaluation.statistics(nats)["median"] is None
    assert evaluation.statistics(torch.full((3,), math.nan)) is None
    assert evaluation.statistics(torch.empty(0)) is None


@pytest.mark.filterwarnings("ignore:the score head runs")
def test_a_density_that_does_not_exist_is_no_number():
    found = evaluation.likelihood(_model(exists=False), _logistic(5, 3), "quadrature")
    assert found["diverged"] == found["samples"] == 5
    assert found["nats"] is found["nats_per_dimension"] is found["error"] is None
    half = _logistic(6, 3)
    half[::2, 1] = math.nan
    found = evaluation.likelihood(_model(), half, "quadrature", transform=Transform((3,), 256))
    assert (found["diverged"], found["samples"]) == (3, 6)
    whole = evaluation.likelihood(_model(), half[1::2], "quadrature", transform=Transform((3,), 256))
    for name in ("mean", "standard_error", "worst"):
        assert found["nats_as_given"][name] == pytest.approx(whole["nats_as_given"][name], rel=1e-12)


def test_parts_are_the_whole(monkeypatch):
    noise = NoiseSchedule(1.0, 0.3, 3)
    model = ARCSM(MADE(2, (8,), 3), ScoreHead(4, (8,), frequencies=2), noise=noise).eval()
    x, seen = torch.randn(7, 2), []
    whole = evaluation.log_densities(model, x, "quadrature")
    monkeypatch.setattr(sys.modules["fastcsm.evaluation.likelihood"], "_DENSITY_ROWS", 6)
    parts = evaluation.log_densities(model, x, "quadrature", progress=lambda *done: seen.append(done))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_auroc_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    usual = torch.randint(0, 8, (60,), generator=generator).float() + 1
    strange = torch.randint(0, 8, (45,), generator=generator).float()
    expected = roc_auc_score([1] * 60 + [0] * 45, torch.cat([usual, strange]).numpy())
    assert evaluation.auroc(usual, strange) == pytest.approx(expected, abs=1e-12)
    assert evaluation.auroc(torch.tensor([2.0, 3.0]), torch.tensor([-torch.inf, 1.0])) == 1.0
    assert evaluation.auroc(strange, strange) == 0.5
    assert math.isnan(evaluation.auroc(usual, usual[:0]))


@pytest.mark.filterwarnings("ignore:the score head runs")
def test_anomaly_scores():
    model, x = _model(), _logistic(10, 3)
    found = evaluation.anomaly_scores(model, x, "quadrature")
    torch.testing.assert_close(found["score_sum"], -torch.tanh(x / 2).sum(1))
    torch.testing.assert_close(found["log_likelihood"], model.log_prob(x, "quadrature"))


@pytest.mark.filterwarnings("ignore:the score head runs")
def test_a_grid_has_rows_of_y_and_columns_of_x(monkeypatch):
    monkeypatch.setattr(sys.modules["fastcsm.evaluation.likelihood"], "GRID_POINTS", 9)
    x = _logistic(300, 2) * torch.tensor([1.0, 0.2], dtype=torch.float64)
    model = _model()
    found = evaluation.density_grid(model, x, "quadrature")
    assert found.density.shape == (9, 9)
    for row, column in ((0, 0), (2, 7), (8, 3)):
        t = torch.tensor([column, row], dtype=torch.float64) / 8
        point = found.low + t * (found.high - found.low)
        expected = model.log_prob(point[None], "quadrature").exp()[0]
        torch.testing.assert_close(found.density[row, column], expected, rtol=1e-4, atol=0)
