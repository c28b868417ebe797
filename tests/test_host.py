import gc

import torch

from fastcsm import host
from fastcsm.host import on_host


def test_a_tensor_is_read_once_until_it_is_written_to(monkeypatch):
    reads = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: reads.append(tensor.shape) or torch.ones(2))
    there, kept = torch.empty(3, device="meta"), len(host._copies)
    assert on_host(there) is on_host(there)
    assert len(reads) == 1
    there.zero_()
    assert on_host(there) is on_host(there)
    assert len(reads) == 2
    assert len(host._copies) == kept + 1
    del there
    gc.collect()
    assert len(host._copies) == kept
    with torch.inference_mode():
        uncounted = torch.empty(4, device="meta")
    on_host(uncounted), on_host(uncounted)
    assert len(reads) == 4
    here = torch.ones(5)
    assert on_host(here) is here


def test_constants_are_made_once_and_kept():
    make = [(value, 2.0, dtype) for value in range(200) for dtype in (torch.float32, torch.float64)]
    first = [host.constant((a, b), dtype, torch.device("cpu")) for a, b, dtype in make]
    again = [host.constant((a, b), dtype, torch.device("cpu")) for a, b, dtype in make]
    assert all(a is b for a, b in zip(first, again))
    assert first[3].dtype is torch.float64
    assert first[3].tolist() == [1.0, 2.0]
    lines = host.constant(((1.0, 2.0), (3.0, 4.0)), torch.float32, torch.device("cpu"))
    assert torch.equal(lines, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
