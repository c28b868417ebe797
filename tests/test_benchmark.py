"""The harness: wrong results get no time, floors follow the formula, README equals the committed JSON."""

import itertools
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import fastcsm.activations
from fastcsm import benchmark, nn
from fastcsm.benchmark import (
    CASES,
    Draw,
    ExactDraw,
    FlowOfRows,
    LogDensity,
    MaskedLayers,
    ScoresOfRows,
    TrainingStep,
    command,
    measure,
    registry,
    runner,
)
from fastcsm.benchmark.base import Contender, from_config
from fastcsm.benchmark.cases import CsmLoss, Langevin

ROOT = Path(__file__).resolve().parents[1]
SMALL = CsmLoss(rows=97, context=3, hidden=(7, 5))
MODELS = [
    MaskedLayers(features=7, hidden=(9, 11), context=3, batch=5),
    MaskedLayers(features=7, hidden=(9, 11), context=3, batch=5, backward=True),
    TrainingStep(features=7, hidden=(9, 11), context=3, head=(6, 5), batch=4),
    LogDensity(rows=21, context=5),
    FlowOfRows(rows=21, context=5),
    ExactDraw(features=6, hidden=(9, 9), context=3, head=(6, 6), samples=5, levels=3, steps=2, measured=5),
    Draw(features=7, hidden=(9, 9), context=3, head=(6, 6), samples=5, levels=3, steps=2, measured=5),
    Draw(features=7, hidden=(9, 9), context=3, head=(6, 6), samples=5, levels=3, steps=2, staged=True),
]


def test_interleave_runs_every_call_once_a_round():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measure.interleave(calls, rounds=4, warmup=1)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    timed = order[3:]
    rounds = [timed[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert [names[0] for names in rounds] == ["a", "b", "c", "a"]


def test_quartiles():
    assert measure.quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}
    assert measure.quartiles([2.0]) == {"q1": 2.0, "median": 2.0, "q3": 2.0}


def test_at_precision_puts_the_setting_back():
    before = torch.get_float32_matmul_precision()
    assert measure.at_precision("medium", torch.get_float32_matmul_precision)() == "medium"
    assert torch.get_float32_matmul_precision() == before


@dataclass(frozen=True)
class Spoiled(CsmLoss):
    """csm_loss with contenders that are wrong in different ways beside the right ones."""

    def contenders(self, precisions, compiled):
        found = super().contenders(precisions, compiled)
        right = found["fastcsm"].call

        def scaled():
            outputs = right()
            return {**outputs, "grad_context": outputs["grad_context"] * 1.001}

        def poisoned():
            outputs = right()
            return {**outputs, "loss": outputs["loss"] * float("nan")}

        def missing():
            return {"loss": right()["loss"]}

        def broken():
            raise RuntimeError("no such thing. Really.\nmore")

        wrong = {"scaled": scaled, "poisoned": poisoned, "missing": missing, "broken": broken}
        return found | {name: Contender(name, call) for name, call in wrong.items()}


def test_wrong_results_are_not_timed():
    result = benchmark.run_case(
        Spoiled(**SMALL.__dict__), precisions=["highest"], rounds=1, compiled=False, memory=None
    )
    rows = {row["name"]: row for row in result["rows"]}
    for name in ("double_backward", "tangent", "jvp", "fastcsm"):
        assert rows[name]["status"] == "ok"
        assert rows[name]["seconds"]["median"] > 0
    for name, output in (("scaled", "grad_context"), ("poisoned", "loss"), ("missing", "grad_weights")):
        assert rows[name]["status"] == "failed"
        assert output in rows[name]["reason"]
    assert rows["broken"]["status"] == "unavailable"
    assert rows["broken"]["reason"] == "RuntimeError: no such thing"
    assert not any("seconds" in rows[name] for name in ("scaled", "poisoned", "missing", "broken"))
    assert "failed" in benchmark.format_table(result)
    json.dumps(result, allow_nan=False)


def test_a_wrong_baseline_does_not_widen_the_limits():
    reference = {"y": torch.ones(3, dtype=torch.float64)}
    found = runner.check_rows(
        {
            "plain": Contender("plain", lambda: {"y": torch.full((3,), 1.5)}),
            "other": Contender("other", lambda: {"y": torch.full((3,), 1.1)}),
        },
        reference,
        {},
    )
    assert [row["status"] for row in found.values()] == ["failed", "failed"]


def test_medium_is_held_to_what_rounding_does_to_plain_pytorch():
    a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0 + 2**-9], [-1.0]])
    reference = {"y": a.double() @ b.double()}

    def off(by):
        return Contender("", lambda: {"y": (reference["y"] * (1 + by)).float()}, precision="medium")

    plain = Contender("plain", lambda: {"y": a @ b})
    entries = {"plain": plain, "near": off(0.01), "far": off(0.09), "wrong": off(0.11)}
    found = runner.check_rows(entries, reference, {})
    assert [row["status"] for row in found.values()] == ["ok", "ok", "ok", "failed"]
    exact = Contender("plain", lambda: dict(reference))
    found = runner.check_rows({"plain": exact, "far": off(0.03)}, reference, {})
    assert [row["status"] for row in found.values()] == ["ok", "failed"]


@pytest.mark.parametrize("activation", fastcsm.activations.ACTIVATIONS)
@pytest.mark.parametrize("frequencies", [0, 3])
@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        ScoresOfRows(rows=33, context=3, hidden=(7, 5)),
        ScoresOfRows(rows=33, context=3, hidden=(7, 5), backward=True),
        Langevin(rows=13, context=3, hidden=(7, 5), levels=3, steps=4),
    ],
)
def test_contenders_agree(case, activation, frequencies):
    case = replace(case, activation=activation, frequencies=frequencies)
    rows = runner.check_rows(case.contenders(["highest", "medium"], compiled=False), *case.reference())
    assert {row["name"]: row.get("reason") for row in rows.values() if row["status"] != "ok"} == {}


@pytest.mark.parametrize("case", MODELS)
def test_contenders_of_models_agree(case):
    assert from_config(type(case), json.loads(json.dumps(case.config()))) == case
    contenders = case.contenders(["highest"], compiled=False)
    result = benchmark.run_case(case, precisions=["highest"], rounds=2, compiled=False, memory=None)
    assert {row["status"] for row in result["rows"]} == {"ok"}
    assert case.title() in benchmark.format_table(result)
    for contender in contenders.values():
        assert set((contender.memory or contender.call)()) != set()
    assert list(result.get("parts", {})) == (["Adam"] if case.op == "training_step" else [])


@pytest.mark.parametrize("staged", [False, True])
def test_a_wrong_draw_is_caught(staged, monkeypatch):
    case = replace(MODELS[-1], staged=staged)
    sample = nn.ARCSM.sample
    monkeypatch.setattr(nn.ARCSM, "sample", lambda *args, **options: sample(*args, **options) * 1.001)
    rows = runner.check_rows(case.contenders(["highest"], compiled=False), *case.reference())
    assert {name: row["status"] for name, row in rows.items()} == {"loop": "ok", "fastcsm": "failed"}


def test_dimensions_of_a_draw_are_shared_out():
    case = Draw()
    shares = case.shares()
    assert [len(share) for share in shares] == [10] * 4
    chosen = sorted(d for share in shares for d in share)
    assert len(set(chosen)) == 40
    assert all(share[0] < 90 and share[-1] > 690 for share in shares)
    loop = replace(case, features=50, hidden=(8, 8), samples=2).contenders(["highest"], False)["loop"]
    assert loop.scale == pytest.approx(50 / 10)
    assert "extrapolated from 40 of 50 dimensions" in loop.label
    assert sorted(d for share in MODELS[-1].shares() for d in share) == list(range(7))


def test_counted_operations_of_models():
    dense = 7 * 9 + 9 * 11 + 11 * 21
    first, second, last = (
        sum(i <= o for i in inputs for o in outputs)
        for inputs, outputs in [
            (range(1, 8), [1 + k * 6 // 9 for k in range(9)]),
            ([1 + k * 6 // 9 for k in range(9)], [1 + k * 6 // 11 for k in range(11)]),
            ([1 + k * 6 // 11 for k in range(11)], [k // 3 for k in range(21)]),
        ]
    )
    edges = first + second + last
    assert 0.4 * dense < edges < 0.7 * dense
    forward, both, step, draw, staged = (
        case.operations() for case in MODELS if not case.op.startswith(("conditional", "probability"))
    )
    assert forward == 2 * 5 * edges
    assert both == 2 * 5 * (3 * edges - first)
    assert step == 2 * 4 * (3 * edges - first) + 4 * 7 * 2 * (3 * 3 * 6 + 6 * 6 * 5)
    langevin = 5 * 7 * 3 * 2 * 2 * 6 * 6
    assert staged - langevin == 3 * (draw - langevin)


def test_counted_operations():
    n = 50176
    assert CsmLoss().operations() == n * 2 * (3 * 32 * 128 + 6 * 128 * 128)
    assert CsmLoss(frequencies=16).operations() == n * 2 * (3 * 32 * 128 + 6 * 128 * 128 + 4 * 33 * 128)
    assert CsmLoss(rows=1, context=5, hidden=(2, 3, 4)).operations() == 2 * (3 * 5 * 2 + 6 * (6 + 12))
    assert CsmLoss(rows=1, context=5, hidden=(2,)).operations() == 2 * 3 * 5 * 2
    plain = CsmLoss(rows=1, context=5, hidden=(2, 3, 4), denoising=True)
    assert plain.operations() == 2 * (3 * 5 * 2 + 3 * (6 + 12))
    assert replace(plain, frequencies=2).operations() == 2 * (3 * 5 * 2 + 3 * (6 + 12) + 2 * 5 * 2)
    steps = Langevin(rows=3, context=5, hidden=(2, 7), levels=4, steps=6)
    assert steps.operations() == 3 * 2 * (24 * 14 + 5 * 2)
    assert replace(steps, frequencies=2).operations() == 3 * 2 * (24 * (14 + 5 * 2) + 5 * 2)


def test_counted_bytes():
    head = 4 * 6 + 6 + 6 + 1
    assert CsmLoss(rows=9, context=3, hidden=(6,)).bytes() == 4 * (9 * (3 + 1 + 3) + 2 * head)
    assert CsmLoss(rows=9, context=3, hidden=(6,), dtype="bfloat16").bytes() == 2 * (9 * 7 + 2 * head)
    assert CsmLoss(rows=9, context=3, hidden=(6,), denoising=True).bytes() == 4 * (9 * 8 + 2 * head)
    sizes = {"rows": 9, "context": 3, "hidden": (6,)}
    assert ScoresOfRows(**sizes).bytes() == 4 * (9 * (3 + 1 + 2) + head)
    assert ScoresOfRows(**sizes, backward=True).bytes() == 4 * (9 * (3 + 1 + 2 + 2 + 3) + 2 * head)
    assert Langevin(**sizes).bytes() == LogDensity(**sizes).bytes() == 4 * (9 * (2 + 2) + head)
    assert FlowOfRows(**sizes).bytes() == 4 * (9 * (2 + 3) + head)
    first, backward, step = MODELS[:3]
    parameters = first.operations() / (2 * 5) + 9 + 11 + 21
    assert first.bytes() == 4 * (5 * 7 + 5 * 7 * 3 + parameters)
    assert backward.bytes() == 4 * (5 * 7 + 2 * (5 * 7 * 3 + parameters))
    dense = 7 * 9 + 9 * 11 + 11 * 21 + 9 + 11 + 21
    assert step.bytes() == 4 * (4 * 7 + 6 * (dense + 4 * 6 + 6 * 5 + 5 + 6 + 5 + 1))
    draw, staged = MODELS[-2:]
    assert staged.bytes() - 4 * 5 * 7 == 3 * (draw.bytes() - 4 * 5 * 7 - 4 * 6)


def test_matrix_calls_count_their_operations():
    calls = measure.matrix_calls(6, 4, 4, square=8)
    assert {name: count for name, (count, _) in calls.items()} == {"8 x 8 x 8": 1024.0, "6 x 4 x 4": 192.0}
    assert calls["6 x 4 x 4"][1]().shape == (6, 4)


def test_command_writes_json_and_table(tmp_path, capsys):
    target = tmp_path / "new" / "result.json"
    sizes = ["--rows", "64", "--context", "3", "--hidden", "8", "8", "--activation", "tanh"]
    threads = torch.get_num_threads()
    command = ["--op", "csm_loss", *sizes, "--quick", "--threads", "1", "--json", str(target)]
    assert benchmark.main(command) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert "N = 64, C = 3, head 2 x 8 tanh" in printed
    assert "matrix floor" in printed
    measured = json.loads(target.read_text())
    assert measured["schema"] == 1
    assert measured["threads"] == 1
    assert set(measured) == {"schema", "date", "machine", "versions", "threads", "rounds", "results"}
    assert set(measured["machine"]) == {"processor", "cores", "instructions", "system"}
    assert {"fastcsm", "torch", "python", "commit"} <= set(measured["versions"])
    (result,) = measured["results"]
    assert result["op"] == "csm_loss"
    assert result["config"]["hidden"] == [8, 8]
    products, copies = (
        result["operations"] / result["matrix_rate"]["best"],
        result["bytes"] / result["bandwidth"],
    )
    assert result["floor_seconds"] == max(products, copies)
    for row in result["rows"]:
        assert set(row) == {"name", "label", "own", "status", "error", "seconds", "speedup", "floor_multiple"}
        assert row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
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
        (["--into", "README.md"], "--into"),
        (["--op", "masked_linear", "--rows", "3"], "--rows: --op masked_linear has no such size"),
        (["--op", "csm_loss", "--features", "3"], "--features"),
        (["--op", "langevin_draw", "--samples", "0"], "--samples"),
        (["--op", "training_step", "--frequencies", "2"], "--frequencies"),
    ],
)
def test_command_refuses(arguments, word, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


def test_command_without_traceback(tmp_path, capsys):
    foreign = tmp_path / "foreign.json"
    foreign.write_text("[1]")
    for path in (foreign, tmp_path / "missing.json"):
        for option in ("--readme", "--compare"):
            assert benchmark.main([option, str(path)]) == 1
            assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "op", ["masked_linear", "training_step", "langevin_draw", "conditional_density_draw"]
)
def test_command_measures_models(op, capsys):
    sizes = ["--features", "6", "--hidden", "8", "--context", "3", "--precision", "highest"]
    assert benchmark.main(["--op", op, *sizes, "--quick", "--threads", "1"]) == 0
    assert capsys.readouterr().out.count(f"{op}: ") == len(CASES[op]().variants())


def measured_document():
    result = benchmark.run_case(SMALL, precisions=["highest"], rounds=2, compiled=False, memory=None)
    return benchmark.document([result], rounds=2)


def test_the_suite_has_every_op():
    cases = benchmark.suite()
    assert [op for op, _ in itertools.groupby(case.op for case in cases)] == list(CASES)
    assert len(set(cases)) == len(cases)
    for case in cases:
        assert case.bytes() > 0
        assert case.operations() > case.quick().operations() or case == case.quick()
    for case in (SMALL, MODELS[2]):
        assert set(case.slow) <= set(case.contenders(["highest"], compiled=True))


@pytest.mark.parametrize("op", CASES)
def test_contenders_are_right_at_the_sizes_of_pytest_benchmark(op):
    found = benchmark.right_contenders(op)
    assert any(contender.own for contender in found.values())
    assert not all(contender.own for contender in found.values())
    program = (ROOT / "bench" / "micro" / f"{op}.py").read_text()
    assert f'right_contenders("{op}")' in program


def test_a_wrong_contender_is_not_offered(monkeypatch):
    monkeypatch.setattr(registry, "CASES", {"csm_loss": Spoiled})
    with pytest.raises(ValueError, match="scaled failed: grad_context is off by"):
        registry.right_contenders("csm_loss")


def test_the_whole_suite_runs(monkeypatch, tmp_path, capsys):
    small = [SMALL, LogDensity(rows=5, context=3)]
    monkeypatch.setattr(command, "suite", lambda: small)
    target = tmp_path / "result.json"
    monkeypatch.setattr(CsmLoss, "slow", ("compile_tangent", "compile_jvp", "jvp"))
    quick = ["--threads", "1", "--precision", "highest", "--quick", "--json", str(target)]
    assert benchmark.main(quick) == 0
    measured = json.loads(target.read_text())
    assert [result["op"] for result in measured["results"]] == ["csm_loss", "conditional_density"]
    names = [row["name"] for row in measured["results"][0]["rows"]]
    assert names == ["double_backward", "tangent", "fastcsm"]
    assert "1 eager double backward" in capsys.readouterr().out
    arguments = ["--threads", "1", "--compare", str(target), "--measured", str(target)]
    assert benchmark.main(arguments) == 0
    assert "2 rows compared" in capsys.readouterr().out


def altered(measured, name, factor, spread=0.0):
    """The document with the times of one row, or of all, multiplied."""
    measured = json.loads(json.dumps(measured))
    for result in measured["results"]:
        for row in result["rows"]:
            if name in (row["name"], "all"):
                median = row["seconds"]["median"] * factor
                quarters = {"q1": median * (1 - spread), "median": median, "q3": median * (1 + spread)}
                row["seconds"] = quarters
        runner.add_speedups({row["name"]: row for row in result["rows"]})
    return measured


@pytest.fixture(scope="module")
def steady():
    """A measured document in which no round differs from another."""
    return altered(measured_document(), "all", 1.0)


def test_compare_tells_what_moved(steady):
    assert benchmark.compare(steady, steady) == ([], 1)
    (slower,), _ = benchmark.compare(steady, altered(steady, "fastcsm", 1.25))
    assert slower.worse
    assert "N = 97" in slower.text
    assert "fastcsm: 25% slower against eager double backward" in slower.text
    (faster,), _ = benchmark.compare(altered(steady, "fastcsm", 1.25), steady)
    assert not faster.worse
    assert benchmark.compare(steady, altered(steady, "fastcsm", 1.02))[0] == []


def test_compare_allows_for_a_slower_machine_and_for_noise(steady):
    assert benchmark.compare(steady, altered(steady, "all", 1.7))[0] == []
    noisy = altered(steady, "fastcsm", 1.25, spread=0.1)
    assert benchmark.compare(steady, noisy)[0] == []
    noisy["results"][0]["rounds"] = 50
    assert len(benchmark.compare(steady, noisy)[0]) == 1


def test_compare_names_what_failed(steady):
    broken = altered(steady, "all", 1.0)
    row = next(row for row in broken["results"][0]["rows"] if row["own"])
    row |= {"status": "failed", "reason": "loss is off by 1"}
    (change,), _ = benchmark.compare(steady, broken)
    assert change.worse
    assert "ok -> failed (loss is off by 1)" in change.text
    assert not benchmark.compare(broken, steady)[0][0].worse


def test_command_compares(steady, tmp_path, capsys):
    paths = {name: tmp_path / f"{name}.json" for name in ("old", "new", "other", "foreign")}
    contents = [
        steady,
        altered(steady, "fastcsm", 1.25),
        {**steady, "results": []},
        {**steady, "threads": 99},
    ]
    for path, content in zip(paths.values(), contents, strict=True):
        path.write_text(json.dumps(content))

    def compared(name):
        return benchmark.main(["--compare", str(paths["old"]), "--measured", str(paths[name])])

    assert compared("old") == 0
    assert compared("new") == 1
    assert "1 worse" in capsys.readouterr().out
    assert compared("other") == 1
    assert "no case of this run" in capsys.readouterr().err
    assert compared("foreign") == 1
    assert "number of threads" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_probe_answers_again_and_again():
    request = {"op": "csm_loss", "threads": 1, "config": SMALL.config(), "contender": "fastcsm"}
    with measure.Probe() as probe:
        if probe.extra_memory(request) is None:
            pytest.skip("the resident set's peak cannot be reset here")
        assert probe.extra_memory(request) < 1 << 20
        assert probe.extra_memory({**request, "contender": "nothing"}) is None


def test_readme_section_is_replaced(tmp_path, capsys):
    measured = measured_document()
    source, readme = tmp_path / "result.json", tmp_path / "README.md"
    source.write_text(json.dumps(measured))
    readme.write_text(f"before\n\n{benchmark.report.BEGIN}\nold\n{benchmark.report.END}\n\nafter\n")
    assert benchmark.main(["--readme", str(source), "--into", str(readme)]) == 0
    text = readme.read_text()
    assert text == f"before\n\n{benchmark.readme_block(measured)}\n\nafter\n"
    assert "old" not in text
    assert "| fastcsm |" in text
    assert text.count("| case |") == 1
    assert benchmark.main(["--readme", str(source)]) == 0
    assert capsys.readouterr().out.strip() == benchmark.readme_block(measured)
    with pytest.raises(ValueError, match="README must hold"):
        benchmark.update_readme("nothing here", measured)


def test_readme_equals_committed_results():
    paths = sorted((ROOT / "bench" / "results").glob("*-threads.json"))
    documents = [json.loads(path.read_text()) for path in paths]
    assert documents
    for measured in documents:
        assert measured["schema"] == 1
        assert not any(row["status"] == "failed" for result in measured["results"] for row in result["rows"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition(benchmark.report.BEGIN)[2].partition(benchmark.report.END)[0]
    blocks = [benchmark.readme_block(measured) for measured in documents]
    whole = f"{benchmark.report.BEGIN}{section}{benchmark.report.END}"
    assert whole in text
    assert whole in blocks or (not section.strip() and not documents)


@pytest.mark.parametrize(
    "noise", [None, nn.NoiseSchedule(1.0, 0.1, 4), nn.NoiseSchedule(1.0, 0.1, 4, form="staged")]
)
def test_step_table(noise):
    torch.manual_seed(0)
    conditional = noise is not None and noise.form == "conditional"
    made = nn.MADE(5, (9, 9), 3, activation="silu", dropout=0.2)
    model = nn.ARCSM(made, nn.ScoreHead(3 + conditional, (6, 6), frequencies=2), noise=noise)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = benchmark.step_table(model=model, batch=8, rounds=1, compiled=False)
    assert {row["name"]: row.get("reason") for row in result["rows"] if row["status"] != "ok"} == {}
    assert [row["name"] for row in result["rows"]] == ["double_backward", "jvp", "tangent", "fastcsm"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "fastcsm" in benchmark.format_table(result)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        benchmark.step_table(model=model, batch=0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_extra_memory_counts_what_autograd_keeps():
    case = CsmLoss(rows=16384, context=8, hidden=(64, 64))
    request = {"op": "csm_loss", "threads": 1, "config": case.config(), "contender": "double_backward"}
    found = measure.extra_memory(request)
    if found is None:
        pytest.skip("the resident set's peak cannot be reset here")
    array = 4 * case.rows * 64
    assert 6 * array < found < 60 * array
