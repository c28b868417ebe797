import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).resolve().parents[3] / "bench" / "compiled"


@pytest.fixture
def nothing_worse():
    """Runs a program of bench/compiled, which must find nothing worse, or skips what it cannot compare."""

    def run(name, *arguments):
        command = [sys.executable, PROGRAMS / f"{name}.py", *arguments]
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if "not compared" in done.stdout or "not counted" in done.stdout:
            pytest.skip(done.stdout.strip())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
