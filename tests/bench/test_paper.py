"""The experiments' shared parts, and one of them run whole on a few small images."""

import json
import sys

import numpy as np
import pytest
import torch

from fastcsm import data
from fastcsm.bench.paper import common, likelihood
from fastcsm.nn import MADE
from fastcsm.training import Config

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def _grey(tmp_path, rows=80):
    values = np.random.default_rng(0).integers(0, 256, (rows, 3, 3), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", train_x=values[:-20], test_x=values[-20:])
    return str(tmp_path / "grey.npz")


def test_a_cell():
    assert common.cell({"mean": 2.0, "standard_error": 0.5}, 1) == "2.0 ± 0.5"
    assert common.cell(None) == "-"


def test_only_weights_inside_masks_count():
    made = MADE(2, (4,), 3)  # the second variable's 3 outputs read 4 units, which read the first variable
    assert common.parameters(made) == (4 + 4) + (12 + 6)


def test_noise_is_independent_of_dequantisation(tmp_path):
    grey = data.load(_grey(tmp_path, rows=3020))
    grey = data.Dataset("grey", grey.test, grey.train, grey.train, grey.transform)
    clean, noisy = grey.held_out("test", 0), common.noisy(grey, 0.1)
    share, z = ((clean + 1) * 128).remainder(1.0).flatten(), (noisy - clean).flatten()
    assert z.std().item() == pytest.approx(0.1, rel=0.03)
    assert abs(torch.corrcoef(torch.stack([share, z]))[0, 1]) < 4 / len(z) ** 0.5
    twice = common.noisy(grey, 0.1, repeats=2, limit=5)
    assert torch.equal(twice[:5], common.noisy(grey, 0.1, limit=5))
    assert not torch.equal(twice[5:], twice[:5])


def test_the_baseline_learns_and_is_kept(tmp_path):
    toy, like = data.load("moons"), Config(steps=150, lr=1e-2, batch_size=64, ema=0.9, schedule="cosine")
    config = common.MixtureConfig.beside(like, hidden=(16,), components=4)
    x = toy.held_out("test", 0, 500)
    before = config.build(2).log_prob(x).mean().item()
    fitted, done = common.trained(config, toy, tmp_path / "run")
    assert done["steps"] == 150
    assert fitted.log_prob(x).mean().item() > before + 0.5
    again, _ = common.trained(config, toy, tmp_path / "run")
    assert torch.equal(again.log_prob(x), fitted.log_prob(x))


def test_the_baseline_is_trained_on_noisy_rows():
    made, x = common.MixtureConfig(hidden=(16,), sigma=0.5).build(2), torch.zeros(4000, 2)
    (z,) = noise = made.draw_noise(x.shape, torch.Generator().manual_seed(0))
    assert z.std().item() == pytest.approx(1.0, rel=0.03)
    assert torch.equal(made.loss(x, noise=noise), -made.log_prob(x + 0.5 * z).mean())


def test_the_likelihood_experiment(tmp_path, monkeypatch):
    small = {"hidden": (8,), "context_features": 2, "head_hidden": (8,), "frequencies": 2, "batch_size": 16}
    monkeypatch.setattr(likelihood, "SETTINGS", likelihood.SETTINGS | small | {"lr": 1e-2})
    monkeypatch.setattr(likelihood, "LOGITS", likelihood.LOGITS | small)
    out = tmp_path / "result"
    options = ["--runs", str(tmp_path / "runs"), "--out", str(out), "--minutes", "0.03", "--rows", "4"]
    monkeypatch.setattr(sys, "argv", ["likelihood.py", _grey(tmp_path), *options, "--sigma-min", "0.1"])
    monkeypatch.setattr(likelihood, "FIRST_WIDTH", 8)
    assert likelihood.main() == 0
    result = json.loads(out.with_suffix(".json").read_text())
    rows = list(result["rows"].values())
    assert [name[:4] for name in result["rows"]] == ["AR-C", "AR-C", "MADE", "AR-C", "MADE"]
    assert [row["kind"] for row in rows] == ["grey"] * 3 + ["logits"] * 2
    for first, made in ((0, 2), (3, 4)):
        assert rows[made]["training"]["parameters"] >= rows[first]["training"]["parameters"]
    assert rows[2]["bits_per_dimension"]["mean"] > 7
    assert "nats_of_logits" not in rows[0]
    assert rows[3]["nats_of_logits"]["mean"] != rows[3]["nats"]["mean"]
    assert str(tmp_path) not in json.dumps(result)
    assert likelihood.text(result).count("\n| ") == 7
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "logits"])
    assert likelihood.main() == 0
    again = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [again[name] for name in list(again)[:3]] == rows[:3]
