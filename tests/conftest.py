import importlib.util
import os
import sys
from pathlib import Path

# Small tests are quicker on one thread, in their subprocesses too; those about threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Rooms of tests share what they have by its name, of which there is one; and look at programs that measure.
sys.path.extend(sorted({str(path.parent) for path in Path(__file__).resolve().parent.rglob("*.py")}))
sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

# Triton reads this when kernels are defined: without a GPU they run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings

from fastcsm import backends

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["*test_kernels.py"]

settings.register_profile("fastcsm", max_examples=15, deadline=None, derandomize=True)
settings.load_profile("fastcsm")


def pytest_collection_modifyitems(items):
    # The longest first, so that no process is left with one at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


#: Multiply-adds that are worth a thread of the processor's library.
WORTH = 8 << 20


@pytest.fixture
def threads():
    """Sets the number of threads, by default torch's, for the smallest work too; undone after the test."""
    before = torch.get_num_threads()

    def set_threads(count, own=False, worth=0.0):
        torch.set_num_threads(count)
        if not backends.CPU().missing():
            torch.ops.fastcsm_cpu.set_sharing(worth, own)

    yield set_threads
    set_threads(before, worth=WORTH)
