import gc

import torch

from fastcsm.reference import incremental
from fastcsm.reference.incremental import on_host


def test_a_tensor_is_read_once_until_it_is_written_to(monkeypatch):
    reads = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: reads.append(tensor.shape) or torch.ones(2))
    there, kept = torch.empty(3, device="meta"), len(incremental._copies)
    assert on_host(there) is on_host(there)
    assert len(reads) == 1
    there.zero_()
    assert on_host(there) is on_host(there)
    assert len(reads) == 2
    assert len(incremental._copies) == kept + 1
    del there
    gc.collect()
    assert len(incremental._copies) == kept
    with torch.inference_mode():
        uncounted = torch.empty(4, device="meta")
    on_host(uncounted), on_host(uncounted)
    assert len(reads) == 4
    here = torch.ones(5)
    assert on_host(here) is here
