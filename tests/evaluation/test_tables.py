"""What an evaluation prints."""

import pytest
import torch
from test_likelihood import _model

from fastcsm import evaluation
from fastcsm.data import Transform
from fastcsm.evaluation import tables


@pytest.fixture
def rows():
    """A likelihood that does not exist, and one by logits that does."""
    x, transform = torch.randn(5, 2), Transform((2,), 256, (0.0, 0.0), (1.0, 1.0), 1e-6)
    return [
        {"method": "quadrature", "noise": 0.1}
        | evaluation.likelihood(_model(exists), x, "quadrature", transform=transform, bits=exists)
        for exists in (False, True)
    ]


def test_rows_without_a_density_are_said_and_counted(rows):
    lines = tables._likelihood(rows, 0.0)
    said = [line for line in lines if "rows have no density" in line]
    assert len(said) == 1
    assert said[0].startswith("diverged, and left out of the means: 5 of 5 rows have no density (NaN)")
    lost, found = (line for line in lines if "x + 0.1 z" in line and " of 5 " in line)
    assert "5 of 5" in lost
    assert "0 of 5" in found
    assert not any("rows have no density" in line for line in tables._likelihood(rows[1:], 0.0))


def test_every_figure_is_in_a_table(rows):
    lines, row = tables._likelihood(rows, 1.5), rows[1]
    assert max(len(line) for line in lines if "rows have no density" not in line) <= 120
    text = "\n".join(lines)
    assert "are nats +1.5000" in text
    for name in ("nats", "nats_as_given", "nats_of_logits"):
        assert f"{row[name]['mean']:.3f} +- {row[name]['standard_error']:.3f}" in text
    for name in ("trimmed_mean", "median", "worst"):
        assert f" {row['nats'][name]:.3f} " in text
    for name in ("mean", "largest"):
        assert f"{row['error'][name]:.1e}" in text
    for name in ("nats_per_dimension", "bits_per_dimension"):
        assert f"{row[name]['mean']:.4f} +- {row[name]['standard_error']:.4f}" in text
    draws = {"method": "flow", "samples": 64, "seconds": 0.5, "per_second": 128.0}
    assert tables._draws(draws) == "draws by flow: 128 a second (64 in 0.50 s)"
    assert "0.25 a second" in tables._draws(draws | {"per_second": 0.25})
