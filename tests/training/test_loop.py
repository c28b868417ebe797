"""A signal is heard within a step and within an evaluation, and the run goes on as if there had been none."""

import dataclasses
import signal
import threading

import pytest
import torch

from fastcsm import data, training
from fastcsm.training import Config, checkpoint, loop

pytest.importorskip("safetensors")

CONFIG = Config(
    data="moons",
    hidden=(8,),
    context_features=2,
    head_hidden=(8,),
    frequencies=0,
    batch_size=16,
    steps=6,
    eval_every=2,
    log_every=3,
    keep="best",
    checkpoint_seconds=1e6,
)


@pytest.fixture(scope="module")
def moons():
    found = data.load("moons")
    return dataclasses.replace(found, train=found.train[:100], val=found.val[100:150], test=found.test[:50])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, moons):
    run = tmp_path_factory.mktemp("loop") / "whole"
    training.train(CONFIG, moons, run, quiet=True)
    return run


def _same(run, whole):
    a, b = checkpoint.read(run), checkpoint.read(whole)
    state = [{k: v for k, v in found.state.items() if k != "elapsed"} for found in (a, b)]
    logs = [[row | {"seconds": 0} for row in training.read_log(r / "log.csv")] for r in (run, whole)]
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert state[0] == state[1]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("name", ["ARCSM.loss", "Tensor.backward", "Trainer.evaluate"])
def test_a_signal_in_a_long_call_ends_it(tmp_path, moons, whole, monkeypatch, name):
    owner, method = name.split(".")
    owners = {"ARCSM": type(CONFIG.build(2)), "Tensor": torch.Tensor, "Trainer": loop.Trainer}
    plain, calls = getattr(owners[owner], method), [0]

    def long(*arguments, **options):
        calls[0] += 1
        # The first evaluation is one of one row, before the first step.
        if calls[0] == (3 if method == "evaluate" else 4):
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the call went on")
        return plain(*arguments, **options)

    monkeypatch.setattr(owners[owner], method, long)
    with pytest.raises(training.Interrupted, match="SIGINT at step") as stopped:
        training.train(CONFIG, moons, tmp_path / "run", quiet=True)
    assert stopped.value.code == 130
    monkeypatch.undo()
    assert 0 < checkpoint.read(tmp_path / "run").state["step"] < 6
    training.train(CONFIG, moons, tmp_path / "run", resume=True, quiet=True)
    _same(tmp_path / "run", whole)


def test_a_run_trains_outside_the_main_thread(tmp_path, moons, whole):
    errors = []

    def go():
        try:
            training.train(CONFIG, moons, tmp_path / "run", quiet=True)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert errors == []
    _same(tmp_path / "run", whole)


def test_handlers_that_python_did_not_set(monkeypatch):
    monkeypatch.setattr("fastcsm.training.loop.signal.signal", lambda number, handler: seen.append(handler))
    seen = []
    with loop._Signals():
        pass
    assert seen[2:] == [signal.SIG_DFL] * 2
