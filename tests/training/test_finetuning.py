"""Fine-tuning by maximum likelihood after the budget."""

import pytest
import torch

from fastcsm import data, training
from fastcsm.training import Config, checkpoint
from fastcsm.training.distributed import Group
from fastcsm.training.trainer import Trainer

pytest.importorskip("safetensors")

SMALL = {
    "data": "moons",
    "hidden": (16,),
    "context_features": 4,
    "head_hidden": (16,),
    "frequencies": 4,
    "sigma_min": 0.1,
    "batch_size": 32,
    "steps": 60,
    "lr": 1e-2,
    "ema": 0.5,
    "log_every": 4,
    "eval_every": 6,
    "finetune_steps": 12,
    "finetune_lr": 3e-3,
}


@pytest.fixture(scope="module")
def moons():
    found = data.load("moons", validation=0.01)
    return type(found)(found.name, found.train[:300], found.val[:60], found.test[:60], found.transform)


def _train(run, moons, **changes):
    return training.train(Config(**(SMALL | changes)), moons, run, quiet=True)


def _nll(run, moons):
    model = checkpoint.load(run)
    noise = torch.randn(moons.test.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return -model.log_prob(moons.test + model.noise.sigma_min * noise, "quadrature").mean().item()


def test_it_lowers_the_negative_log_likelihood(tmp_path, moons):
    _train(tmp_path / "before", moons, finetune_steps=0)
    summary = _train(tmp_path / "run", moons)
    assert summary["steps"] == 72
    assert _nll(tmp_path / "run", moons) < _nll(tmp_path / "before", moons) - 0.02
    rows = training.read_log(tmp_path / "run" / "log.csv")
    assert [r["stage"] for r in rows] == [int(r["step"] > 60) for r in rows]
    assert rows[-1]["held_out"] == summary["held_out"] > 0


def test_the_average_forgets_the_weights_before(tmp_path, moons):
    _train(tmp_path / "before", moons, finetune_steps=0, ema=0.999)
    _train(tmp_path / "run", moons, ema=0.999)
    assert _nll(tmp_path / "run", moons) < _nll(tmp_path / "before", moons) - 0.01


def test_a_finished_run_can_be_fine_tuned(tmp_path, moons):
    _train(tmp_path / "whole", moons)
    _train(tmp_path / "parts", moons, finetune_steps=0)
    training.train(Config(**SMALL), moons, tmp_path / "parts", resume=True, quiet=True)
    a, b = checkpoint.read(tmp_path / "whole").tensors, checkpoint.read(tmp_path / "parts").tensors
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("step", [60, 61, 67])
@pytest.mark.parametrize("changes", [{}, {"keep": "best", "schedule": "cosine", "dropout": 0.2}])
def test_it_resumes_bit_identically(tmp_path, moons, changes, step, stop_at):
    _train(tmp_path / "whole", moons, **changes)
    stop_at(step)
    with pytest.raises(training.Interrupted):
        _train(tmp_path / "parts", moons, **changes)
    training.train(Config(**(SMALL | changes)), moons, tmp_path / "parts", resume=True, quiet=True)
    a, b = checkpoint.read(tmp_path / "whole"), checkpoint.read(tmp_path / "parts")
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert a.state["best"] == b.state["best"]
    assert a.state["finetuned_from"] == b.state["finetuned_from"] == 60


def test_it_starts_from_the_weights_that_training_leaves(tmp_path, moons):
    for changes in ({"keep": "best", "eval_every": 7}, {"ema": 0.0}, {}):
        run = tmp_path / f"run{len(changes)}"
        _train(run, moons, finetune_steps=0, **changes)
        left = checkpoint.load(run).state_dict()
        config = Config(**(SMALL | changes))
        device = torch.device("cpu")
        trainer = Trainer(config, moons, device, checkpoint.read(run), Group(device))
        assert trainer.phase_is_over()
        trainer.start_finetuning()
        assert not trainer.done()
        assert all(torch.equal(left[name], value) for name, value in trainer.model.state_dict().items())


def test_a_model_without_a_density_is_refused(tmp_path, moons):
    with pytest.raises(training.TrainingError, match="no density to fine-tune, expected one"):
        _train(tmp_path / "run", moons, steps=1)
