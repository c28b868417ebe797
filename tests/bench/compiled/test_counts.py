"""What compiled kernels execute: compared with the committed tables, and what is predicted from them."""

import re
from pathlib import Path

import pytest

from fastcsm.bench.compiled import counts
from fastcsm.bench.machine import cuda_launchers, host, predict

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(bool(host.why_not()), reason=host.why_not())
#: Of each backend what is counted in seconds; densities take most of the time of the rest.
QUICK = {
    "triton": "csm_loss.* E=0 bfloat16|(score_head|langevin).* E=16 bfloat16 sm_90|linear.* bfloat16 sm_90",
    "cuda": "csm_loss|score_head|langevin|linear|density.* E=16 bfloat16",
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", QUICK)
def test_no_kernel_executes_more(nothing_worse, backend):
    if backend == "cuda" and cuda_launchers.why_not():
        pytest.skip(cuda_launchers.why_not())
    found = nothing_worse("counts", "--backend", backend, "--only", QUICK[backend])
    assert "csm_loss_kernel E=0 bfloat16" in found


def test_a_worse_kernel_is_named():
    known, name = counts.TABLES["cuda"], "csm_loss_kernel E=0 bfloat16 sm_90"
    figures = known.read()["kernels"][name]
    assert known.compare({name: figures}) == []
    worse = {**figures, "wavefronts": figures["wavefronts"] * 1.1, "path": figures["path"] + 100}
    first, second = known.compare({name: worse})
    assert first.startswith(f"{name}: wavefronts")
    assert "(+10.0%, 2% allowed)" in first
    assert second.startswith(f"{name}: path")


def test_predictions_are_those_of_the_page():
    page = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- predicted -->\n(.*?)<!-- end -->", page, re.DOTALL)[1]
    assert found == counts.page(), "bench/compiled/counts.py --predict says something else"


def test_more_work_never_takes_less():
    unit = counts.TABLES["cuda"].read()["kernels"]["csm_loss_kernel E=0 bfloat16 sm_90"]
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
