"""Sweeps over sizes: what they fit, say, write and plot; sizes are tiny and no time is asserted."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastcsm.bench import sweeps
from fastcsm.bench.baselines.joint import exact_score_matching, sliced_score_matching

ROOT = Path(__file__).resolve().parents[2]


def test_exponents():
    sizes = [1, 2, 4, 8, 16, 32]
    assert sweeps.exponent(sizes, [3.0 * n**2 for n in sizes]) == pytest.approx(2)
    assert sweeps.exponent(sizes, [9.0, 9.0, 9.0, 8.0, 16.0, 32.0]) == pytest.approx(1)
    assert sweeps.exponent(sizes, [1.0, 2.0, 4.0, None, None, None]) == pytest.approx(1)
    assert sweeps.exponent(sizes, [1.0, *[None] * 5]) is None
    assert "exponents" not in sweeps.swept("dtype", ["a", "b"], {"fastcsm": [1.0, 2.0]})


def test_crossover():
    sizes = [1, 10, 100, 1000]
    overhead = [5.0, 5.0, 5.0, 5.0]
    assert sweeps.crossover(sizes, [1.0, 2.5, 10.0, 100.0], overhead) == pytest.approx(10**1.5)
    assert sweeps.crossover(sizes, [9.0, 9.0, 9.0, 9.0], overhead) == 1
    assert sweeps.crossover(sizes, [1.0, 2.0, 3.0, 4.0], overhead) is None
    assert sweeps.crossover(sizes, [9.0, 1.0, 9.0, 9.0], overhead) > 10
    assert sweeps.crossover(sizes, [None, 10.0, 10.0, 10.0], overhead) == 10
    words = {"axis": "rows N", "sizes": sizes, "curves": {}, "crossover": {"tangent": 31.6, "sm": None}}
    assert sweeps.sentences("N", words) == [
        "N: fastcsm is faster than hand-written tangent, eager from N = 32 on",
        "N: fastcsm does not pass exact score matching, D backward passes up to N = 1000",
    ]


def test_score_matching_baselines():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(network, row) for row in x])
    s = network(x)
    square = s.square().sum(1) / 2
    exact = (square + jacobian.diagonal(dim1=1, dim2=2).sum(1)).mean()
    assert torch.allclose(exact_score_matching(network, x), exact)
    v = torch.randn_like(x)
    sliced = (square + torch.einsum("bi,bij,bj->b", v, jacobian, v)).mean()
    assert torch.allclose(sliced_score_matching(network, x, v), sliced)
    signs = torch.tensor([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]], dtype=torch.float64)
    mean = sum(sliced_score_matching(network, x, sign.expand(4, 3)) for sign in signs) / 4
    assert torch.allclose(mean, exact)


def test_sweeps_run_and_are_plotted_again(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, threads = tmp_path / "machine.json", torch.get_num_threads()
    chosen = ["N", "dtype", "D", "draw-steps"]
    assert sweeps.main(["--small", "--threads", "1", "--out", str(out), "--sweep", *chosen]) == 0
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "N: a call with N = 2: fastcsm" in printed
    assert "hand-written tangent, eager" in printed
    measured = json.loads(out.read_text())
    assert list(measured["sweeps"]) == chosen
    for name, sweep in measured["sweeps"].items():
        assert all(len(values) == len(sweep["sizes"]) for values in sweep["curves"].values()), name
        assert all(value > 0 for values in sweep["curves"].values() for value in values), name
    plots = {path.name for path in tmp_path.glob("*.png")}
    assert plots == {f"machine-{name}.png" for name in measured["sweeps"]}
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert sweeps.main(["--plot", str(out)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == plots


def test_committed_curves_can_be_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    files = sorted((ROOT / "bench" / "results" / "curves").glob("*.json"))
    assert files
    for file in files:
        copied = Path(shutil.copy(file, tmp_path))
        drawn = {path.name for path in sweeps.plot(json.loads(copied.read_text()), copied.with_suffix(""))}
        assert drawn == {path.name for path in file.parent.glob(f"{file.stem}-*.png")}
