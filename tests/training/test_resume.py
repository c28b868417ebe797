"""A run killed by SIGKILL at random moments and resumed ends as the run that was never killed."""

import multiprocessing
import random
import time

import pytest
import torch

from fastcsm import data, training
from fastcsm.training import Config, checkpoint

pytest.importorskip("safetensors")

KILLS = 10
CONFIG = {
    "data": "eight_gaussians",
    "hidden": (16, 16),
    "context_features": 4,
    "head_hidden": (16,),
    "frequencies": 4,
    "dropout": 0.1,
    "batch_size": 64,
    "steps": 800,
    "log_every": 7,
    "eval_every": 50,
    "schedule": "cosine",
    "checkpoint_seconds": 0.05,
}


def _data():
    found = data.load("eight_gaussians")
    return type(found)(found.name, found.train[:1000], found.val[200:400], found.test[:200], found.transform)


def _go(run, config):
    torch.set_num_threads(1)
    resume = run.exists()
    training.train(Config(**config), _data(), run, resume=resume, quiet=True)


@pytest.fixture(scope="module")
def context():
    """Processes forked from one that has imported everything, so that a start is cheap."""
    found = multiprocessing.get_context("forkserver")
    modules = ["fastcsm.training", "safetensors.torch", "torch._dynamo", "matplotlib.backends.backend_agg"]
    found.set_forkserver_preload(modules)
    process = found.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    return found


def _finish(context, run, config):
    process = context.Process(target=_go, args=(run, config))
    process.start()
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.parametrize("form", [{"continuous": True, "keep": "best"}, {"noise": "staged", "levels": 4}])
def test_ten_kills_change_nothing(tmp_path, context, form):
    config, kills, steps = CONFIG | form, KILLS if "continuous" in form else 3, []
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.monotonic()
    _finish(context, whole, config)
    seconds = time.monotonic() - started
    rng = random.Random(0)
    while len(steps) < kills or (steps[-1] == 0 and len(steps) < 3 * kills):
        process = context.Process(target=_go, args=(killed, config))
        process.start()
        # Later kills come later, in case that the machine has become slower.
        time.sleep(rng.uniform(0.4, 1.6) * seconds / kills * max(1, len(steps) - kills))
        process.kill()
        process.join()
        steps.append(checkpoint.read(killed, tensors=()).state["step"] if killed.exists() else 0)
    assert steps == sorted(steps)
    _finish(context, killed, config)

    a, b = checkpoint.read(whole), checkpoint.read(killed)
    assert a.state["step"] == b.state["step"] == config["steps"]
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    logs = [training.read_log(run / "log.csv") for run in (whole, killed)]
    for rows in logs:
        for row in rows:
            del row["seconds"]
    assert logs[0] == logs[1]
    assert steps[-1] > 0, "no kill came after a checkpoint"
