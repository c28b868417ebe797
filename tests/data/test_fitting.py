import numpy as np
import pytest
import torch

from fastcsm import data
from fastcsm.data import Transform, fitting
from fastcsm.data.fitting import dequantised, grid_step, with_logits

RNG = np.random.default_rng(0)
WHOLE = np.arange(50.0)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (WHOLE, 1.0),
        (WHOLE[[3, 7, 9, 13]], 2.0),
        (100 * WHOLE + 7, 100.0),
        (1.6e9 + 3 * WHOLE, 3.0),
        (2.0**52 + WHOLE, 1.0),
        (WHOLE / 10, 0.1),
        (WHOLE / 4, 0.25),
        (WHOLE / 128, 1 / 128),
        (np.round(RNG.uniform(-450, 470, 3000), 4), 1e-4),
        (np.array([0.0, 1.0]), 1.0),
        (np.array([-0.5, 0.5]), 1.0),
        (np.array([7.0]), 1.0),
    ],
)
def test_the_step_of_a_grid(values, step):
    assert grid_step(np.unique(values)) == pytest.approx(step, rel=1e-12)
    if np.abs(values).max() < 1e4:  # where float32 tells the values apart
        assert grid_step(np.unique(values.astype(np.float32))) == pytest.approx(step, rel=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(size=400),
        RNG.normal(size=3),
        np.concatenate([WHOLE / 10, [1 / 3]]),
        1e300 * RNG.normal(size=20),
        1e-300 * RNG.normal(size=20),
        1e-12 * WHOLE,
        np.array([0.3]),
        np.sqrt(WHOLE[2:4]),
    ],
)
def test_numbers_on_no_grid(values):
    assert grid_step(np.unique(values)) == 0
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if np.isfinite(single).all() and single.any():
        assert grid_step(np.unique(single)) == 0


def _moments(transform, rows):
    """Mean and deviation of rows in model space, over rows and u."""
    u = (torch.arange(900) + 0.5) / 900
    x = torch.cat([transform.encode(torch.from_numpy(rows), part.expand(rows.shape)) for part in u]).double()
    return x.mean(0), x.std(0, correction=0)


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_logits_are_standardised_over_all_u(alpha, monkeypatch):
    monkeypatch.setattr(fitting, "_ROWS", 7)
    rows = RNG.integers(0, 256, (60, 4)).astype(np.uint8)
    rows[:, 0], rows[:, 1] = 0, 128
    transform = with_logits(Transform((4,), 256), rows, alpha)
    assert len(set(transform.shift)) == len(set(transform.scale)) == 1
    mean, deviation = _moments(transform, rows)
    assert mean.mean() == pytest.approx(0, abs=1e-3)
    assert (deviation.square() + mean.square()).mean() == pytest.approx(1, abs=1e-3)


def test_dequantised_columns_are_standardised_over_all_u():
    rows = np.stack(
        [RNG.integers(0, 2, 80), np.full(80, 3.0), RNG.integers(0, 30, 80) / 10, RNG.normal(size=80)], 1
    )
    constant = np.array([False, True, False, False])
    shift, scale = rows.mean(0), np.where(constant, 1.0, rows.std(0))
    found = dequantised(Transform((4,), 0, tuple(shift), tuple(scale)), rows, None)
    assert found.step == pytest.approx((1, 1, 0.1, 0))
    few, alone = rows[:20, 2:3], Transform((1,), 0, (0.0,), (1.0,))
    assert dequantised(alone, few, None) == alone  # which hardly repeat
    assert dequantised(alone, few, [0]).step == pytest.approx((0.1,))
    assert dequantised(alone, 10 * few, None).step == pytest.approx((1,))
    assert (found.shift[3], found.scale[3]) == (shift[3], scale[3])
    mean, deviation = _moments(found, rows)
    torch.testing.assert_close(mean, torch.zeros(4).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(deviation, torch.ones(4).double(), rtol=0, atol=1e-4)


def test_noise_is_fresh_in_batches_and_fixed_in_held_out_rows(tmp_path):
    table = np.stack([RNG.integers(0, 5, 60), RNG.normal(size=60)], 1)
    np.save(tmp_path / "t.npy", table)
    plain = data.load(tmp_path / "t.npy")
    found = data.load(tmp_path / "t.npy", dequantize="0")
    assert found.fingerprint() == plain.fingerprint()
    generator, rows = torch.Generator().manual_seed(0), torch.arange(54)
    a, b = (found.batch(rows, generator) for _ in range(2))
    assert (a[:, 0] != b[:, 0]).all()
    assert torch.equal(a[:, 1], b[:, 1])
    assert torch.equal(a[:, 1], plain.batch(rows, generator)[:, 1])
    assert torch.equal(found.held_out("test", 3), found.held_out("test", 3))
    assert (found.held_out("test", 3)[:, 0] != found.held_out("test", 4)[:, 0]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"dequantize": "1"},
            "names column 1, whose 18 values from .* are on no grid, expected whole numbers",
        ),
        ({"dequantize": "0,2"}, "names column 2, expected columns from 0 to 1"),
        ({"dequantize": "all"}, "dequantize is 'all', expected 'none', 'auto' or numbers"),
        ({"logit_alpha": 1e-6}, "logit_alpha is 1e-06 for .*, expected 0 for other than grey values"),
        ({"grey": True, "logit_alpha": 0.5}, r"logit_alpha is 0.5, expected a number in \[0, 0.5\)"),
        ({"grey": True, "logit_alpha": float("nan")}, "logit_alpha is nan, expected a number"),
        ({"grey": True, "dequantize": "auto"}, "dequantize is 'auto' for grey values, which always are"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, options, words):
    options = dict(options)
    rows = np.stack([np.arange(20), RNG.normal(size=20)], 1)
    np.save(tmp_path / "t.npy", rows.astype(np.uint8) if options.pop("grey", False) else rows)
    with pytest.raises(ValueError, match=words):
        data.load(tmp_path / "t.npy", **options)


def test_digits_and_rows_of_a_test_alone(tmp_path):
    digits = data.load("digits", logit_alpha=0.05)
    x = digits.batch(torch.arange(1500), torch.Generator().manual_seed(0))
    assert x.mean() == pytest.approx(0, abs=0.01)
    assert x.std() == pytest.approx(1, abs=0.01)
    np.savez(tmp_path / "t.npz", test_x=np.arange(12.0).reshape(4, 3))
    found = data.load(tmp_path / "t.npz", training=False, dequantize="auto")
    assert found.transform.step == (3, 3, 3)
