"""That no kernel computes an offset into rows in less than 64 bits."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CODE = """
import sys
from fastcsm.bench.compiled import offsets

text = '''%a = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
%b = tt.addptr %a, %i : tensor<16x!tt.ptr<f32>>, tensor<16xi32>'''
assert offsets.short_offsets(text) == ["x"]
assert offsets.short_offsets(text.replace("i32", "i64")) == []
text = "%a = tt.addptr %out.point, %r : !tt.ptr<bf16>, i32"
assert offsets.short_offsets(text) == ["out.point"]
assert offsets.short_offsets(text.replace("i32", "i64")) == []
sys.exit(offsets.main())
"""


def test_short_offsets_are_found_and_no_kernel_has_one():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= 69
