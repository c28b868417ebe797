import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fastcsm import cli, data, training
from fastcsm.cli import demo, evaluate
from fastcsm.training import PRESETS, Config, checkpoint

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

SMALL = [
    "--hidden",
    "16",
    "--context-features",
    "4",
    "--head-hidden",
    "16",
    "--frequencies",
    "4",
    "--batch-size",
    "32",
    "--device",
    "cpu",
]


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(evaluate, "_PICTURE_POINTS", 20)
    monkeypatch.setattr(sys.modules["fastcsm.evaluation.likelihood"], "GRID_POINTS", 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert (
        cli.main(["train", "--data", "moons", "--out", str(folder), *SMALL, "--steps", "20", "--quiet"]) == 0
    )
    return folder


def test_help_names_every_hyper_parameter(capsys):
    for command in ("train", "sample", "evaluate", "info", "demo", "bench"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "usage: fastcsm" in text
        if command == "train":
            for name in [item.name for item in dataclasses.fields(Config)]:
                assert f"--{name.replace('_', '-')}" in text
            for words in ("(default: 0.0002) [paper]", "sigma_1 (default: 1.0) [paper]", "T per noise level"):
                assert words in " ".join(text.split())


def test_presets_are_valid():
    for values in PRESETS.values():
        Config(**values)
    assert Config(**demo.SETTINGS).max_minutes <= 3


def test_train_prints_where_and_what(tmp_path, capsys):
    arguments = ["train", "--data", "moons", "--out", str(tmp_path / "r"), *SMALL, "--steps", "4"]
    assert cli.main(arguments) == 0
    assert "r: 4 steps in" in capsys.readouterr().out
    assert (tmp_path / "r" / "loss.png").stat().st_size > 1000
    assert cli.main([*arguments[:-2], "--steps", "8", "--resume"]) == 0
    assert "8 steps in" in capsys.readouterr().out
    assert json.loads((tmp_path / "r" / "config.json").read_text())["steps"] == 8


def test_resume_starts_what_is_not_there_yet(tmp_path, capsys):
    out = str(tmp_path / "r")
    assert cli.main(["train", "--data", "moons", "--out", out, *SMALL, "--steps", "2", "--resume"]) == 0
    assert "nothing to resume" in capsys.readouterr().err
    assert cli.main(["train", "--out", out, "--resume"]) == 0


def test_options_override_presets(tmp_path):
    out = tmp_path / "r"
    cli.main(
        ["train", "--data", "moons", "--preset", "toy", "--out", str(out), *SMALL, "--steps", "1", "--quiet"]
    )
    config = checkpoint.read(out, tensors=()).config
    assert (config.sigma_max, config.hidden, config.steps, config.lr) == (2.0, (16,), 1, 2e-3)


def test_sample_writes_pictures_and_arrays(run, tmp_path, capsys):
    arrays = tmp_path / "x.npz"
    assert (
        cli.main(["sample", str(run), "--n", "5", "--steps", "2", "--seed", "3", "--out", str(arrays)]) == 0
    )
    with np.load(arrays, allow_pickle=False) as found:
        assert found["x"].shape == found["samples"].shape == (5, 2)
        again = checkpoint.load(run).sample(5, steps=2, seed=3).numpy()
        np.testing.assert_array_equal(found["x"], again)
    picture = tmp_path / "x.png"
    assert cli.main(["sample", str(run), "--n", "5", "--steps", "2", "--denoise", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "5 samples in" in capsys.readouterr().out
    before = picture.read_bytes()
    assert cli.main(["sample", str(run), "--n", "5", "--out", str(picture)]) == 2
    assert picture.read_bytes() == before
    assert (
        cli.main(["sample", str(run), "--n", "7", "--steps", "2", "--out", str(picture), "--overwrite"]) == 0
    )
    assert picture.read_bytes() != before


def test_evaluate_prints_a_table_and_json(run, tmp_path, capsys):
    out = tmp_path / "e.json"
    assert (
        cli.main(["evaluate", str(run), "--limit", "200", "--sigmas", "0.5", "0.1", "--out", str(out)]) == 0
    )
    table = capsys.readouterr().out
    assert "denoising" in table
    assert "0.5000" in table
    result = json.loads(out.read_text())
    assert [level["sigma"] for level in result["levels"]] == [0.5, 0.1]
    assert result["samples"] == 200
    assert cli.main(["evaluate", str(run), "--limit", "200", "--sigmas", "0.5", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["levels"][0] == result["levels"][0]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A run trained long enough for every conditional to have a density."""
    folder = tmp_path_factory.mktemp("cli") / "dense"
    options = ["--sigma-min", "0.1", "--lr", "0.01", "--steps", "150", "--ema", "0", "--quiet"]
    assert cli.main(["train", "--data", "moons", "--out", str(folder), *SMALL, *options]) == 0
    return folder


def test_evaluate_prints_likelihoods(dense, tmp_path, capsys):
    out = tmp_path / "e.json"
    assert cli.main(["evaluate", str(dense), "--limit", "60", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "0 of 60" in table
    result = json.loads(out.read_text())
    assert "draws by flow: " in table
    assert result["draws"]["per_second"] == result["draws"]["samples"] / result["draws"]["seconds"] > 0
    model, x = checkpoint.load(dense), data.load("moons").held_out("test", 0, 60)
    z = evaluate.noise_on(x, 0)
    for row, method in zip(result["likelihood"], ("flow", "quadrature"), strict=True):
        with torch.no_grad():
            nats = -model.log_prob(x + 0.1 * z, method).double()
        assert row["method"] == method
        assert row["noise"] == 0.1
        assert row["nats"]["mean"] == pytest.approx(nats.mean().item(), rel=1e-4)
        assert row["nats"]["standard_error"] == pytest.approx(nats.std().item() / 60**0.5, rel=1e-4)
        assert row["nats"]["worst"] == pytest.approx(nats.max().item(), rel=1e-4)
        assert row["nats"]["median"] == pytest.approx(nats.quantile(0.5).item(), rel=1e-4)
        assert row["nats_per_dimension"]["mean"] == pytest.approx(nats.mean().item() / 2, rel=1e-4)
        assert f"{row['nats']['mean']:.3f} +- " in table
        assert row["diverged"] == 0
        assert 0 < row["error"]["mean"] <= row["error"]["largest"] < 1e-2
    picture = dense / "density.png"
    assert f"see {picture}" in table
    assert result["picture"] == str(picture)
    before = picture.read_bytes()
    assert before.startswith(b"\x89PNG")
    few = ["evaluate", str(dense), "--limit", "30", "--method", "quadrature"]
    assert cli.main([*few, "--json"]) == 0
    said = capsys.readouterr()
    assert "density.png' exists and is kept" in said.err
    assert json.loads(said.out)["picture"] is None
    assert picture.read_bytes() == before
    assert cli.main([*few, "--overwrite"]) == 0
    assert picture.read_bytes() != before
    assert "likelihood" in capsys.readouterr().out
    assert cli.main(["evaluate", str(dense), "--limit", "30", "--method", "none"]) == 0
    said = capsys.readouterr().out
    assert "likelihood" not in said
    assert "draws" not in said


def test_evaluate_tells_strange_rows(dense, tmp_path, capsys):
    far = np.random.default_rng(0).normal([2.0, -2.0], 0.05, size=(40, 2))
    np.savez(tmp_path / "far.npz", test_x=far)
    options = ["--limit", "40", "--method", "quadrature", "--json", "--ood", str(tmp_path / "far.npz")]
    assert cli.main(["evaluate", str(dense), *options]) == 0
    ood = json.loads(capsys.readouterr().out)["ood"]
    assert ood["samples"] == 40
    assert ood["auroc"]["log_likelihood"] > 0.99
    assert cli.main(["evaluate", str(dense), *options[:4], "--ood", "moons"]) == 0
    assert "log q(x), quadrature: 0.5000" in capsys.readouterr().out


def test_evaluate_reports_rows_without_a_density(run, capsys):
    assert cli.main(["evaluate", str(run), "--limit", "20", "--method", "quadrature", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["likelihood"]
    model, x = checkpoint.load(run), data.load("moons").held_out("test", 0, 20)
    z = evaluate.noise_on(x, 0)
    with torch.no_grad():
        missing = model.log_prob(x + model.noise.sigma_min * z, "quadrature").isnan().sum().item()
    assert row["diverged"] == missing > 0
    if missing == 20:
        assert row["nats"] is None


@pytest.mark.parametrize("alpha", ["0", "0.05"])
def test_evaluate_gives_bits_of_grey_values(tmp_path, capsys, alpha):
    values = np.random.default_rng(0).integers(0, 256, (400, 3), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", train_x=values)
    out = tmp_path / "run"
    options = ["--sigma-min", "0.2", "--lr", "0.01", "--steps", "200", "--ema", "0", "--quiet"]
    options += ["--logit-alpha", alpha]
    assert cli.main(["train", "--data", str(tmp_path / "grey.npz"), "--out", str(out), *SMALL, *options]) == 0
    assert cli.main(["evaluate", str(out), "--json", "--method", "flow"]) == 0
    noisy, clean = json.loads(capsys.readouterr().out)["likelihood"]
    assert (noisy["noise"], clean["noise"]) == (0.2, 0.0)
    assert "bits_per_dimension" not in noisy
    assert clean["nats_as_given"]["mean"] / 3 / np.log(2) == pytest.approx(
        clean["bits_per_dimension"]["mean"]
    )
    bits = clean["bits_per_dimension"]["mean"]
    assert 7.9 < bits < 8.6  # 8 is the entropy of uniform grey values
    transform = checkpoint.read(out, tensors=()).transform
    assert checkpoint.load(out).data_range == transform.data_range
    volume = transform.log_volume(data.load(tmp_path / "grey.npz").held_out("test", 0)).mean()
    nats = clean["nats_per_dimension"]["mean"]
    assert ("nats_of_logits" in clean) == (transform.logit_alpha == 0.05) == (alpha == "0.05")
    if alpha == "0":
        assert volume == pytest.approx(3 * np.log(128))
        assert bits == pytest.approx((nats + np.log(128)) / np.log(2), rel=1e-6)
    else:
        assert clean["nats_of_logits"]["mean"] == pytest.approx(3 * nats + transform.log_scale)
    picture = tmp_path / "x.png"
    assert cli.main(["evaluate", str(out), "--ood", "moons"]) == 2
    assert "expected 3 as in the run" in capsys.readouterr().err
    assert not picture.exists()


def test_noise_does_not_repeat_the_random_numbers_of_dequantisation():
    rows = torch.zeros(2000, 2, dtype=torch.uint8)
    grey = data.Dataset("grey", rows, rows, rows, data.Transform((2,), 256))
    x = grey.held_out("test", 3)
    share, z = ((x + 1) * 128).flatten(), evaluate.noise_on(x, 3).flatten()
    assert abs(torch.corrcoef(torch.stack([share, z]))[0, 1]) < 4 / len(z) ** 0.5


@pytest.mark.parametrize("method", ["flow", "inverse_cdf", "langevin"])
def test_sample_by_every_method(dense, tmp_path, method):
    arrays = tmp_path / "x.npz"
    assert (
        cli.main(["sample", str(dense), "--n", "6", "--seed", "2", "--method", method, "--out", str(arrays)])
        == 0
    )
    with np.load(arrays, allow_pickle=False) as found:
        again = checkpoint.load(dense).sample(6, method, seed=2)
        np.testing.assert_array_equal(found["x"], again.numpy())


def test_samples_without_a_density(run, dense, tmp_path, capsys):
    out = str(tmp_path / "x.npz")
    assert cli.main(["sample", str(run), "--n", "3", "--method", "inverse_cdf", "--out", out]) == 2
    assert "3 of 3 samples have a conditional without a density" in capsys.readouterr().err
    given = ["sample", str(dense), "--out", out, "--method", "flow", "--steps", "3"]
    assert cli.main(given) == 2
    assert "belong to Langevin dynamics, got method 'flow'" in capsys.readouterr().err


def test_evaluate_other_data(run, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    assert cli.main(["evaluate", str(run), "--data", str(tmp_path / "x.npy")]) == 0
    assert "5 test rows" in capsys.readouterr().out


def test_info(run, capsys):
    assert cli.main(["info"]) == 0
    assert "csm_loss" in capsys.readouterr().out
    assert cli.main(["info", str(run)]) == 0
    assert "step 20" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_backends_agree(run, tmp_path, capsys, backend):
    assert cli.main(["evaluate", str(run), "--limit", "50", "--json", "--backend", backend]) == 0
    found = json.loads(capsys.readouterr().out)["levels"][0]["csm"]["mean"]
    model = checkpoint.load(run)
    assert np.isfinite(found)
    assert model.training is False


def test_images_train_and_are_drawn(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, shape in (("grey", (4, 4)), ("colour", (3, 3, 3)), ("table", (5,))):
        values = rng.integers(0, 256, (40, *shape), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", train_x=values if name != "table" else values.astype(np.float32))
        out = tmp_path / name
        assert (
            cli.main(
                [
                    "train",
                    "--data",
                    str(tmp_path / f"{name}.npz"),
                    "--out",
                    str(out),
                    *SMALL,
                    "--steps",
                    "2",
                    "--quiet",
                ]
            )
            == 0
        )
        picture = tmp_path / f"{name}.png"
        assert cli.main(["sample", str(out), "--n", "6", "--steps", "1", "--out", str(picture)]) == 0
        assert picture.stat().st_size > 1000
        arrays = tmp_path / f"{name}-samples.npz"
        assert cli.main(["sample", str(out), "--n", "6", "--steps", "1", "--out", str(arrays)]) == 0
        with np.load(arrays, allow_pickle=False) as found:
            assert found["samples"].shape == (6, *shape)


def test_ctrl_c_saves_and_exits_130(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastcsm", "train", "--data", "moons", "--out", str(out), *SMALL]
    process = subprocess.Popen(
        [*command, "--steps", "1000000", "--log-every", "5"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "log.csv").exists() and training.read_log(out / "log.csv"):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "checkpoint saved" in errors
    step = checkpoint.read(out).state["step"]
    assert step >= training.read_log(out / "log.csv")[-1]["step"] > 0


def test_the_demo_runs_twice(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    small = {
        "hidden": (16,),
        "context_features": 4,
        "head_hidden": (16,),
        "frequencies": 2,
        "batch_size": 16,
        "steps": 4,
        "langevin_steps": 1,
        "levels": 3,
    }
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | small)
    monkeypatch.setattr(demo, "_table", lambda model, config: ("a table", {"rows": []}))
    out = tmp_path / "runs" / "demo"
    for _ in range(2):
        assert cli.main(["demo", "--out", str(out), "--device", "cpu"]) == 0
        names = {p.name for p in out.iterdir()}
        assert names >= {"samples.png", "loss.png", "summary.json", "table.txt", "log.csv"}
        assert json.loads((out / "summary.json").read_text())["training"]["steps"] == 4
    assert "going on with the model" in capsys.readouterr().out
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | {"steps": 5})
    assert cli.main(["demo", "--out", str(out), "--device", "cpu"]) == 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["demo", "demo.1"]
    assert torch.get_float32_matmul_precision() == "highest"
