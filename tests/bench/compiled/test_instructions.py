"""How many instructions the C++ kernels take, under callgrind; no timing."""

import pytest

from fastcsm.bench.compiled import instructions


@pytest.mark.slow
def test_no_op_takes_more_instructions(nothing_worse):
    assert "csm_loss" in nothing_worse("instructions")


def test_only_the_library_counts():
    text = """desc: Trigger: Client Request: csm_loss: N = 4
ob=(1) /x/_cpu.abi3.so
fn=(1) kernel
12 100
+3 20
cob=(2) /x/libm.so
cfn=(2) exp
calls=7 5
+1 4000
-2
* 3
ob=(2)
fn=(2)
5 4000
ob=(1)
fn=(3) tail
7 1
"""
    assert instructions.parse(text, "/x/_cpu.abi3.so") == ("csm_loss: N = 4", 124)
    assert instructions.parse(text, "/x/libm.so")[1] == 4000


def test_every_line_of_the_table_is_measured():
    kernels = instructions.TABLE.read()["kernels"]
    assert sorted(title for title, _ in instructions.calls("")) == sorted(kernels)
    assert all(figures["instructions"] > 1000 for figures in kernels.values())
