"""The CUDA kernels, executed on the host under AddressSanitizer, UBSan and the checks of csrc/emulation/."""

import emulation
import pytest

pytestmark = pytest.mark.skipif(bool(emulation.why_not()), reason=emulation.why_not())


@pytest.mark.slow
def test_every_kernel_under_sanitizers(tmp_path):
    library = emulation.build_library(tmp_path)
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--durations=8"]
    files = ["tests/emulated_kernels.py", "tests/emulated_langevin.py"]
    done = emulation.python("-m", "pytest", *options, *files, FASTCSM_EMULATION=str(library))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[:6000]
    assert "skipped" not in done.stdout
