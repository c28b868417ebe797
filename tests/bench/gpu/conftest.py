import pytest
import torch


@pytest.fixture
def dry(monkeypatch):
    """The program of a process of bench/gpu, with tiny sizes."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("bench/gpu runs them on the device")
    from fastcsm.bench.gpu import subjects, work

    monkeypatch.setattr(subjects, "DRY", True)
    before = torch.get_float32_matmul_precision()
    yield work
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def run(dry):
    """Runs a kind of work on the CPU library, in the place of CUDA C++: (what it returns, what it kept)."""

    def run(kind, name):
        kept = {}
        return dry.KINDS[kind](name, dry.subjects.Plan(("cuda",), 2), kept.update), kept

    return run
