"""CUDA C++ as compiled, launched by its own launch code, executed on the machine.

FASTCSM_WHOLE=1 also compiles every kernel for sm_80 and runs it.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest
import torch
from support import Case, split

import fastcsm
from fastcsm import backends, functional
from fastcsm.bench.machine import cuda_launchers, host

pytestmark = pytest.mark.skipif(bool(cuda_launchers.why_not()), reason=cuda_launchers.why_not())
ROOT = cuda_launchers.ROOT
#: Each a process's share.
FILES = (("kernels", "flow"), ("density", "masked_linear", "langevin"))
whole = pytest.mark.skipif(not os.environ.get("FASTCSM_WHOLE"), reason="FASTCSM_WHOLE is not set")


def run_emulated(*jobs):
    """Run jobs (architecture, names of files) on the machine, as many at a time as there are processors."""
    cuda_launchers.build()  # here, so that processes do not build at once
    host.library()
    paths = [ROOT, Path(__file__).parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]

    def run(job):
        environment = {
            **os.environ,
            "FASTCSM_MACHINE": str(job[0]),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": "1",
        }
        files = [f"tests/emulated/emulated_{name}.py" for name in job[1]]
        if job[0] == 80:
            files += ["-p", "large_heads"]
        return subprocess.run(
            [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(run, jobs):
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
            assert "skipped" not in done.stdout


@pytest.mark.slow
def test_every_kernel_for_sm_90_and_what_differs_for_sm_80():
    run_emulated(*((90, files) for files in FILES), (80, ["langevin"]))


def test_one_source_depends_on_the_architecture():
    """So that what runs for sm_90 would run for sm_80; test_what_compilers_make_for_sm_80 proves it."""
    sources = [path for part in ("cuda", "common") for path in (ROOT / "csrc" / part).iterdir()]
    found = [path.name for path in sources if "__CUDA_ARCH" in path.read_text(encoding="utf-8")]
    assert found == ["langevin.cu"]


def operations(text):
    """The statements of each kernel of a module, registers by the order in which they appear."""
    kernels = re.split(r"^(?=.*\.entry\s)", cuda_launchers.plain_name(text), flags=re.MULTILINE)[1:]
    for kernel in kernels:
        numbers = {}
        for name in re.findall(r"%[a-z]+\d+", kernel):
            numbers.setdefault(name, f"%{len(numbers)}")
        lines = re.sub(r"%[a-z]+\d+", lambda found, numbers=numbers: numbers[found[0]], kernel).splitlines()
        yield [" ".join(line.split()) for line in lines if not re.match(r"\s*(\.reg|//|$)", line)]


@whole
@pytest.mark.parametrize("name", [path.name for path in cuda_launchers.sources()])
def test_what_compilers_make_for_sm_80(name):
    source = ROOT / "csrc" / "cuda" / name
    compiled = cuda_launchers.compiled_ptx(source, 80, cuda_launchers.FOLDER)
    same = list(operations(compiled)) == list(operations(cuda_launchers.shipped_ptx(source)))
    assert same == (name != "langevin.cu")


@whole
def test_every_kernel_for_sm_80():
    run_emulated(*((80, files) for files in FILES))


@pytest.fixture(scope="module")
def machine():
    backend = cuda_launchers.on_the_machine(90, orders=1)
    yield backend.machine
    del backends.registry.known[backend.name]
    backends.registry._selected.clear()


def loss():
    case = Case(rows=97).to(torch.float32)
    coefficients = {"alpha": case.alpha, "beta": case.beta, "gamma": case.gamma}
    with fastcsm.backend("emulation"):
        head = {"activation": case.activation, "frequencies": case.frequencies}
        return functional.csm_loss(*split(case.leaves()), **head, **coefficients)


def score():
    case = Case(rows=97).to(torch.float32)
    with fastcsm.backend("emulation"):
        return functional.score(
            *split(case.leaves()), activation=case.activation, frequencies=case.frequencies
        )


def test_launches_are_those_of_the_launcher(machine):
    with host.recorded() as found:
        assert loss().isfinite()
    kernels = [re.search(r"\d([a-z_]+_kernel)", launch.kernel)[1] for launch in found]
    assert [kernel for kernel, _ in groupby(kernels)] == ["csm_loss_kernel", "reduce_partials_kernel"]
    assert found[0].grid == (3, 1, 1)
    assert found[0].threads == 256
    assert 48 << 10 < found[0].shared_bytes <= 227 << 10


@pytest.mark.parametrize("of", ["argument", "allocation"])
def test_an_access_past_the_end_is_an_exception(machine, monkeypatch, of):
    def shorter(ranges):
        return [r._replace(bytes=r.bytes - 4) if r.name.startswith(of) else r for r in ranges]

    extents, allocations = cuda_launchers.extents, machine.allocations
    monkeypatch.setattr(cuda_launchers, "extents", lambda arguments: shorter(extents(arguments)))
    monkeypatch.setattr(machine, "allocations", lambda: shorter(allocations()))
    with pytest.raises(host.Fault, match=r"score_head_fwd_kernel") as caught:
        score()
    assert re.search(r"\w+\.(cu|h):\d+", str(caught.value))
    assert isinstance(caught.value.__cause__, RuntimeError)
    monkeypatch.undo()
    assert score().isfinite().all()


def test_a_barrier_taken_out_of_the_shipped_code_is_a_race(machine, monkeypatch):
    source = ROOT / "csrc" / "cuda" / "score_head.cu"
    text = cuda_launchers.shipped_ptx(source)
    monkeypatch.setitem(machine.modules, source, re.sub(r"bar\.sync\s+0;", "", text))
    with pytest.raises(host.Fault, match=r"score_head_fwd_kernel.*\n*.*race"):
        score()


def test_an_error_of_the_machine_is_an_exception(machine, monkeypatch):
    monkeypatch.setattr(host.Launch, "run", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss()


def test_more_shared_memory_than_a_block_may_have_is_refused(machine):
    """By the stand-in for the runtime, where the backend has not done so before."""

    def device(limit):
        machine.library.machine_device(machine.callback, limit, cuda_launchers.MULTIPROCESSORS)

    assert loss().isfinite()
    device(48 << 10)
    try:
        with pytest.raises(RuntimeError, match="more shared memory than a block may have"):
            loss()
    finally:
        device(host.SHARED_LIMIT[90])


def test_what_an_op_allocates_is_known_while_it_runs(machine):
    def op(given):
        short = torch.empty(5)
        torch.empty(7)
        return short, machine.arguments, machine.allocations()

    given = torch.zeros(4, 6)[1:3, 2:4]
    short, arguments, allocations = machine.run(op, given)
    assert arguments == [host.Range("argument 0", given.data_ptr(), 4 * 8)]
    assert allocations == [host.Range("allocation of 20 bytes", short.data_ptr(), 20)]
    assert short.isnan().all()
    assert machine.allocations() == allocations
    del short
    assert machine.allocations() == []
    assert machine.run(lambda: machine.allocations()) == []
