"""The tables' data, figures and models, and the program on a few rows of two columns."""

import argparse
import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch

from fastcsm.bench.baselines.masked import parameters
from fastcsm.bench.paper import contenders, rows, tables
from fastcsm.densities import LogDensity
from fastcsm.models.model import Model

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
TINY = ("--tiny", "--minutes", "0.001", "--rows", "40")


class Gaussian(Model):
    """The standard normal density; of rows beyond ``reach`` there is none."""

    reach = math.inf

    def log_density(self, x, method=None, **options):
        found = -0.5 * (x.square() + math.log(2 * math.pi))
        found = found.where(x.abs() < self.reach, torch.nan)
        return LogDensity(found, torch.full_like(found, 1e-4), found.new_zeros(*x.shape, 2))

    def sample(self, n, method=None, seed=0, **options):
        return torch.randn(n, 2)


@pytest.fixture
def folder(tmp_path):
    """Files as those of the tables, of two columns, the second in tenths."""
    rng, content = np.random.default_rng(0), {}
    for split, count in (("train", 200), ("val", 60), ("test", 80)):
        kind = (np.arange(count) % 4 == 0).astype(np.uint8)
        x = rng.standard_normal((count, 2)) + 6.0 * kind[:, None]
        content |= {f"{split}_x": np.stack([x[:, 0], x[:, 1].round(1)], 1).astype("f4"), f"{split}_y": kind}
    for name in ("tab_magic", "tab_htru2"):
        np.savez(tmp_path / f"{name}.npz", **content)
    return tmp_path


def run(folder, monkeypatch, *options):
    """The results that the program leaves."""
    monkeypatch.setattr(tables, "_SECONDS", 1e-3)
    own = ("--runs", str(folder / "runs"), "--out", str(folder / "out"))
    monkeypatch.setattr(sys, "argv", ["tables.py", str(folder), *own, *TINY, *options])
    assert tables.main() == 0
    return json.loads((folder / "out.json").read_text())


def test_figures_of_a_known_density():
    x = torch.erfinv((torch.arange(4000) + 0.5) / 2000 - 1)[:, None] * math.sqrt(2)  # normal quantiles
    model = Gaussian()
    found = tables.figures(*tables.nats_of(model, x.double()))
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    cut = math.sqrt(2) * torch.erfinv(torch.tensor(0.99, dtype=torch.float64)).item()
    outside = 0.01 * 0.5 + cut * math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)  # of E[z^2 / 2]
    trimmed = (entropy - outside - 0.01 * 0.5 * math.log(2 * math.pi)) / 0.99
    assert found["mean"] == pytest.approx(entropy, abs=1e-3)
    assert found["trimmed"] == pytest.approx(trimmed, abs=1e-3)
    assert found["median"] == pytest.approx(0.5 * (math.log(2 * math.pi) + 0.6745**2), abs=1e-3)
    assert found["worst"] == pytest.approx(0.5 * (math.log(2 * math.pi) + x.max().item() ** 2))
    assert (found["without"], found["rows"], found["error"]) == (0, 4000, pytest.approx(1e-4))
    model.reach = cut  # a hundredth has no density
    assert tables.figures(*tables.nats_of(model, x.double()))["trimmed"] == pytest.approx(found["trimmed"])
    model.reach = 2.0
    beyond = tables.figures(*tables.nats_of(model, x.double()))
    assert (beyond["trimmed"], beyond["without"]) == (None, int((x.abs() >= 2).sum()))
    assert beyond["median"] == found["median"]
    model.reach = 0.0
    assert tables.figures(*tables.nats_of(model, x.double()))["worst"] is None


def test_offsets_count_and_strange_rows_without_a_density_are_the_strangest(folder):
    data = rows.table(folder / "tab_magic.npz", usual=0)
    model = Gaussian()
    model.reach = data.held_out("test", 0).abs().max().item() + 0.1
    found = tables.evaluated(model, data, 100)
    assert (found["without"], found["rows"], found["auroc"]) == (0, 60, 1.0)
    moved = tables.evaluated(model, dataclasses.replace(data, offset=5.0), 100)
    assert moved["mean"] == pytest.approx(found["mean"] + 5)


def test_steps_of_grids():
    rng = np.random.default_rng(0)
    tenths = rng.integers(80, 120, 500) / 10
    mixed = np.where(np.arange(500) % 50 == 0, tenths + 1 / 30, tenths)
    columns = [rng.standard_normal(500), tenths, mixed, 5.0 * rng.integers(0, 20, 500), np.ones(500)]
    assert rows.steps(np.stack(columns, 1).astype(np.float32)) == pytest.approx([0, 0.1, 0.1, 5, 0])


def test_a_table_is_standardised_with_its_noise(folder):
    data = rows.table(folder / "tab_magic.npz")
    x = data.held_out("train", 0).double()
    assert x.mean(0).abs().max() < 0.01
    assert (x.std(0, unbiased=False) - 1).abs().max() < 0.01
    raw = x * torch.tensor(data.transform.scale) + torch.tensor(data.transform.shift)
    assert (raw[:, 0] - data.train[:, 0]).abs().max() < 1e-5
    within = (raw[:, 1] - data.train[:, 1]) / 0.1
    assert within.min() > -1e-4
    assert 0.9 < within.max() < 1.0001
    again, other = (data.batch(torch.arange(5), torch.Generator().manual_seed(k)) for k in (1, 2))
    assert torch.equal(again[:, 0], other[:, 0])
    assert not torch.equal(again[:, 1], other[:, 1])


def test_images(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "patches.npz", train_x=pixels, val_x=pixels, test_x=pixels)
    columns = rows.patches(tmp_path / "patches.npz").columns
    flat = torch.from_numpy(pixels.reshape(30, 64))
    centred = columns(flat, torch.full((30, 64), 0.5))
    grey = (flat.double() + 0.5) / 256
    torch.testing.assert_close(centred, (grey - grey.mean(1, keepdim=True))[:, :63])
    monkeypatch.setattr(rows, "_MNIST_VALIDATION", 10)
    np.savez(tmp_path / "mnist.npz", train_x=pixels, test_x=pixels)
    data = rows.mnist(tmp_path / "mnist.npz")
    assert (len(data.train), len(data.val), len(data.test)) == (20, 10, 30)
    x = data.held_out("test", 0).double().requires_grad_()
    logits = x * torch.tensor(data.transform.scale) + torch.tensor(data.transform.shift)
    shares = (logits.sigmoid() - rows.ALPHA) / (1 - 2 * rows.ALPHA) * 256
    assert torch.equal(shares.floor().clamp(0, 255), flat.double())
    assert data.offset == pytest.approx(sum(map(math.log, data.transform.scale)))


def test_likelihood_models_are_watched_by_the_trimmed_mean():
    model = contenders.CONTENDERS["made"].config(99, 2, tiny=True).build(2)
    x = torch.cat([torch.randn(99, 2), torch.full((1, 2), 1e4)])
    nats = -model.log_prob(x)
    assert model.loss(x).item() == pytest.approx(nats.mean().item())
    assert model.held_out_loss(x).item() == pytest.approx(nats[:99].mean().item())


def test_networks_have_no_fewer_units_than_columns():
    for contender in contenders.CONTENDERS.values():
        for own in contender.choices:
            few, many = (contender.config(9999, features, **own).hidden for features in (64, 784))
            assert min(few) < 784 <= min(many)
            assert len(few) == len(many)


def test_few_rows_leave_no_choice():
    arcsm, made = contenders.CONTENDERS["arcsm"], contenders.CONTENDERS["made"]
    assert (arcsm.config(99, 5).orders, arcsm.config(9999, 5).orders) == (4, 2)
    assert arcsm.choices_of(99) == ({},)
    assert len(arcsm.choices_of(9999)) == len(made.choices_of(99)) == len(made.choices_of(9999))


def test_rows_of_one_class_take_the_choice_of_the_whole_table(folder, monkeypatch):
    found = run(folder, monkeypatch, "--seeds", "1", "--only", "htru2-others", "arcsm")
    data = dataclasses.replace(rows.table(folder / "tab_htru2.npz", usual=0), name="htru2-others")
    given = argparse.Namespace(out=folder / "out", minutes=4.0, rows=40, tiny=True)
    found["choices"]["htru2/arcsm"] = {"choice": {"made_activation": "silu"}}
    (folder / "out.json").write_text(json.dumps(found))
    assert tables.Experiment(given).choice("arcsm", data) == {"made_activation": "silu"}


def test_flows_of_zuko():
    pytest.importorskip("zuko")
    x = torch.randn(50, 3)
    for name in ("nsf", "maf"):
        model = contenders.CONTENDERS[name].config(99, 3, tiny=True).build(3)
        assert torch.allclose(model.log_prob(x), model.flow().log_prob(x), atol=1e-5)
        drawn = model.sample(20, seed=3)
        assert torch.equal(drawn, model.sample(20, seed=3))
        z = model.flow().transform(drawn)
        assert torch.allclose(z, torch.randn(20, 3, generator=torch.Generator().manual_seed(3)), atol=1e-4)
        assert model.log_density(torch.full((1, 3), torch.nan)).log_density.isnan().all()
        assert parameters(model) < sum(value.numel() for value in model.parameters())


def test_the_program_goes_on_where_it_stopped(folder, monkeypatch, capsys):
    models = [name for name in tables.MODELS if name not in ("nsf", "maf")]
    found = run(folder, monkeypatch, "--seeds", "1", "--only", "magic", "htru2-others", *models)
    tables_of = [f"magic/{name}/0" for name in ("arcsm", "made", "resmade")]
    assert list(found["units"]) == [*tables_of, "htru2-others/arcsm/0", "htru2-others/forest/0"]
    for key in tables_of:
        unit = found["units"][key]
        assert {"mean", "trimmed", "median", "worst", "without", "error", "draws_per_second"} <= set(unit)
        assert unit["rows"] == 40
        assert unit["draws_per_second"] > 0
        assert unit["training"]["seconds"] > 0
    assert found["units"]["htru2-others/forest/0"]["auroc"] > 0.9
    assert str(folder) not in json.dumps(found)
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert tables.text(found).count("\n| ") == 2 + 3 + 2 + 1
    found["units"]["magic/made/0"]["settings"] = "other"
    (folder / "out.json").write_text(json.dumps(found))
    capsys.readouterr()
    again = run(folder, monkeypatch, "--seeds", "2", "--only", "magic", "made")
    done = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("magic/")]
    assert done == ["magic/made/0", "magic/made/1"]
    assert again["units"]["magic/arcsm/0"] == found["units"]["magic/arcsm/0"]


def test_settings_are_chosen_on_validation_rows(folder, monkeypatch):
    made = dataclasses.replace(contenders.CONTENDERS["made"], choices=({"lr": 1e-9}, {"lr": 1e-2}))
    made = dataclasses.replace(made, settings=made.settings | made.tiny)
    monkeypatch.setitem(contenders.CONTENDERS, "made", made)
    monkeypatch.setattr(sys.modules[__name__], "TINY", ("--minutes", "0.004", "--rows", "40"))
    found = run(folder, monkeypatch, "--seeds", "1", "--only", "magic", "made")
    chosen = found["choices"]["magic/made"]
    assert chosen["choice"] == found["units"]["magic/made/0"]["choice"] == {"lr": 1e-2}
    assert chosen["validation"][1] < chosen["validation"][0]


def test_a_loss_that_does_not_stay_finite_takes_a_lower_rate(folder, monkeypatch):
    pytest.importorskip("zuko")
    maf = dataclasses.replace(contenders.CONTENDERS["maf"], choices=({"lr": 1e30}, {"lr": 1e-3}))
    monkeypatch.setitem(contenders.CONTENDERS, "maf", maf)
    unit = run(folder, monkeypatch, "--seeds", "1", "--only", "magic", "maf")["units"]["magic/maf/0"]
    assert unit["choice"] == {"lr": 1e-3}
