"""A model that neither the trainer nor the command line has heard of, by a recipe of its own."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from fastcsm import cli
from fastcsm.nn import Average, MixtureMADE, NoiseSchedule
from fastcsm.training import Config, checkpoint, load
from fastcsm.training.config import POSITIVE, RunConfig, option
from fastcsm.training.recipes import RECIPES, from_dict

pytest.importorskip("safetensors")


@dataclass(frozen=True)
class MixtureConfig(RunConfig):
    model: ClassVar[str] = "mixture"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": {"components": 3, "batch_size": 32}}
    components: int = option(10, "model", "logistics in each mixture", check=POSITIVE)

    def build(self, features):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return MixtureMADE(features, (16,), self.components)


@pytest.fixture
def mixture(monkeypatch):
    for name in RECIPES.keys() - {"arcsm"}:  # programs of experiments add theirs
        monkeypatch.delitem(RECIPES, name)
    monkeypatch.setitem(RECIPES, "mixture", MixtureConfig)


def test_a_recipe_is_all_that_a_model_needs(mixture, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["train", "--model", "mixture", "--data", "moons", "--quiet", "--eval-every", "4"]
    assert cli.main([*options, "--out", str(whole), "--steps", "8"]) == 0
    assert cli.main([*options, "--out", str(parts), "--steps", "5"]) == 0
    assert cli.main(["train", "--out", str(parts), "--steps", "8", "--resume", "--quiet"]) == 0
    model, resumed = load(whole), load(parts)
    assert isinstance(model, MixtureMADE)
    assert model.components == 3
    for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    arrays = tmp_path / "x.npz"
    assert cli.main(["sample", str(whole), "--n", "5", "--seed", "3", "--out", str(arrays)]) == 0
    assert np.array_equal(np.load(arrays)["x"], model.sample(5, seed=3).numpy())
    capsys.readouterr()
    assert cli.main(["evaluate", str(whole), "--limit", "40", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["likelihood"]
    assert row["method"] == "exact"
    assert row["nats"]["mean"] == pytest.approx(-row["nats_per_dimension"]["mean"] * -2)
    assert cli.main(["evaluate", str(whole), "--limit", "40"]) == 0
    assert "exact" in capsys.readouterr().out
    assert cli.main(["evaluate", str(whole), "--method", "flow"]) == 2
    assert "method is 'flow', expected 'exact' for this model" in capsys.readouterr().err


def test_configurations_come_back_as_what_they_were(mixture):
    for config in (Config(levels=4), MixtureConfig(components=2)):
        assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
    before = {name: value for name, value in Config(levels=4).to_dict().items() if name != "model"}
    assert from_dict(before) == Config(levels=4)
    with pytest.raises(ValueError, match="config has the model 'other', expected one of arcsm, mixture"):
        from_dict({"model": "other"})
    with pytest.raises(ValueError, match="config has the unknown field 'components'"):
        from_dict({"components": 2})


def test_a_checkpoint_of_a_model_that_is_not_known_says_so(mixture, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert (
        cli.main(["train", "--model", "mixture", "--data", "moons", "--out", str(run), "--steps", "1"]) == 0
    )
    monkeypatch.delitem(RECIPES, "mixture")
    with pytest.raises(checkpoint.CheckpointError, match="config has the model 'mixture'"):
        load(run)


#: Fields of preconditioned models, with the values that runs without them had.
PLAIN = {
    "orders": 1,
    "denoise_first": 0.0,
    "precondition": "none",
    "level_power": 1.0,
    "level_draws": 1,
    "warmup_steps": 0,
}


def test_a_configuration_without_the_fields_of_preconditioned_models_is_plain():
    values = {name: value for name, value in Config(levels=4).to_dict().items() if name not in PLAIN}
    config = from_dict(json.loads(json.dumps(values)))
    assert {name: getattr(config, name) for name in PLAIN} == PLAIN
    model = config.build(2)
    assert model.precondition is None
    assert repr(model.noise) == repr(NoiseSchedule(1.0, 0.04, 4))


@pytest.mark.parametrize("name", list(Config.presets))
def test_presets_are_what_they_say(name):
    config = Config(**(Config.presets[name] | {"hidden": (16, 16), "levels": 3}))
    whole = config.build(4)
    model = whole.models[1] if isinstance(whole, Average) else whole
    assert isinstance(whole, Average) == (name == "table")
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert model.precondition == {"table": "moments", "images": "standard"}.get(name)
    assert model.objective == {"paper": "csm", "digits": "csm", "table": "likelihood"}.get(name, "denoising")
    schedule = model.noise
    if model.precondition:
        # The distance of the first level is what makes the Gaussian start right.
        assert schedule.sigma_max >= 20
        assert (schedule.continuous, schedule.power, schedule.draws) == (True, 2.0, 4)
        assert model.denoise_first == (0.25 if name == "table" else 0)
        head = model.head
        assert head.weights[0][:, :-2].std() * config.context_features**0.5 > 0.9
        assert head.weights[-1].std() < 0.11 * head.weights[-1].shape[1] ** -0.5
        assert model.context_net.context_features - head.context_features + 1 == 2 * (name == "table")
    else:
        assert (schedule.power, schedule.draws) == (1, 1)
    state = torch.random.get_rng_state()
    again = config.build(4).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, again[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precondition": "mean"}, "precondition is 'mean', expected one of none, standard, moments"),
        (
            {"precondition": "moments", "noise": "staged"},
            "precondition is 'moments' with noise 'staged', expected 'conditional'",
        ),
        (
            {"objective": "likelihood"},
            "objective is 'likelihood' with precondition 'none', expected another of them",
        ),
        ({"denoise_first": 0.5, "noise": "none"}, "denoise_first is 0.5 with noise 'none', expected 0"),
        ({"orders": 0}, "orders is 0, expected a positive number"),
        ({"level_power": 0.5}, r"level_power is 0\.5, expected at least 1"),
        ({"level_power": 2.0}, r"level_power is 2\.0 without continuous levels, expected 1"),
        ({"level_draws": 0}, "level_draws is 0, expected a positive number"),
        ({"level_draws": 4, "noise": "staged"}, "level_draws is 4 with noise 'staged', expected 1"),
        ({"level_draws": 2, "noise": "none"}, "level_draws is 2 with noise 'none', expected 1"),
    ],
)
def test_settings_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
