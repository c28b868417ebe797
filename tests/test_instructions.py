"""How many instructions the C++ kernels take, under callgrind; no timing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "bench" / "instructions.py"
TABLE = json.loads((ROOT / "bench" / "results" / "instructions.json").read_text())


@pytest.fixture(scope="module")
def instructions():
    """The program as a module."""
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        spec = importlib.util.spec_from_file_location("instructions", PROGRAM)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(PROGRAM.parent))


@pytest.mark.slow
def test_no_op_takes_more_instructions():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    if done.stdout.startswith(("not compared", "not counted")):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "csm_loss" in done.stdout


def test_an_op_that_takes_more_is_named(instructions):
    before = {"compiler": "c++ 1", "kernels": {"a": {"instructions": 1000}, "b": {"instructions": 1000}}}
    same = {"a": {"instructions": 1020}, "b": {"instructions": 900}}
    assert instructions.table.compare(before, same, instructions.FIGURES) == []
    worse = {"b": {"instructions": 1021}, "c": {"instructions": 5}}
    found = instructions.table.compare(before, worse, instructions.FIGURES)
    assert found == [
        "b: instructions 1000 -> 1021 (+2.1%, 2% allowed)",
        "c: not in the table; accept it with --accept",
    ]
    assert "c++ 1" in instructions.table.not_compared(before, "compiler", "c++ 2")
    assert instructions.table.not_compared(before, "compiler", "c++ 1") == ""


def test_only_the_library_counts(instructions):
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


def test_accepting_keeps_what_was_not_measured(instructions, tmp_path):
    path = tmp_path / "table.json"
    instructions.table.write(path, "compiler", "c++ 1", {"a": {"instructions": 1}}, partly=True)
    instructions.table.write(path, "compiler", "c++ 1", {"b": {"instructions": 2}}, partly=True)
    assert json.loads(path.read_text())["kernels"] == {"a": {"instructions": 1}, "b": {"instructions": 2}}
    instructions.table.write(path, "compiler", "c++ 2", {"b": {"instructions": 3}}, partly=True)
    assert json.loads(path.read_text()) == {"compiler": "c++ 2", "kernels": {"b": {"instructions": 3}}}


def test_every_line_of_the_table_is_measured(instructions):
    assert sorted(title for title, _ in instructions.calls("")) == sorted(TABLE["kernels"])
    assert all(figures["instructions"] > 1000 for figures in TABLE["kernels"].values())
