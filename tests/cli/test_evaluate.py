import json
import sys

import numpy as np
import pytest
from test_robustness import SMALL

from fastcsm import cli
from fastcsm.training import checkpoint

pytest.importorskip("safetensors")

OPTIONS = [*SMALL[:-2], "--sigma-min", "0.3", "--lr", "0.02", "--steps", "60", "--ema", "0", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the same table in two units, the second with an offset."""
    folder = tmp_path_factory.mktemp("units")
    table = np.random.default_rng(0).normal(size=(300, 3)) * [1.0, 2.0, 0.5]
    for name, rows in (("one", table), ("thousand", 1.6e9 + 1000 * table)):
        np.save(folder / f"{name}.npy", rows)
        given = ["train", "--data", str(folder / f"{name}.npy"), "--out", str(folder / name), *OPTIONS]
        assert cli.main(given) == 0
    return folder


def _evaluated(capsys, run, *options):
    assert cli.main(["evaluate", str(run), "--method", "quadrature", *options]) == 0
    return capsys.readouterr().out


def test_nats_say_of_which_rows_they_are(runs, capsys):
    rows = {}
    for name in ("one", "thousand"):
        result = json.loads(_evaluated(capsys, runs / name, "--json"))
        (rows[name],) = result["likelihood"]
        transform = checkpoint.read(runs / name, tensors=()).transform
        assert result["log_volume"] == pytest.approx(np.log(transform.scale).sum())
        table = _evaluated(capsys, runs / name)
        assert "model space: every column less its mean, over its deviation\nsigma, losses, nats" in table
        assert f"rows as given, which are nats {result['log_volume']:+.4f}" in table
        assert f"{rows[name]['nats_as_given']['mean']:.3f}" in table
    one, thousand = (rows[name]["nats_as_given"] for name in ("one", "thousand"))
    assert rows["thousand"]["nats"]["mean"] == pytest.approx(rows["one"]["nats"]["mean"], abs=0.01)
    assert thousand["mean"] - one["mean"] == pytest.approx(3 * np.log(1000), abs=0.01)
    assert one["standard_error"] == rows["one"]["nats"]["standard_error"]


def test_samples_keep_their_offset(runs, tmp_path):
    out = tmp_path / "x.npz"
    assert cli.main(["sample", str(runs / "thousand"), "--n", "40", "--out", str(out)]) == 0
    with np.load(out) as found:
        assert found["samples"].dtype == np.float64
        spread = found["samples"].std(0) / np.array([1000.0, 2000.0, 500.0])
        assert len(np.unique(found["samples"][:, 2])) == 40
    assert ((spread > 0.5) & (spread < 2)).all()
    assert cli.main(["sample", str(runs / "thousand"), "--out", str(tmp_path / "x.png")]) == 0


def test_whole_numbers_are_dequantised_and_drawn(tmp_path, capsys):
    rng, run, out = np.random.default_rng(0), tmp_path / "run", tmp_path / "x.npz"
    counts = rng.poisson(2.0, (300, 2))
    np.savetxt(tmp_path / "t.csv", np.column_stack([counts, rng.normal(size=300)]), delimiter=",")
    given = ["train", "--data", str(tmp_path / "t.csv"), "--out", str(run), *OPTIONS, "--dequantize", "auto"]
    assert cli.main(given) == 0
    capsys.readouterr()
    table = _evaluated(capsys, run)
    assert "its deviation, with uniform noise in columns (steps) 0 (1), 1 (1)" in table
    assert "0 of 30" in table
    assert cli.main(["sample", str(run), "--n", "30", "--out", str(out)]) == 0
    with np.load(out) as found:
        drawn = found["samples"]
    assert (drawn[:, :2] % 1 == 0).all()
    assert (drawn[:, 2] % 1 != 0).all()
    assert 0 < drawn[:, :2].mean() < 4
    assert cli.main([*given[:-1], "0", "--resume"]) == 2
    assert "dequantize is 0 but the run was started with auto" in capsys.readouterr().err


def test_a_density_far_from_the_origin_is_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastcsm.cli.evaluate._PICTURE_POINTS", 20)
    monkeypatch.setattr(sys.modules["fastcsm.evaluation.likelihood"], "GRID_POINTS", 8)
    rows = np.random.default_rng(0).normal(size=(300, 2)) * [30, 1e-3] + [1.6e9, 0]
    np.save(tmp_path / "t.npy", rows)
    given = ["train", "--data", str(tmp_path / "t.npy"), "--out", str(tmp_path / "run"), *OPTIONS]
    assert cli.main(given) == 0
    assert "density.png" in _evaluated(capsys, tmp_path / "run", "--limit", "30")
    assert (tmp_path / "run" / "density.png").stat().st_size > 1000


@pytest.mark.parametrize("option", ["--ood", "--data"])
def test_test_rows_alone_will_do(runs, tmp_path, capsys, option):
    np.savez(tmp_path / "other.npz", test_x=np.random.default_rng(1).normal(size=(17, 3)))
    result = json.loads(_evaluated(capsys, runs / "one", "--json", option, str(tmp_path / "other.npz")))
    assert (result["ood"] or result)["samples"] == 17


def test_runs_in_16_bits_are_evaluated(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.save(tmp_path / "x.npy", rows)
    options = [*OPTIONS, "--dtype", "bfloat16"]
    assert (
        cli.main(["train", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), *options]) == 0
    )
    assert cli.main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)["likelihood"]:
        assert row["diverged"] == 0
        assert row["nats_per_dimension"]["mean"] < 3
