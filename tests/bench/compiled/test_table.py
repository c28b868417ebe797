"""Committed figures beside those at hand: what is worse is named."""

import json
from argparse import Namespace

import pytest

from fastcsm.bench.compiled.table import Table

FIGURES = {"stack": 8, "spills": 10, "shared": 100, "instructions": 1000, "matrix": 4}


@pytest.fixture
def table(tmp_path):
    own = Table(tmp_path / "table.json", "compiler", ("stack", "spills", "shared", "instructions"))
    own.write("c++ 1", {"a": FIGURES, "b": FIGURES}, partly=False)
    return own


def test_what_got_worse_is_named(table):
    better = FIGURES | {"instructions": 1020, "stack": 0, "matrix": 8}
    assert table.compare({"a": FIGURES, "b": better}) == []
    worse = FIGURES | {"spills": 11, "matrix": 0, "instructions": 1021}
    assert table.compare({"b": worse, "c": FIGURES}) == [
        "b: spills 10 -> 11 (+10.0%, 2% allowed)",
        "b: instructions 1000 -> 1021 (+2.1%, 2% allowed)",
        "b: matrix 4 -> 0",
        "c: not in the table; accept it with --accept",
    ]


def test_another_compilers_figures_are_not_compared(table, capsys):
    assert table.not_compared("c++ 1") == ""
    assert "c++ 1" in table.not_compared("c++ 2")
    worse = [("a", FIGURES | {"stack": 9})]
    options = Namespace(accept=False, only="")
    assert table.guard("c++ 2", lambda: 1 / 0, options) == []
    assert table.guard("c++ 1", lambda: worse, options) == ["a: stack 8 -> 9 (+12.5%, 2% allowed)"]
    said, figures = capsys.readouterr().out.splitlines()
    assert said == "not compared: the table is of compiler c++ 1, and c++ 2 is installed"
    assert "stack 9 spills 10" in figures


def test_accepting_keeps_what_was_not_measured(table):
    def accept(version, only, **kernels):
        assert table.guard(version, kernels.items, Namespace(accept=True, only=only)) == []
        return json.loads(table.path.read_text())

    more = FIGURES | {"stack": 9}
    assert accept("c++ 1", "b", b=more)["kernels"] == {"a": FIGURES, "b": more}
    assert accept("c++ 2", "b", b=FIGURES) == {"compiler": "c++ 2", "kernels": {"b": FIGURES}}
    assert accept("c++ 2", "", a=FIGURES)["kernels"] == {"a": FIGURES}


def test_a_part_of_a_file_is_a_table(table):
    part = table._replace(part="cuda", tool="nvcc")
    assert part.read() == {"nvcc": None, "kernels": {}}
    part.write("13", {"k": FIGURES}, partly=False)
    assert part.not_compared("13") == ""
    assert (
        json.loads(table.path.read_text())["cuda"] == part.read() == {"nvcc": "13", "kernels": {"k": FIGURES}}
    )
    assert set(table.read()["kernels"]) == {"a", "b"}
