import dataclasses
import json
import math

import pytest
import torch

from fastcsm import data, training
from fastcsm.evaluation import evaluate
from fastcsm.training import Config, checkpoint, folder
from fastcsm.training.distributed import Group
from fastcsm.training.trainer import Trainer

pytest.importorskip("safetensors")

SMALL = {
    "data": "moons",
    "hidden": (16,),
    "context_features": 4,
    "head_hidden": (16,),
    "frequencies": 4,
    "batch_size": 32,
    "steps": 12,
    "log_every": 4,
    "eval_every": 6,
}


def _preset(name, **changes):
    """The settings of a preset, but for its sizes."""
    return {key: value for key, value in Config.presets[name].items() if key not in SMALL} | changes


@pytest.fixture(scope="module")
def moons():
    found = data.load("moons")
    return type(found)(found.name, found.train[:300], found.val[100:200], found.test[:100], found.transform)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _train(run, moons, **changes):
    return training.train(Config(**(SMALL | changes)), moons, run, quiet=True)


def _weights(run):
    return checkpoint.read(run).tensors


def _log(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in training.read_log(run / "log.csv")]


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_folder(tmp_path, moons):
    state = torch.random.get_rng_state()
    summary = _train(tmp_path / "run", moons)
    assert torch.equal(torch.random.get_rng_state(), state)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names >= {"checkpoint.safetensors", "config.json", "log.csv"}
    assert Config.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())) == Config(**SMALL)
    rows = training.read_log(tmp_path / "run" / "log.csv")
    assert [r["step"] for r in rows] == [4, 8, 12]
    assert [r["held_out"] is not None for r in rows] == [False, True, True]
    assert summary["steps"] == 12
    assert summary["held_out"] == rows[-1]["held_out"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_seed_decides_everything(tmp_path, moons):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _train(tmp_path / name, moons, seed=seed, dropout=0.2)
    a, b, c = (_weights(tmp_path / name) for name in "abc")
    assert _same(a, b)
    assert not _same(a, c)


def test_the_defaults_of_torch_have_no_part(tmp_path, moons):
    _train(tmp_path / "a", moons)
    expected = evaluate(checkpoint.load(tmp_path / "a"), moons.test)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        _train(tmp_path / "b", moons)
        assert torch.get_default_dtype() is torch.float64
        found = evaluate(checkpoint.load(tmp_path / "b"), moons.test)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert _same(_weights(tmp_path / "a"), _weights(tmp_path / "b"))
    assert found == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "denoising", "optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine"},
        {"noise": "staged", "levels": 3, "schedule": "cosine"},
        {"noise": "none", "step_size": 0.01},
        {"continuous": True, "dropout": 0.3, "ema": 0.0, "order": "random"},
        {"residual": True, "hidden": (16, 16), "clip": 0.0, "batch_size": 700},
        {"dtype": "float64"},
        {"dtype": "bfloat16", "frequencies": 0},
        {"keep": "best", "patience": 3, "eval_every": 2},
        _preset("table", objective="denoising", level_draws=4, finetune_steps=3),
        _preset("images", frequencies=0, batch_size=310),
        _preset("table", batch_size=1, dtype="bfloat16"),
    ],
)
def test_every_setting_trains_resumes_and_samples(tmp_path, moons, changes, stop_at):
    config = Config(**(SMALL | changes))
    step = 8 if not changes else 7
    training.train(config, moons, tmp_path / "whole", quiet=True)
    stop_at(step)
    with pytest.raises(training.Interrupted, match=f"SIGTERM at step {step}, checkpoint saved") as stopped:
        training.train(config, moons, tmp_path / "parts", quiet=True)
    assert stopped.value.code == 143
    training.train(config, moons, tmp_path / "parts", resume=True, quiet=True)
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))
    assert _log(tmp_path / "whole") == _log(tmp_path / "parts")
    model = checkpoint.load(tmp_path / "parts")
    x = model.sample(3, steps=2, step_size=config.step_size)
    assert x.shape == (3, 2)
    assert x.dtype is getattr(torch, config.dtype)


def _scripted(monkeypatch, losses):
    """Held-out losses from a list instead of the model's."""
    rest = iter(losses)
    monkeypatch.setattr(Trainer, "evaluate", lambda trainer, rows=None: 0.0 if rows else next(rest))


def test_patience_ends_training_and_the_best_weights_are_kept(tmp_path, moons, monkeypatch):
    _scripted(monkeypatch, [3.0, 1.0, 2.0, 1.0, 1.5])
    summary = _train(tmp_path / "run", moons, eval_every=2, steps=50, patience=3, keep="best")
    assert summary["steps"] == 10
    assert (summary["best_held_out"], summary["best_step"]) == (1.0, 4)
    monkeypatch.undo()
    _train(tmp_path / "short", moons, eval_every=2, steps=4)
    kept, short = checkpoint.load(tmp_path / "run"), checkpoint.load(tmp_path / "short")
    assert _same(kept.state_dict(), short.state_dict())
    last = checkpoint.load(tmp_path / "run", ema=False)
    assert _same(last.state_dict(), checkpoint.read(tmp_path / "run").under("model"))
    assert not _same(last.state_dict(), kept.state_dict())


def test_more_patience_goes_on(tmp_path, moons, monkeypatch):
    _scripted(monkeypatch, [1.0, 2.0])
    _train(tmp_path / "run", moons, eval_every=2, steps=20, patience=1)
    assert checkpoint.read(tmp_path / "run").state["step"] == 4
    _scripted(monkeypatch, [3.0, 0.5, 0.7, 0.8])
    config = Config(**(SMALL | {"eval_every": 2, "steps": 20, "patience": 2}))
    summary = training.train(config, moons, tmp_path / "run", resume=True, quiet=True)
    assert summary["steps"] == 6
    summary = training.train(config, moons, tmp_path / "run", resume=True, quiet=True)
    assert summary["steps"] == 6


def test_weights_are_not_chosen_by_test_rows(tmp_path, moons):
    same = dataclasses.replace(moons, val=moons.test)
    for changes in ({"patience": 1}, {"keep": "best"}):
        with pytest.raises(training.TrainingError, match="the held-out rows of 'moons' are its test rows"):
            _train(tmp_path / "run", same, **changes)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="noise 'staged', whose losses at different levels do not compare"):
        Config(noise="staged", keep="best")


@pytest.mark.parametrize("preset", ["paper", "table"])
def test_training_approaches_the_data(tmp_path, preset):
    toy = data.load("eight_gaussians")
    settings = {
        "data": "eight_gaussians",
        "hidden": (32, 32),
        "context_features": 8,
        "head_hidden": (32, 32),
        "sigma_min": 0.05,
        "objective": "denoising",
        "continuous": True,
        "lr": 3e-3,
        "schedule": "cosine",
        "batch_size": 256,
        "steps": 400,
        "ema": 0.99,
        "keep": "last",
    }
    # The table's own head and likelihood on standardised columns.
    kept = ("context_features", "head_hidden", "objective", "sigma_min") if preset == "table" else ()
    own = {key: value for key, value in settings.items() if key not in kept}
    own |= {"steps": 200, "denoise_first": 0.0} if preset == "table" else {}
    config = Config(**(Config.presets[preset] | own))
    summary = training.train(config, toy, tmp_path / "run", quiet=True)
    first = training.read_log(tmp_path / "run" / "log.csv")[0]
    assert summary["loss"] < first["loss"] - 0.03
    x = checkpoint.load(tmp_path / "run").sample(1000, steps=20)
    radius = x.norm(dim=1)
    assert 0.6 < radius.median() < 0.8
    assert ((radius > 0.4) & (radius < 1.0)).float().mean() > 0.75


def test_batches_are_permutations_laid_end_to_end(moons):
    config = Config(**(SMALL | {"batch_size": 70}))
    trainer = Trainer(config, moons, torch.device("cpu"), None, Group(torch.device("cpu")))
    seen = []
    for step in range(30):
        trainer.step = step
        seen.append(trainer._indices())
    stream = torch.cat(seen)
    for epoch in range(7):
        assert torch.equal(stream[epoch * 300 : (epoch + 1) * 300].sort().values, torch.arange(300))
    assert not torch.equal(stream[:300], stream[300:600])
    trainer.step, again = 4, seen[4]
    assert torch.equal(trainer._indices(), again)


def test_an_existing_folder_is_refused(tmp_path, moons):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(training.TrainingError, match="exists: give another folder, or --resume"):
        _train(tmp_path / "run", moons)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    _train(tmp_path / "empty", moons, steps=1)


def test_other_data_are_refused_on_resume(tmp_path, moons):
    _train(tmp_path / "run", moons, steps=1)
    other = type(moons)(moons.name, moons.train[1:], moons.val, moons.test, moons.transform)
    with pytest.raises(training.TrainingError, match="not what the run was trained on"):
        training.train(Config(**SMALL), other, tmp_path / "run", resume=True, quiet=True)


def test_two_processes_cannot_share_a_folder(tmp_path, moons):
    _train(tmp_path / "run", moons, steps=1)
    with (
        folder.lock(tmp_path / "run"),
        pytest.raises(training.TrainingError, match="being trained by another process"),
    ):
        training.train(Config(**SMALL), moons, tmp_path / "run", resume=True, quiet=True)


def test_a_diverging_run_stops_and_keeps_its_checkpoint(tmp_path, moons):
    with pytest.raises(training.TrainingError, match="expected finite numbers"):
        _train(tmp_path / "run", moons, lr=1e30, steps=50, clip=0.0, checkpoint_seconds=0.0)
    saved = checkpoint.read(tmp_path / "run")
    assert saved.state["step"] < 50


def test_the_time_budget_ends_a_run_and_its_schedule(tmp_path, moons):
    summary = _train(tmp_path / "run", moons, steps=10**6, max_minutes=0.01, schedule="cosine", log_every=1)
    assert 0 < summary["steps"] < 10**6
    assert 0.6 <= summary["seconds"] < 10
    rates = [r["lr"] for r in training.read_log(tmp_path / "run" / "log.csv")]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]


def test_the_table_preset_does_not_swing_out_at_the_start(tmp_path, moons):
    own = {"data": moons.name, "steps": 40, "orders": 1, "keep": "last", "validation": 0.1}
    training.train(Config(**(Config.presets["table"] | own)), moons, tmp_path / "run", quiet=True)
    assert training.read_log(tmp_path / "run" / "log.csv")[-1]["held_out"] < 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_over_the_first_steps(tmp_path, moons, schedule):
    own = {"steps": 8, "log_every": 1, "schedule": schedule, "warmup_steps": 4, "final_lr": 0.0}
    _train(tmp_path / "run", moons, **own)
    rates = [r["lr"] / Config().lr for r in training.read_log(tmp_path / "run" / "log.csv")]
    decay = [(1 + math.cos(math.pi * n / 8)) / 2 if schedule == "cosine" else 1.0 for n in range(8)]
    expected = [min(1.0, (n + 1) / 4) * value for n, value in enumerate(decay)]
    assert rates == pytest.approx(expected, abs=2e-5)


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path, moons):
    _train(tmp_path / "whole", moons)
    _train(tmp_path / "run", moons)
    log = tmp_path / "run" / "log.csv"
    log.write_text(log.read_text() + "16,1.7,0,0.0002,1.0,1.0,,0.1\n20,2.1,0,0.00")
    training.train(Config(**(SMALL | {"steps": 16})), moons, tmp_path / "run", resume=True, quiet=True)
    steps = [r["step"] for r in training.read_log(log)]
    assert steps == [4, 8, 12, 16]


def test_evaluation_levels_and_their_identity():
    config = Config(**(SMALL | {"levels": 3}))
    model = config.build(2).double().eval()
    x = torch.randn(20_000, 2, dtype=torch.float64)
    rows = evaluate(model, x)
    assert [r["sigma"] for r in rows] == model.noise.sigmas
    for row in rows:
        gap = row["denoising"]["mean"] - row["csm"]["mean"]
        assert gap == pytest.approx(0.5, abs=6 * row["denoising"]["standard_error"])
    assert [r["sigma"] for r in evaluate(model, x[:10], sigmas=[0.5])] == [0.5]
    with pytest.raises(ValueError, match="expected positive numbers"):
        evaluate(model, x, sigmas=[-1.0])


def test_evaluation_of_staged_and_plain_models():
    staged = Config(**(SMALL | {"noise": "staged", "levels": 3})).build(2).eval()
    staged.advance_stage()
    x = torch.randn(50, 2)
    assert [r["sigma"] for r in evaluate(staged, x)] == staged.noise.sigmas[:2]
    with pytest.raises(ValueError, match="expected among the model's trained levels"):
        evaluate(staged, x, sigmas=[0.5])
    plain = Config(**(SMALL | {"noise": "none"})).build(2).eval()
    (row,) = evaluate(plain, x)
    assert row["denoising"] is None
    assert row["csm"]["mean"] == pytest.approx(plain.csm_loss(x).item() / 2, rel=1e-5)
