import pytest
import torch

import fastcsm
from fastcsm import backends
from fastcsm.backends import Request

REQUEST = Request("cpu", torch.float32, (8, 1))


def test_the_error_has_every_reason(known, monkeypatch):
    cpu = backends.CPU()
    monkeypatch.setattr(cpu, "missing", lambda: [])
    backends.register(cpu)
    request = Request("cuda", torch.float16, (8,) * 6 + (1,))
    with fastcsm.backend("cpu"), pytest.raises(RuntimeError) as caught:
        backends.select("csm_loss", request)
    message = str(caught.value)
    assert "on cuda" in message
    assert "torch.float16 is not one of" in message
    assert "6 hidden layers are more than 4" in message
    monkeypatch.setattr(cpu, "ops", ("csm_loss",))
    with fastcsm.backend("cpu"), pytest.raises(RuntimeError, match="it has no masked_linear"):
        backends.select("masked_linear", REQUEST)
    with (
        fastcsm.backend("cpu"),
        pytest.raises(RuntimeError, match="cannot run linear_csm_loss: it has no mas"),
    ):
        backends.select("linear_csm_loss", REQUEST)
    assert backends.select("csm_loss", request) is backends.Reference().implementation("csm_loss")


def test_a_missing_library_is_named_and_auto_falls_back(known, loss, monkeypatch, tmp_path):
    cpu = backends.CPU()
    broken = tmp_path / "_cpu.abi3.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "path", lambda: broken)
    backends.register(cpu)
    assert loss().isfinite()
    with fastcsm.backend("cpu"), pytest.raises(RuntimeError, match=r"_cpu\.abi3\.so does not load"):
        loss()
    assert fastcsm.info()["ops"]["csm_loss"]["cpu"]["backend"] == "reference"
    absent = backends.CPU()
    monkeypatch.setattr(absent, "path", lambda: None)
    assert "is not built" in absent.missing()[0]
