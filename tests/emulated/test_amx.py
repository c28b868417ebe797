"""The matrix-tile path of the CPU library: csrc/cpu/gemm.h on emulated tiles, sanitized, on any processor."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which("g++")


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
def test_products_on_emulated_tiles_are_right_and_stay_in_bounds(tmp_path):
    program = tmp_path / "amx_test"
    flags = ["-O2", "-std=c++20", "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = CSRC / "emulation" / "amx_test.cpp"
    build = subprocess.run(
        [COMPILER, *flags, f"-I{CSRC}", str(source), "-o", str(program)], capture_output=True, text=True
    )
    if "error: bad value" in build.stderr or "not supported" in build.stderr:
        pytest.skip("this compiler does not know AVX512_BF16")
    assert build.returncode == 0, build.stderr
    run = subprocess.run([str(program)], capture_output=True, text=True)
    if run.stdout.startswith("skipped"):
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr
