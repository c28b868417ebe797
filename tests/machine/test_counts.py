"""What compiled kernels execute: compared with the committed tables, and what is predicted from them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import counts
import pytest
import table
from machine import cases, cuda_launchers, host, predict

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(bool(host.why_not()), reason=host.why_not())
#: Of each backend what is counted in seconds; densities take most of the time of the rest.
QUICK = {
    "triton": "csm_loss.* E=0 bfloat16|(score_head|langevin).* E=16 bfloat16 sm_90|linear.* bfloat16 sm_90",
    "cuda": "csm_loss|score_head|langevin|linear|density.* E=16 bfloat16",
}


def run(*arguments):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, ROOT / "bench" / "counts.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("backend", QUICK)
def test_no_kernel_executes_more(backend):
    if backend == "cuda" and cuda_launchers.why_not():
        pytest.skip(cuda_launchers.why_not())
    done = run("--backend", backend, "--only", QUICK[backend])
    if "not compared" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "csm_loss_kernel E=0 bfloat16" in done.stdout


def test_a_worse_kernel_is_named():
    known = table.read(counts.RESULTS / "counts_cuda.json", "nvcc")
    name = "csm_loss_kernel E=0 bfloat16 sm_90"
    figures = known["kernels"][name]
    assert table.compare(known, {name: figures}, cases.FIGURES) == []
    worse = {**figures, "wavefronts": figures["wavefronts"] * 1.1, "path": figures["path"] + 100}
    first, second = table.compare(known, {name: worse}, cases.FIGURES)
    assert first.startswith(f"{name}: wavefronts")
    assert "(+10.0%, 2% allowed)" in first
    assert second.startswith(f"{name}: path")


def test_predictions_are_those_of_the_page():
    page = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- predicted -->\n(.*?)<!-- end -->", page, re.DOTALL)[1]
    assert found == counts.page(), "python bench/counts.py --predict says something else"


def test_more_work_never_takes_less():
    figures = json.loads((counts.RESULTS / "counts_cuda.json").read_text(encoding="utf-8"))["kernels"]
    unit = figures["csm_loss_kernel E=0 bfloat16 sm_90"]
    problem = next(predict.problems())
    code = {"registers": 128, "instructions": int(unit["static"])}

    def time(**changed):
        return predict.predict(predict.H100, problem, "cuda", "bfloat16", {**unit, **changed}, code)

    plain = time()
    assert plain.seconds >= 88.8e9 / (132 * 4096 * 1.7e9)
    for figure in ("weighted", "special", "wavefronts", "flops", "path", "least_sectors"):
        worse = time(**{figure: unit[figure] * 100})
        assert worse.seconds > plain.seconds
    assert time(path=unit["path"] * 100).binds == "dependences"
    assert time(flops=unit["flops"] * 100).binds == "matrix units"


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks"),
    [(255, 128, 0, 2), (255, 256, 0, 1), (128, 256, 14_000, 2), (32, 128, 100_000, 2), (16, 1024, 0, 2)],
)
def test_blocks_that_share_a_multiprocessor(registers, threads, shared, blocks):
    assert predict.resident(predict.H100, {"threads": threads, "shared": shared}, registers) == blocks
