import pytest
import torch

import fastcsm
from fastcsm import nn
from fastcsm.backends import registry


@pytest.fixture
def known(monkeypatch):
    """The backends by name; what the test registers is forgotten after it."""
    monkeypatch.setattr(registry, "known", dict(registry.known))
    monkeypatch.setattr(registry, "_selected", {})
    return registry.known


@pytest.fixture
def loss():
    """A call of csm_loss with a small head."""
    head = nn.ScoreHead(2, (4,))
    return lambda: fastcsm.csm_loss(head, torch.randn(3, 2, 2), torch.randn(3, 2))
