import pytest
import torch

from fastcsm import evaluation
from fastcsm.evaluation import draws
from fastcsm.models.model import Model


class Clocked(Model):
    """A model whose draws take a known time each, and its first call more."""

    sample_methods = ("flow", "langevin")

    def __init__(self, seconds, first=0.0):
        super().__init__()
        self.seconds, self.first, self.now, self.calls = seconds, first, 0.0, []

    def sample(self, n, method=None, seed=0, **options):
        self.calls.append((n, method))
        self.now += n * self.seconds + (self.first if len(self.calls) == 1 else 0)
        return torch.zeros(n, 2)


@pytest.mark.parametrize(("seconds", "samples"), [(1e-9, 4096), (1e-3, 256), (10.0, 16)])
def test_draws_are_timed_without_the_first_call(monkeypatch, seconds, samples):
    model = Clocked(seconds, first=99.0)
    monkeypatch.setattr(draws.time, "perf_counter", lambda: model.now)
    found = evaluation.draw_rate(model)
    assert (found["samples"], found["method"]) == (samples, "flow")
    assert found["per_second"] == pytest.approx(1 / seconds)
    assert [n for n, _ in model.calls[:2]] == [16, 16]
    assert evaluation.draw_rate(model, "langevin")["method"] == "langevin"


def test_a_model_that_draws_nothing_has_no_rate():
    assert evaluation.draw_rate(Model()) is None
