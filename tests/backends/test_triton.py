import importlib.util

import pytest
import torch

from fastcsm import backends


def test_a_tree_without_its_kernels_says_so(monkeypatch):
    """As a raw copy of the sources is, in which kernels/ is beside the package."""
    pytest.importorskip("triton")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fastcsm.kernels" else find(name)
    )
    reason = "its kernels are not importable: install fastcsm, or link fastcsm/kernels to kernels/"
    assert backends.Triton().missing() == [reason]


@pytest.mark.parametrize(("limit", "refused"), [(101_376, True), (166_912, False)])
def test_what_fits_no_program_of_a_device_is_refused(limit, refused, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(backends.Triton, "interpreted", staticmethod(lambda: False))
    monkeypatch.setattr(backends.Triton, "shared_bytes", lambda self: limit)
    for dtype, widths in (
        (torch.float32, (512, 512, 1)),
        (torch.bfloat16, (512, 512, 1)),
        (torch.float32, (128, 1)),
    ):
        reasons = backends.Triton().refuses("csm_loss", backends.Request("cuda", dtype, widths, 66))
        exact = dtype is torch.float32 and widths[0] == 512
        assert reasons == ["it needs 160 KiB of shared memory, a program has 99"] * (refused and exact)
