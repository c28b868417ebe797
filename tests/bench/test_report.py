"""Tables of results."""

import re

from fastcsm.bench.harness import report


def row(name, median, own=False, **more):
    seconds = {"q1": median * 0.9, "median": median, "q3": median * 1.1}
    return {"name": name, "label": name, "own": own, "status": "ok", "seconds": seconds, **more}


RESULT = {
    "op": "csm_loss",
    "title": "csm_loss: N = 4",
    "operations": 2e9,
    "bytes": 3e6,
    "peaks": {"float32": 5e10, "bfloat16": 4e11},
    "matrix_rates": {"float32": {"8 x 8 x 8": 4e10}, "bfloat16": {"8 x 8 x 8": 1e11}},
    "bandwidth": 6e10,
    "rows": [
        row("eager", 0.5, error=1e-6),
        row("compiled", 0.25, extra_bytes=3 << 20, extrapolated=2.0),
        row("fastcsm", 0.05, own=True, floor_multiple=1.25, mm_multiple=0.9, extra_bytes=0, operations=1e9),
        {"name": "x", "label": "x", "own": False, "status": "unavailable", "reason": "no compiler"},
    ],
}


def test_markdown():
    table = [["a", "b"], ["x", "1"], ["y", "2.0 ± 0.5"]]
    assert report.markdown(table, right=True) == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 2.0 ± 0.5 |"
    assert report.markdown(table).splitlines()[1] == "| --- | --- |"


def test_a_table_for_a_terminal():
    lines = report.format_table(RESULT).splitlines()
    assert lines[0] == "csm_loss: N = 4"
    assert re.split("  +", lines[1])[-4:] == ["time / floor", "time / torch.mm", "extra memory", "error"]
    cells = ["3 fastcsm", "50.0 (45.0-55.0)", "10.00x", "5.00x", "1.25x", "0.90x", "0 MiB"]
    assert re.split("  +", lines[4]) == cells
    assert lines[5].split() == ["4", "x", "unavailable"]
    assert lines[6:] == [
        "  counted: 2.00 GFLOP, 3.0 MB; a copy moves 60 GB/s",
        "  float32: peak 50 GFLOP/s, torch.mm 40 at 8 x 8 x 8",
        "  bfloat16: peak 400 GFLOP/s, torch.mm 100 at 8 x 8 x 8",
        "  fastcsm: 1.00 GFLOP",
        "  x: no compiler",
    ]


def test_a_row_of_the_summary(monkeypatch):
    monkeypatch.setattr(report, "SUMMARY", (("csm_loss", "N = 4", "fastcsm"),))
    last = report.summary({"results": [RESULT]}).splitlines()[-1]
    assert last == "| `csm_loss` | N = 4 | 250 ms: compiled, extrapolated | 50 ms | 5.0x | 3 MiB / 0 MiB |"
