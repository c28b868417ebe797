"""The command line of the benchmarks."""

import json
import sys

import pytest
import torch
from small import SMALL, altered

from fastcsm import cli
from fastcsm.bench import command
from fastcsm.bench.command import main
from fastcsm.bench.harness.case import from_config
from fastcsm.bench.micro.registry import CASES, CsmLoss, LogDensity


def test_command_writes_json_and_table(tmp_path, capsys):
    target = tmp_path / "new" / "result.json"
    sizes = ["--rows", "64", "--context", "3", "--hidden", "8", "8", "--activation", "tanh"]
    threads = torch.get_num_threads()
    command = ["--op", "csm_loss", *sizes, "--quick", "--threads", "1", "--json", str(target)]
    assert main(command) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert "N = 64, C = 3, head 2 x 8 tanh" in printed
    assert "counted: " in printed
    measured = json.loads(target.read_text())
    assert measured["schema"] == 2
    assert measured["threads"] == 1
    assert set(measured) == {"schema", "date", "machine", "versions", "threads", "rounds", "results"}
    assert set(measured["machine"]) == {"processor", "cores", "instructions", "system"}
    assert {"fastcsm", "torch", "python", "commit"} <= set(measured["versions"])
    (result,) = measured["results"]
    assert result["op"] == "csm_loss"
    assert result["config"]["hidden"] == [8, 8]
    assert set(result["peaks"]) == set(result["matrix_rates"]) == {"float32", "bfloat16"}
    for row in result["rows"]:
        shares = {"arithmetic", "floor_seconds", "floor_multiple", "mm_multiple"}
        assert set(row) == {"name", "label", "own", "status", "error", "seconds", "speedup", *shares}
        assert row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
        assert row["arithmetic"] == ("bfloat16" if "medium" in row["name"] else "float32")
        assert row["floor_multiple"] > 1 or "peaks_of_mm" in result
    assert from_config(CASES[result["op"]], result["config"]).operations() == result["operations"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--rows", "0"], "--rows"),
        (["--rows", "9"], "--rows: needs --op"),
        (["--measured", "new.json"], "--measured: needs --compare"),
        (["--threads", "-1"], "--threads"),
        (["--hidden", "0"], "--hidden"),
        (["--op", "nothing"], "--op"),
        (["--activation", "nothing"], "--activation"),
        (["--op", "masked_linear", "--rows", "3"], "--rows: --op masked_linear has no such size"),
        (["--op", "csm_loss", "--features", "3"], "--features"),
        (["--op", "langevin_draw", "--samples", "0"], "--samples"),
        (["--op", "training_step", "--frequencies", "2"], "--frequencies"),
    ],
)
def test_command_refuses(arguments, word, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


def test_command_without_traceback(tmp_path, capsys):
    foreign = tmp_path / "foreign.json"
    foreign.write_text("[1]")
    for path in (foreign, tmp_path / "missing.json"):
        assert main(["--compare", str(path)]) == 1
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "op", ["masked_linear", "training_step", "langevin_draw", "conditional_density_draw"]
)
def test_command_measures_models(op, capsys):
    sizes = ["--features", "6", "--hidden", "8", "--context", "3", "--precision", "highest"]
    assert main(["--op", op, *sizes, "--quick", "--threads", "1"]) == 0
    assert capsys.readouterr().out.count(f"{op}: ") == len(CASES[op]().variants())


def test_the_whole_suite_runs(monkeypatch, tmp_path, capsys):
    small = [SMALL, LogDensity(rows=5, context=3)]
    monkeypatch.setattr(command, "suite", lambda: small)
    target = tmp_path / "result.json"
    monkeypatch.setattr(CsmLoss, "slow", ("compile_tangent", "compile_jvp", "jvp"))
    quick = ["--threads", "1", "--precision", "highest", "--quick", "--json", str(target)]
    assert main(quick) == 0
    measured = json.loads(target.read_text())
    assert [result["op"] for result in measured["results"]] == ["csm_loss", "conditional_density"]
    names = [row["name"] for row in measured["results"][0]["rows"]]
    assert names == ["double_backward", "tangent", "fastcsm"]
    assert "1 eager double backward" in capsys.readouterr().out
    arguments = ["--threads", "1", "--compare", str(target), "--measured", str(target)]
    assert main(arguments) == 0
    assert "2 rows compared" in capsys.readouterr().out


def test_command_compares(steady, tmp_path, capsys):
    paths = {name: tmp_path / f"{name}.json" for name in ("old", "new", "other", "foreign", "ancient")}
    contents = [
        steady,
        altered(steady, "fastcsm", 1.25),
        {**steady, "results": []},
        {**steady, "threads": 99},
        {**steady, "schema": 1},
    ]
    for path, content in zip(paths.values(), contents, strict=True):
        path.write_text(json.dumps(content))

    def compared(name):
        return main(["--compare", str(paths["old"]), "--measured", str(paths[name])])

    assert compared("old") == 0
    assert compared("new") == 1
    assert "1 worse" in capsys.readouterr().out
    assert compared("other") == 1
    assert "no case of this run" in capsys.readouterr().err
    assert compared("foreign") == 1
    assert "number of threads" in capsys.readouterr().err
    assert compared("ancient") == 1
    assert "its format is 2, and here it is 1" in capsys.readouterr().err


def test_the_command_line_says_if_bench_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastcsm.bench.command", None)
    assert cli.main(["bench", "--quick"]) == 2
    assert capsys.readouterr().err == (
        "fastcsm: fastcsm.bench is not installed: install fastcsm, or link fastcsm/bench to bench/\n"
    )
