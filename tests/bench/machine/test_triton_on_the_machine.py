"""The Triton kernels as compiled, launched as on a GPU and executed by bench/machine/.

``MACHINE_ALL=1 pytest tests/bench/machine/test_triton_on_the_machine.py`` runs every op in every precision
with every head, which takes hours; with another version of Triton first in PYTHONPATH, that one's.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import emulation
import pytest

from fastcsm.bench.machine import host

ROOT = Path(__file__).parents[3]
FILES = [Path(__file__).with_name(f"triton_{name}.py") for name in ("kernels", "launches")]
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(bool(host.why_not()), reason=host.why_not()),
]


@pytest.mark.slow
def test_every_triton_kernel_as_compiled():
    options = ["-q", "-p", "no:cacheprovider", "--durations=8"]

    def run(architecture):
        environment = {**os.environ, "TRITON_INTERPRET": "0", "ARCH": str(architecture)}
        command = [sys.executable, "-m", "pytest", *options, *FILES]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    for done in emulation.at_once(run, (80, 90)):
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[:4000]
        assert "skipped" not in done.stdout
