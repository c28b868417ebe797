"""The Triton backend on a CUDA device, and what its programs do without one."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcsm
from fastcsm import functional, nn
from fastcsm.benchmark.densities import restoring

ROOT = Path(__file__).resolve().parents[1]


def program(name, *arguments):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, ROOT / "bench" / name, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_benchmark_says_so():
    done = program("gpu.py", "--rounds", "2")
    assert done.returncode == 1
    assert done.stderr == "bench/gpu.py needs a CUDA device, and torch finds none.\n"
    assert program("gpu.py", "--help").returncode == 0


@pytest.fixture
def parts(monkeypatch):
    """The modules of bench/gpu.py, their tensors on a device of this machine."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    modules = [importlib.import_module(name) for name in ("gpu", "gpu_checks", "gpu_timings")]
    if not torch.cuda.is_available():
        for module in modules[1:]:
            monkeypatch.setattr(module, "DEVICE", "cpu")
    return modules


def test_a_part_that_fails_loses_no_other(parts):
    gpu, written = parts[0], []
    good = {"passed": True, "deterministic": True}
    row = {"median": 1.0, "over_fastcsm": 1.0}

    def run(part, backends, final):
        if part == "broken" or (part == "one" and "cuda" in backends) or (final and part == "breaks later"):
            return {"error": "OutOfMemoryError: no"}
        if part.startswith("check"):
            return {"checks": {f"{name} op": good | {"passed": part == "check 1"} for name in backends}}
        checks = {name: good | {"deterministic": part != "varies"} for name in backends}
        return {
            "checks": checks | ({"cuda": {"refused": "no"}} if part == "last" else {}),
            "rows": dict.fromkeys(backends, row) if final else {},
        }

    timings, names = ["one", "broken", "varies", "breaks later", "last"], ["triton", "cuda"]
    checks = ["check 1", "check 2"]
    document = gpu.collect(checks, timings, names, run, 3, lambda d: written.append(json.dumps(d)))
    assert document["checks"]["check 1"] == {"triton op": good, "cuda op": good}
    assert list(document["results"]) == ["one", "breaks later", "last"]
    assert document["results"]["one"]["rows"] == {"triton": row}
    assert document["results"]["last"]["rows"] == {"triton": row, "cuda": row}
    error = "OutOfMemoryError: no"
    expected = [f"one: {error}", *2 * [f"broken: {error}"], f"breaks later: {error}"]
    expected += [f"{part} {name}" for name in names for part in ("varies", "check 2")]
    assert sorted(document["failed"]) == sorted(e if "check 2" not in e else f"{e} op" for e in expected)
    assert len(written) == 2 * 7 + 3
    assert json.loads(written[-1]) == document


def test_parts_end_in_time_and_say_why_not(parts, monkeypatch):
    gpu = parts[0]
    assert gpu.in_a_process("check", ["triton"], 1, 0.5) == {"error": "not run: the time was over"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = gpu.in_a_process("no such part", ["triton"], 1, 300.0)
    assert "CUDA device" in found["error"] or "no such part" in found["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="bench/gpu.py runs them on the device")
def test_checks_on_the_interpreter(parts):
    pytest.importorskip("triton")
    gpu, checks, _ = parts
    with fastcsm.backend("triton"):
        subjects = checks.check_head(5, (17, 9), 3, "tanh") | checks.check_layer(3, 5, 4)
        found = {op: run(torch.float32) for op, run in subjects.items()}
    assert set(found) == {"csm_loss", "score_head", "langevin", "masked_linear"}
    assert gpu.failed_checks("check", {"checks": found}) == []
    wrong = checks.deviation([torch.ones(3) + 1e-3], [torch.ones(3)], [torch.ones(3).double()])
    assert not wrong["passed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="bench/gpu.py runs them on the device")
@pytest.mark.parametrize(
    "part", ["csm_loss", "linear_csm_loss", "made", "layer", "langevin", "draw", "log_prob", "flow"]
)
def test_timings_of_another_backend(parts, part, monkeypatch):
    """The timings with the CPU library in the place of Triton's kernels, and without a clock."""
    if fastcsm.backends.CPU().missing():
        pytest.skip("needs the CPU library")
    gpu, _, timings = parts
    small = {
        "csm_loss": {"rows": 9, "frequencies": 2},
        "linear_csm_loss": {"batch": 2, "dimensions": 3, "units": 4},
        "made": {"batch": 3, "features": 5, "hidden": (8, 8)},
        "layer": {"rows": 3, "inputs": 5, "outputs": 4, "backward": True},
        "langevin": {"rows": 5, "steps": 2},
        "draw": {"case": timings.DRAW.quick().warm()},
        "log_prob": {"rows": 7},
        "flow": {"rows": 7},
    }

    def seconds(calls, *_, **__):
        for name, call in calls.items():
            if not name.startswith("mm_"):  # products of a device's size
                call()
        return {name: {"median": 1.0, "q1": 1.0, "q3": 1.0} for name in calls}

    monkeypatch.setattr(timings, "BACKENDS", ["cpu", "cuda"])
    monkeypatch.setattr(timings, "seconds", seconds)
    monkeypatch.setattr(timings, "extra_memory", lambda call: len(call()))
    monkeypatch.setattr(timings, "graphed", lambda call: call)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: None)
    function = getattr(timings, f"time_{part}")
    precision = {} if part == "made" else {"precision": "float32"}
    before = torch.get_float32_matmul_precision()
    try:
        plan = timings.Plan(("cpu", "cuda"), 2)
        result = json.loads(json.dumps(function(plan=plan, **precision, **small[part])))
        checked = function(plan=plan._replace(rounds=0), **precision, **small[part])
    finally:
        torch.set_float32_matmul_precision(before)
    assert gpu.failed_checks(part, result) == []
    assert "cuda" in result["checks"]["cuda"]["refused"]
    assert {"cpu"} < set(result["rows"]), result
    assert checked["rows"] == {}
    assert checked["checks"].keys() == result["checks"].keys()


@pytest.mark.gpu
def test_every_kernel_is_as_accurate_as_plain_pytorch(tmp_path):
    done = program("gpu.py", "--check", "--out", str(tmp_path / "checks.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "checks.json").read_text())
    precisions = {part.removeprefix("check ").partition(":")[0] for part in document["checks"]}
    assert precisions == {"float32", "tf32", "bfloat16", "float16"}


def needs_cuda_backend():
    if reasons := fastcsm.backends.CUDA().missing():
        pytest.skip("; ".join(reasons))


def replayed(run):
    """What a CUDA graph of ``run``, which has run before, leaves in its tensors when it is replayed."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    return captured


@pytest.mark.gpu
def test_every_cuda_kernel():
    """The tests of the emulated kernels, on the device."""
    needs_cuda_backend()
    environment = {name: value for name, value in os.environ.items() if name != "FASTCSM_EMULATION"}
    files = sorted((ROOT / "tests").glob("emulated_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def head_and_rows(rows, dtype=torch.float32):
    torch.manual_seed(0)
    head = nn.ScoreHead(32).cuda().to(dtype)
    return (
        head,
        torch.randn(rows, 32, device="cuda", dtype=dtype),
        torch.randn(rows, device="cuda", dtype=dtype),
    )


def gradients(head, context, x):
    context = context.detach().requires_grad_()
    with fastcsm.backend("triton"):
        loss = fastcsm.csm_loss(head, context[None], x[None])
        return loss, *torch.autograd.grad(loss, [context, *head.parameters()])


@pytest.mark.gpu
def test_auto_takes_it_on_a_device():
    assert fastcsm.info()["ops"]["csm_loss"]["cuda"]["backend"] == "triton"


@pytest.mark.gpu
def test_more_elements_than_32_bits_address():
    rows = 2**31 // 32 + 4096
    head, _, _ = head_and_rows(1, torch.bfloat16)
    context = torch.zeros(rows, 32, device="cuda", dtype=torch.bfloat16)
    x = torch.zeros(rows, device="cuda", dtype=torch.bfloat16)
    context[-64:], x[-64:] = torch.randn(64, 32), torch.randn(64)
    with fastcsm.backend("triton"), torch.no_grad():
        whole, _ = head.score_and_derivative(context, x)
        last, _ = head.score_and_derivative(context[-64:], x[-64:])
    assert torch.equal(whole[-64:], last)


def masked_layer(rows, outputs):
    """A call of the CUDA backend's layer of 16 inputs, whose sums are exact, on some of the rows."""
    torch.manual_seed(0)
    x, weight = (torch.randint(-2, 3, (n, 16), device="cuda").bfloat16() for n in (rows, outputs))
    degrees = torch.arange(16, device="cuda"), torch.arange(outputs, device="cuda") % 16

    def run(part=slice(None)):
        leaves = [t.detach().requires_grad_() for t in (x[part], weight)]
        with fastcsm.backend("cuda"):
            y = functional.masked_linear(*leaves, None, *degrees)
            return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    return run


@pytest.mark.gpu
def test_a_masked_layer_of_more_elements_than_32_bits_address():
    needs_cuda_backend()
    run = masked_layer(2**31 // 2048 + 300, 2048)
    (whole, grad, _), (last, grad_of_last, _) = run(), run(slice(-5, None))
    assert torch.equal(whole[-5:], last)
    assert torch.equal(grad[-5:], grad_of_last)


@pytest.mark.gpu
def test_a_masked_layer_captured_in_a_graph():
    needs_cuda_backend()
    for rows in (3, 60, 3000):
        run = masked_layer(rows, 700)
        expected = run()
        assert all(torch.equal(a, b) for a, b in zip(replayed(run), expected))


@pytest.mark.gpu
def test_captured_in_a_graph():
    head, context, x = head_and_rows(5000)
    expected = gradients(head, context, x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        gradients(head, context, x)
    captured = replayed(lambda: gradients(head, context, x))
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))


@pytest.mark.gpu
def test_on_another_stream():
    head, context, x = head_and_rows(5000)
    expected = gradients(head, context, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = gradients(head, context, x)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.gpu
def test_compiles_whole():
    head, context, x = head_and_rows(3000)

    def loss(context, x):
        return functional.csm_loss(
            context, x, head.weights, head.biases, frequencies=head.frequencies, activation="silu"
        )

    with fastcsm.backend("triton"):
        torch.testing.assert_close(torch.compile(loss, fullgraph=True)(context, x), loss(context, x))


@pytest.mark.gpu
def test_extra_memory_is_flat_in_the_rows():
    extra = []
    for rows in (1 << 16, 1 << 20):
        head, context, x = head_and_rows(rows)
        gradients(head, context, x)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = gradients(head, context, x)
        returned = sum(t.numel() * t.element_size() for t in results)
        extra.append(torch.cuda.max_memory_allocated() - before - returned)
    assert extra[1] <= extra[0] + (9 << 20)
    assert max(extra) <= 64 << 20


@pytest.mark.gpu
def test_autocast():
    head, context, x = head_and_rows(3000)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss, *grads = gradients(head, context, x)
    rounded, *_ = gradients(head.bfloat16(), context.bfloat16(), x.bfloat16())
    assert loss.dtype is torch.float32
    assert torch.equal(loss, rounded)
    assert all(grad.dtype is torch.float32 for grad in grads)


@pytest.mark.gpu
def test_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    head, context, x = head_and_rows(3000)
    expected = gradients(head, context, x)
    got = gradients(head.to("cuda:1"), context.to("cuda:1"), x.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(b.device.index == 1 and torch.equal(a, b.to(a.device)) for a, b in zip(expected, got))


@pytest.mark.gpu
def test_tuning_keeps_results(monkeypatch):
    from fastcsm.kernels import configurations, tuning

    monkeypatch.setattr(configurations.choices, "best", {})
    head, context, x = head_and_rows(3000)
    before = gradients(head, context, x)
    found = tuning.tune(lambda: gradients(head, context, x))
    assert [key[0] for key in found] == ["csm_loss"]
    for a, b in zip(gradients(head, context, x), before):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"), torch.cuda.graph(graph):
        tuning.tune(lambda: gradients(head, context, x))


@pytest.mark.gpu
def test_a_draw_is_one_launch():
    model = nn.ARCSM(nn.MADE(20, (64, 64), 8), nn.ScoreHead(9), noise=nn.NoiseSchedule(1.0, 0.1, 3)).cuda()

    def draw():
        return model.sample(37, method="langevin", steps=2, seed=1)

    with fastcsm.backend("triton"):
        draw()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            got = draw()
    names = [event.name for event in profile.events()]
    assert sum("langevin_draw_kernel" in name for name in names) == 1
    with fastcsm.backend("reference"):
        torch.testing.assert_close(got, draw(), rtol=1e-3, atol=1e-3)


DISTRIBUTED = """
import torch, fastcsm
from torch.nn.parallel import DistributedDataParallel
from fastcsm import nn

class Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.csm_loss(x, torch.Generator("cuda").manual_seed(0))

torch.distributed.init_process_group("nccl")
rank = torch.distributed.get_rank()
torch.cuda.set_device(rank)
torch.manual_seed(0)
made, head = nn.MADE(16, (64, 64), 8), nn.ScoreHead(9)
model = nn.ARCSM(made, head, noise=nn.NoiseSchedule(1.0, 0.1)).cuda()
x = torch.randn(torch.distributed.get_world_size(), 32, 16, device="cuda")
expected = sum(torch.autograd.grad(Loss(model)(part), [head.weights[0]])[0] for part in x) / len(x)
with fastcsm.backend("triton"):
    parallel = DistributedDataParallel(Loss(model), device_ids=[rank])
    parallel(x[rank]).backward()
torch.testing.assert_close(head.weights[0].grad, expected, rtol=1e-4, atol=1e-5)
torch.distributed.destroy_process_group()
"""


@pytest.mark.gpu
def test_distributed_data_parallel(tmp_path):
    (tmp_path / "train.py").write_text(DISTRIBUTED)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [sys.executable, *launcher, str(torch.cuda.device_count()), str(tmp_path / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def densities(rows):
    """Log-densities and the flow of rows of a head whose densities exist, as one call."""
    head, context, x = head_and_rows(rows)
    head = nn.ScoreHead(32, (128, 128), "softplus", frequencies=0).cuda()
    restoring(head.weights, head.biases)
    layers = head.weights, head.biases
    options = {"activation": "softplus"}
    context = context[:, :-1].contiguous()

    def run(part=slice(None)):
        at = context[part], x[part]
        found = functional.conditional_density(
            *at, *layers, **options, low=-1.0, high=1.0, score_scale=2.0, stage_feature=0.5
        )
        moved = functional.probability_flow(*at, *layers, **options, sigma_from=0.1, sigma_to=1.0)
        return *found, *moved

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@torch.no_grad()
def test_densities_of_more_rows_than_programs(backend):
    if backend == "cuda":
        needs_cuda_backend()
    run = densities(70000)
    with fastcsm.backend(backend):
        whole, last = run(), run(slice(-64, None))
    assert all(torch.equal(a[-64:], b) for a, b in zip(whole, last))
    assert whole[1].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@torch.no_grad()
def test_densities_captured_in_a_graph(backend):
    if backend == "cuda":
        needs_cuda_backend()
    run = densities(1000)
    with fastcsm.backend(backend):
        expected, captured = run(), replayed(run)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
