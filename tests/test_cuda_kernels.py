"""The CUDA kernels, executed on the host under AddressSanitizer, UBSan and the checks of csrc/emulation/."""

import emulation
import pytest

pytestmark = pytest.mark.skipif(bool(emulation.why_not()), reason=emulation.why_not())
FILES = [
    "tests/emulated_kernels.py",
    "tests/emulated_langevin.py",
    "tests/emulated_masked_linear.py",
    "tests/emulated_density.py",
    "tests/emulated_flow.py",
]


@pytest.mark.slow
def test_every_kernel_under_sanitizers(tmp_path):
    library = emulation.build_library(tmp_path)
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--durations=8"]

    def run(file):
        return emulation.python("-m", "pytest", *options, file, FASTCSM_EMULATION=str(library))

    for done in emulation.at_once(run, FILES):
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[:6000]
        assert "skipped" not in done.stdout
