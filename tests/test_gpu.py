"""The Triton backend on a CUDA device, and what its programs do without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcsm
from fastcsm import functional, nn

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


@pytest.mark.gpu
def test_every_kernel_is_as_accurate_as_plain_pytorch(tmp_path):
    done = program("gpu.py", "--check", "--out", str(tmp_path / "checks.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads((tmp_path / "checks.json").read_text())["checks"]
    assert set(checks) == {"float32", "tf32", "bfloat16", "float16"}


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


@pytest.mark.gpu
def test_captured_in_a_graph():
    head, context, x = head_and_rows(5000)
    expected = gradients(head, context, x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        gradients(head, context, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(head, context, x)
    graph.replay()
    torch.cuda.synchronize()
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
