"""The CUDA kernels, executed on the host under AddressSanitizer, UBSan and the checks of csrc/emulation/.

Where tests/bench/machine/ runs them as compiled, and judges accuracy too, each shape is run here in one
precision; FASTCSM_WHOLE=1 runs all.
"""

import os
from pathlib import Path

import emulation
import pytest

from fastcsm.bench.machine import cuda_launchers

pytestmark = pytest.mark.skipif(bool(emulation.why_not()), reason=emulation.why_not())
#: Each a process's share.
FILES = [("kernels", "langevin"), ("density", "masked_linear", "flow")]


@pytest.mark.slow
def test_every_kernel_under_sanitizers(tmp_path):
    library = emulation.build_library(tmp_path)
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--durations=8"]
    if not cuda_launchers.why_not() and not os.environ.get("FASTCSM_WHOLE"):
        options += ["-p", "rotation"]
    folder = str(Path(emulation.__file__).parent)
    paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))

    def run(names):
        files = [f"tests/emulated/emulated_{name}.py" for name in names]
        environment = {"FASTCSM_EMULATION": str(library), "PYTHONPATH": paths}
        return emulation.python("-m", "pytest", *options, *files, **environment)

    for done in emulation.at_once(run, FILES):
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[:6000]
        assert "skipped" not in done.stdout
