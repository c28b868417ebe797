import threading

import pytest
import torch

import fastcsm
from fastcsm import backends, functional, nn
from fastcsm.backends import registry


class Recorder:
    """A backend that runs the reference and remembers what it ran."""

    name = "recorder"

    def __init__(self, refusal=None):
        self.ran = []
        self.refusal = refusal

    def missing(self):
        return []

    def refuses(self, op, request):
        return [self.refusal] if self.refusal else []

    def implementation(self, op):
        function = backends.Reference().implementation(op)

        def run(*args):
            self.ran.append(op)
            return function(*args)

        return run


@pytest.fixture
def recorder(known):
    recorder = Recorder()
    backends.register(recorder)
    return recorder


def test_names():
    assert backends.chosen() == "auto"
    for name in ("auto", "reference", "cpu", "triton", "cuda"):
        with fastcsm.backend(name):
            assert backends.chosen() == name
    assert backends.chosen() == "auto"
    with (
        pytest.raises(ValueError, match=r"backend must be one of auto, .*reference.*, got 'gpu'"),
        fastcsm.backend("gpu"),
    ):
        pass


def test_nesting_and_errors_restore_the_choice():
    with fastcsm.backend("reference"):
        with pytest.raises(KeyError), fastcsm.backend("cpu"):
            raise KeyError
        assert backends.chosen() == "reference"


def test_the_choice_belongs_to_the_thread():
    seen = []
    with fastcsm.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.chosen()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize("name", ["cuda"])
def test_an_explicit_choice_that_cannot_run_raises(name, loss):
    with (
        fastcsm.backend(name),
        pytest.raises(RuntimeError, match=f"backend '{name}' cannot run csm_loss: no CUDA device"),
    ):
        loss()


def test_auto_falls_back_for_what_no_kernel_supports():
    head = nn.ScoreHead(2, (4, 4, 4, 4, 4)).half()
    context, x = torch.randn(3, 2, 2).half(), torch.randn(3, 2).half()
    by_auto = fastcsm.csm_loss(head, context, x)
    with fastcsm.backend("reference"):
        assert torch.equal(by_auto, fastcsm.csm_loss(head, context, x))
    assert by_auto.isfinite()


def test_a_registered_backend_is_chosen_before_the_reference(recorder, known, loss):
    del known["cpu"]
    registry._selected.clear()
    loss().backward()
    assert recorder.ran == ["csm_loss"]
    recorder.refusal = "too small"
    registry._selected.clear()
    loss()
    assert recorder.ran == ["csm_loss"]
    with (
        fastcsm.backend("recorder"),
        pytest.raises(RuntimeError, match="'recorder' cannot run csm_loss: too small"),
    ):
        loss()


def test_an_op_that_a_backend_lacks_is_composed_of_its_others(recorder, known, monkeypatch):
    del known["cpu"]
    monkeypatch.setattr(recorder, "refuses", lambda op, _: ["no"] if op == "linear_csm_loss" else [])
    registry._selected.clear()
    model = nn.ARCSM(nn.MADE(3, (4,), 2), nn.ScoreHead(2, (4,)))
    model.csm_loss(torch.randn(5, 3)).backward()
    assert recorder.ran[1:4] == ["masked_linear", "csm_loss", "masked_linear_backward_into"]
    monkeypatch.setattr(recorder, "refuses", lambda op, _: ["no"] if op == "csm_loss" else [])
    registry._selected.clear()
    recorder.ran.clear()
    model.csm_loss(torch.randn(5, 3)).backward()
    assert "linear_csm_loss" in recorder.ran


def test_a_later_backend_replaces_the_one_of_its_name(recorder, loss):
    recorder.name = "triton"
    backends.register(recorder)
    loss()
    assert recorder.ran == ["csm_loss"]


def test_auto_is_not_a_backend_name(recorder):
    recorder.name = "auto"
    with pytest.raises(ValueError, match="must not be 'auto'"):
        backends.register(recorder)


def test_backward_runs_on_the_choice_of_the_forward(recorder):
    head = nn.ScoreHead(2, (4,))
    made = nn.MADE(2, (4,), 2)
    with fastcsm.backend("recorder"):
        x = torch.randn(3, 2)
        score = head(made(x), x)
    with fastcsm.backend("reference"):
        score.sum().backward()
    assert recorder.ran.count("score_head_backward") == 1
    assert recorder.ran.count("masked_linear_backward") == 2


def test_the_choice_is_made_when_compiled_code_runs(recorder):
    def f(x, weight, bias, *degrees):
        return functional.masked_linear(x, weight, bias, *degrees)

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    degrees = torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    args = torch.randn(2, 3), torch.randn(3, 3), torch.randn(3), *degrees
    compiled(*args)
    assert recorder.ran.count("masked_linear") <= 1
    before = len(recorder.ran)
    with fastcsm.backend("recorder"):
        compiled(*args)
    assert len(recorder.ran) == before + 1
    with fastcsm.backend("reference"):
        compiled(*args)
    assert len(recorder.ran) == before + 1
