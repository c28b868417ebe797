"""When "auto" takes the CUDA C++ kernels: where a measurement on a GPU says that they are faster."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fastcsm import backends
from fastcsm.backends import Request, measured
from fastcsm.bench.gpu import measured as program

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_force(tmp_path, monkeypatch, capsys):
    """bench/gpu/measured.py's table of two results, in force."""

    def result(op, precision, triton, cuda, **config):
        rows = {"triton": {"median": triton}, **({"cuda": {"median": cuda}} if cuda else {})}
        return {"op": op, "precision": precision, "config": config, "rows": rows, "inaccurate": []}

    results = [
        result("csm_loss", "tf32", 3.0, 2.0, head=[33, 128, 128]),
        result("csm_loss", "tf32", 2.0, 3.0, head=[65, 128, 128]),
        result("csm_loss", "bfloat16", 2.0, None, head=[33, 128, 128]),
        result("masked_linear", "tf32", 1.0, 1.0),
        result("langevin", "tf32", 1.0, 2.0, head=[33, 128]) | {"inaccurate": ["triton"]},
        result("masked_linear", "tf32", 2.0, 1.0, layer=[512, 4096], rows=64),
        result("masked_linear", "tf32", 1.0, 2.0, layer=[512, 4096], rows=1024),
        result("masked_linear_backward", "tf32", 2.0, 1.0, layer=[512, 4096], rows=1024),
    ]
    given, table = tmp_path / "gpu.json", tmp_path / "measured.json"
    parts = {f"part {i}": result for i, result in enumerate([*results, {"status": "timeout"}])}
    given.write_text(json.dumps({"dry": False, "timings": parts}))
    monkeypatch.setattr(sys, "argv", ["measured.py", str(given), "--out", str(table)])
    assert program.main() == 0
    assert capsys.readouterr().out == "5 of 9 timings measured both backends\n"
    rows = tuple(measured.Row(**row) for row in json.loads(table.read_text()))
    monkeypatch.setattr(measured, "table", lambda: rows)
    return rows


def test_the_committed_table_is_one():
    for row in measured.table():
        assert row.op.removesuffix("_backward") in backends.OPS
        assert row.precision in ("float32", "tf32", "bfloat16")
        assert row.backend in ("cuda", "triton")
        assert row.ratio >= 1
        assert (ROOT / row.file).exists()


def test_rows_speak_for_heads_up_to_theirs(in_force):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert measured.why_not_cuda("csm_loss", torch.float32, 33, (128, 128, 1)) == ""
        assert measured.why_not_cuda("csm_loss", torch.float32, 5, (64, 1)) == ""
        slower = measured.why_not_cuda("csm_loss", torch.float32, 34, (128, 128, 1))
        assert slower == "Triton's kernel was 1.50 times as fast (bench/results/gpu.json)"
        for inputs, widths in ((66, (128, 1)), (33, (129, 1)), (33, (8, 8, 8, 1))):
            assert "not measured" in measured.why_not_cuda("csm_loss", torch.float32, inputs, widths)
        assert "not measured" in measured.why_not_cuda("csm_loss", torch.bfloat16, 33, (128, 128, 1))
    finally:
        torch.set_float32_matmul_precision(before)
    assert "not measured" in measured.why_not_cuda("csm_loss", torch.float32, 33, (128, 128, 1))


def test_rows_on_masked_layers_speak_for_batches_up_to_theirs(in_force, monkeypatch):
    """And for no part of linear_csm_loss, whose own rows do."""
    monkeypatch.setattr(measured, "precision", lambda _: "tf32")

    def refused(op="masked_linear", widths=(4096,), inputs=512, rows=0):
        return "".join(Found().refuses(op, Request("cpu", torch.float32, widths, inputs, rows)))

    assert refused(rows=64) == ""
    assert "Triton's kernel was 2.00 times as fast" in refused(rows=128)
    assert "not measured" in refused(rows=2048)
    assert "not measured" in refused(rows=64, widths=(4097,))
    assert refused("masked_linear_backward", rows=128) == ""
    assert "not measured" in refused("masked_linear_backward_into", (128, 128, 1), 33)


class Found(backends.CUDA):
    """The backend as on a machine that has the library and a device."""

    name, device = "found", "cpu"

    def missing(self):
        return []

    def kernels(self):
        class Library:
            @staticmethod
            def shared_bytes(op, half, inputs, layers):
                return layers * (50 << 10), 163 << 10

        return Library


def test_auto_asks_the_table_and_a_name_does_not(in_force, known):
    request = Request("cpu", torch.float32, (128, 128, 1), 33)
    assert Found().refuses("csm_loss", request) == [
        "not measured on a GPU, so it runs only where it is chosen by name"
    ]
    known["found"] = Found()
    with backends.backend("found"):
        assert Found().refuses("csm_loss", request) == []
        assert Found().refuses("masked_linear", request) == []
        wide = Request("cpu", torch.float32, (129, 1), 33)
        assert "wider than 128" in Found().refuses("csm_loss", wide)[0]
        deep = Request("cpu", torch.float32, (8, 8, 8, 8, 1), 33)
        assert "it needs 200 KiB of shared memory, a block has 163" in Found().refuses("csm_loss", deep)[0]
