"""What an evaluation prints."""

import torch
from test_likelihood import _model

from fastcsm import evaluation
from fastcsm.evaluation import tables


def test_rows_without_a_density_are_said_and_counted():
    x = torch.randn(5, 2)
    lost = evaluation.likelihood(_model(exists=False), x, "quadrature")
    found = evaluation.likelihood(_model(), x, "quadrature")
    rows = [{"method": "quadrature", "noise": 0.1, "nats_as_given": None} | row for row in (lost, found)]
    said = [line for line in tables._likelihood(rows, 0.0) if "rows have no density" in line]
    assert len(said) == 1
    assert said[0].startswith("diverged, and left out of the means: 5 of 5 rows have no density (NaN)")
    assert not any("no density" in line for line in tables._likelihood(rows[1:], 0.0))
