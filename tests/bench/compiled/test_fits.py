"""That every op runs on every device: its committed configurations."""

import json
import re

from fastcsm.bench.compiled import table


def test_every_op_fits_every_device():
    fits = json.loads((table.RESULTS / "fits.json").read_text())
    found = {}
    for name, value in fits.items():
        label, limit, kernel = re.fullmatch(r"(.*) (\d+) (\w+) \(Triton 3\.6\.0\)", name).groups()
        assert int(value.split()[-2]) <= int(limit), name
        found.setdefault((label, int(limit)), set()).add(kernel)
    heads, precisions, limits = 5, 4, 3
    assert len(found) == heads * precisions * limits
    ops = set().union(*found.values())
    passes = {"csm_loss_kernel", "score_head_bwd_kernel"}
    assert passes < ops
    for (label, limit), kernels in found.items():
        refused = label.endswith("2x512 float32") and limit == 101_376
        assert kernels == (ops - passes if refused else ops), (label, limit)
