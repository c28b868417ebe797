"""The backends on a CUDA device: streams, graphs, memory, launches. What they compute bench/gpu checks."""

import contextlib
import subprocess
import sys

import pytest
import torch

import fastcsm
from fastcsm import backends, functional, nn
from fastcsm.backends import measured
from fastcsm.bench.micro.rows import restoring


def needs_cuda_backend():
    if reasons := backends.CUDA().missing():
        pytest.skip("; ".join(reasons))


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    if request.param == "cuda":
        needs_cuda_backend()
    return request.param


@pytest.fixture
def never_waits():
    """Calls in its ``with`` block may not wait for the device."""

    @contextlib.contextmanager
    def block():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return block


def replayed(run):
    """What a CUDA graph of ``run``, which has run before, leaves in its tensors when it is replayed."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    return captured


def head_and_rows(rows, dtype=torch.float32):
    torch.manual_seed(0)
    head = nn.ScoreHead(32).cuda().to(dtype)
    return (
        head,
        torch.randn(rows, 32, device="cuda", dtype=dtype),
        torch.randn(rows, device="cuda", dtype=dtype),
    )


def gradients(backend, head, context, x):
    context = context.detach().requires_grad_()
    with fastcsm.backend(backend):
        loss = fastcsm.csm_loss(head, context[None], x[None])
        return loss, *torch.autograd.grad(loss, [context, *head.parameters()])


@pytest.mark.gpu
def test_auto_takes_what_was_measured_as_faster():
    slower = measured.why_not_cuda("csm_loss", torch.float32, 65, (128, 128, 1))
    expected = "triton" if slower or backends.CUDA().missing() else "cuda"
    assert fastcsm.info()["ops"]["csm_loss"]["cuda"]["backend"] == expected


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
def test_captured_in_a_graph(backend):
    head, context, x = head_and_rows(5000)
    expected = gradients(backend, head, context, x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        gradients(backend, head, context, x)
    captured = replayed(lambda: gradients(backend, head, context, x))
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))


@pytest.mark.gpu
def test_on_another_stream(backend):
    head, context, x = head_and_rows(5000)
    expected = gradients(backend, head, context, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = gradients(backend, head, context, x)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.gpu
def test_compiles_whole(backend):
    head, context, x = head_and_rows(3000)

    def loss(context, x):
        return functional.csm_loss(
            context, x, head.weights, head.biases, frequencies=head.frequencies, activation="silu"
        )

    with fastcsm.backend(backend):
        torch.testing.assert_close(torch.compile(loss, fullgraph=True)(context, x), loss(context, x))


@pytest.mark.gpu
def test_extra_memory_is_flat_in_the_rows(backend):
    extra = []
    for rows in (1 << 16, 1 << 20):
        head, context, x = head_and_rows(rows)
        gradients(backend, head, context, x)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = gradients(backend, head, context, x)
        returned = sum(t.numel() * t.element_size() for t in results)
        extra.append(torch.cuda.max_memory_allocated() - before - returned)
    assert extra[1] <= extra[0] + (9 << 20)
    assert max(extra) <= 64 << 20


@pytest.mark.gpu
def test_autocast(backend):
    head, context, x = head_and_rows(3000)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss, *grads = gradients(backend, head, context, x)
    rounded, *_ = gradients(backend, head.bfloat16(), context.bfloat16(), x.bfloat16())
    assert loss.dtype is torch.float32
    assert torch.equal(loss, rounded)
    assert all(grad.dtype is torch.float32 for grad in grads)


@pytest.mark.gpu
def test_on_a_device_that_is_not_the_current_one(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    head, context, x = head_and_rows(3000)
    expected = gradients(backend, head, context, x)
    got = gradients(backend, head.to("cuda:1"), context.to("cuda:1"), x.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(b.device.index == 1 and torch.equal(a, b.to(a.device)) for a, b in zip(expected, got))


@pytest.mark.gpu
def test_tuning_keeps_results(monkeypatch):
    from fastcsm.kernels import configurations, tuning

    monkeypatch.setattr(configurations.choices, "best", {})
    head, context, x = head_and_rows(3000)
    before = gradients("triton", head, context, x)
    found = tuning.tune(lambda: gradients("triton", head, context, x))
    assert [key[0] for key in found] == ["csm_loss"]
    for a, b in zip(gradients("triton", head, context, x), before):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"), torch.cuda.graph(graph):
        tuning.tune(lambda: gradients("triton", head, context, x))


@pytest.mark.gpu
def test_a_draw_is_one_launch(backend, never_waits):
    model = nn.ARCSM(nn.MADE(20, (64, 64), 8), nn.ScoreHead(9), noise=nn.NoiseSchedule(1.0, 0.1, 3)).cuda()

    def draw():
        return model.sample(600, method="langevin", steps=2, seed=1)

    with fastcsm.backend(backend):
        draw()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            got = draw()
            torch.cuda.synchronize()
        with never_waits():
            draw()
    names = [event.name for event in profile.events()]
    assert sum("langevin_draw_kernel" in name for name in names) == 1
    with fastcsm.backend("reference"):
        torch.testing.assert_close(got, draw(), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_a_training_step_never_waits_and_can_be_captured(backend, never_waits):
    torch.manual_seed(0)
    model = nn.ARCSM(nn.MADE(30, (64, 64), 8), nn.ScoreHead(9), noise=nn.NoiseSchedule(1.0, 0.1)).cuda()
    x = torch.randn(64, 30, device="cuda")
    noise = model.draw_noise(x.shape, None, x.device, x.dtype)

    def step():
        with fastcsm.backend(backend):
            loss = model.csm_loss(x, noise=noise)
            return loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))

    expected = step()
    with never_waits():
        step()
    assert all(torch.equal(a, b) for a, b in zip(replayed(step), expected))


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
    """Log-densities and flows of rows of a head whose densities exist, plain and preconditioned, as one."""
    _, context, x = head_and_rows(rows)
    head = nn.ScoreHead(32, (128, 128), "softplus", frequencies=0).cuda()
    restoring(head.weights, head.biases)
    kinds = (context[:, :-1].contiguous(), None), (context, 3.0)

    def run(part=slice(None)):
        results = []
        for given, squash in kinds:
            at = given[part], x[part], head.weights, head.biases
            options = {"activation": "softplus", "squash": squash}
            results += functional.conditional_density(
                *at, **options, low=-1.0, high=1.0, score_scale=2.0, stage_feature=0.5
            )
            results += functional.probability_flow(*at, **options, sigma_from=0.1, sigma_to=1.0)
        return results

    return run


@pytest.mark.gpu
@torch.no_grad()
def test_densities_of_more_rows_than_programs(backend):
    run = densities(70000)
    with fastcsm.backend(backend):
        whole, last = run(), run(slice(-64, None))
    assert all(torch.equal(a[-64:], b) for a, b in zip(whole, last))
    assert whole[1].isfinite().all()


@pytest.mark.gpu
@torch.no_grad()
def test_densities_captured_in_a_graph(backend):
    run = densities(1000)
    with fastcsm.backend(backend):
        expected, captured = run(), replayed(run)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
