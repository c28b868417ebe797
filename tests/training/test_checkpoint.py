import dataclasses
import errno
import json
import os
import pickle

import pytest
import torch

from fastcsm.data import Transform
from fastcsm.training import Checkpoint, CheckpointError, Config, checkpoint

pytest.importorskip("safetensors")

CONFIG = Config(data="moons", hidden=(8,), context_features=3, head_hidden=(8,), frequencies=2)


def _checkpoint(config=CONFIG, stage=0):
    model = config.build(2)
    for _ in range(stage):
        model.advance_stage()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    transform = Transform((2,), 0, (0.0, 0.0), (1.0, 1.0))
    return Checkpoint(config, transform, "abc", {"step": 7, "stage": stage}, tensors)


def test_round_trip(tmp_path):
    saved = _checkpoint()
    checkpoint.save(tmp_path, saved)
    found = checkpoint.read(tmp_path)
    assert (found.config, found.transform, found.fingerprint, found.state) == (
        saved.config,
        saved.transform,
        saved.fingerprint,
        saved.state,
    )
    assert found.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(found.tensors[k], saved.tensors[k]) for k in saved.tensors)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


def test_a_file_that_cannot_be_mapped(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    checkpoint.save(tmp_path, _checkpoint())
    whole = checkpoint.read(tmp_path, tensors=("ema",))
    monkeypatch.setattr("safetensors.safe_open", refuse)
    found = checkpoint.read(tmp_path, tensors=("ema",))
    assert dataclasses.replace(found, tensors={}) == dataclasses.replace(whole, tensors={})
    assert found.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(found.tensors[k], whole.tensors[k]) for k in whole.tensors)
    path = tmp_path / checkpoint.FILE_NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoint.read(tmp_path)


def test_load_gives_the_averaged_model(tmp_path):
    saved = _checkpoint()
    checkpoint.save(tmp_path, saved)
    average, last = checkpoint.load(tmp_path), checkpoint.load(tmp_path, ema=False)
    assert not average.training
    for name, value in last.state_dict().items():
        assert torch.equal(value, saved.tensors[f"model.{name}"])
        assert torch.equal(average.state_dict()[name], saved.tensors[f"ema.{name}"])
    assert average.sample(3).shape == (3, 2)


def test_load_without_averages_gives_the_model(tmp_path):
    saved = _checkpoint()
    tensors = {k: v for k, v in saved.tensors.items() if k.startswith("model.")}
    checkpoint.save(tmp_path, Checkpoint(saved.config, saved.transform, "abc", saved.state, tensors))
    assert torch.equal(checkpoint.load(tmp_path).head.weights[0], saved.tensors["model.head.layers.0.weight"])


def test_stages_come_back(tmp_path):
    config = dataclasses.replace(CONFIG, noise="staged", levels=4)
    saved = _checkpoint(config, stage=3)
    checkpoint.save(tmp_path, saved)
    model = checkpoint.load(tmp_path)
    assert (model.stage, len(model.stages)) == (3, 3)
    assert model.sample(3).shape == (3, 2)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, _checkpoint())
    before = (tmp_path / checkpoint.FILE_NAME).read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastcsm.atomic.os.fsync", broken)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, _checkpoint())
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*expected a run folder"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated(tmp_path, keep):
    checkpoint.save(tmp_path, _checkpoint())
    path = tmp_path / checkpoint.FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="not a whole safetensors file") as error:
        checkpoint.load(tmp_path)
    assert "\n" not in str(error.value)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code was executed",))


def test_a_pickle_is_never_executed(tmp_path):
    (tmp_path / checkpoint.FILE_NAME).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoint.load(tmp_path)
    torch.save({"model": torch.ones(3)}, tmp_path / checkpoint.FILE_NAME)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoint.load(tmp_path)


def _rewrite(folder, **changes):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = folder / checkpoint.FILE_NAME
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(
        load_file(path), path, metadata={k: v for k, v in (metadata | changes).items() if v is not None}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": None}, "not written by fastcsm"),
        ({"format": "pt"}, "not written by fastcsm"),
        ({"version": "99"}, "version 99, expected 1"),
        ({"config": "{"}, "damaged header"),
        ({"config": json.dumps({"data": 3})}, "data is 3, expected a text"),
        ({"config": json.dumps({"surprise": 3})}, "unknown field 'surprise'"),
        ({"transform": None}, "damaged header"),
        ({"state": "[1]"}, "damaged header"),
        ({"config": json.dumps(CONFIG.to_dict() | {"hidden": [9]})}, r"has shape .*expected"),
        ({"config": json.dumps(CONFIG.to_dict() | {"hidden": [8, 8]})}, "does not fit its own configuration"),
    ],
)
def test_foreign_headers(tmp_path, changes, words):
    checkpoint.save(tmp_path, _checkpoint())
    _rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=words) as error:
        checkpoint.load(tmp_path)
    assert "\n" not in str(error.value)


def test_config_refuses_what_is_out_of_range():
    for changes, words in [
        ({"lr": -1.0}, "lr is -1.0, expected a positive number"),
        ({"lr": float("nan")}, "lr is nan, expected a number"),
        ({"levels": 2.5}, "levels is 2.5, expected a whole number"),
        ({"hidden": []}, "hidden is .*, expected one or more"),
        ({"objective": "mle"}, "objective is 'mle', expected one of csm, denoising"),
        ({"sigma_min": 2.0}, "sigma_min is 2.0, expected at most sigma_max"),
        ({"levels": 1}, "levels is 1, expected 1 exactly when"),
        ({"continuous": True, "noise": "staged"}, "continuous is set"),
        ({"objective": "denoising", "noise": "none"}, "objective is 'denoising'"),
        ({"residual": True, "hidden": (4, 5)}, "expected equal widths"),
        ({"residual": 1}, "residual is 1, expected true or false"),
    ]:
        with pytest.raises(ValueError, match=words):
            Config(**changes)
