import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcsm import data
from fastcsm.data import Transform

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_digits_split_and_dequantisation():
    pytest.importorskip("sklearn")
    digits = data.load("digits")
    assert digits.train.shape == (1500, 64)
    assert digits.test.shape == (297, 64)
    assert digits.train.dtype is torch.uint8
    x = digits.batch(torch.arange(200), _generator())
    assert x.dtype is torch.float32
    assert x.min() >= -1
    assert x.max() < 1
    u = torch.rand((200, 64), generator=_generator())
    torch.testing.assert_close(x, 2 * (digits.train[:200].float() + u) / 17 - 1)
    assert (digits.transform.decode(x).reshape(200, 64) == digits.train[:200].numpy()).all()
    assert not torch.equal(x, digits.batch(torch.arange(200), _generator(1)))


def test_the_defaults_of_torch_have_no_part():
    found, chosen = data.load("digits"), torch.arange(3)
    expected = found.held_out("val", 1, 5), found.batch(chosen, torch.Generator())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = found.held_out("val", 1, 5), found.batch(chosen, torch.Generator())
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype is torch.float32 and torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", [n for n in data.names() if n != "digits"])
def test_toys_are_deterministic_and_scaled(name):
    toy = data.load(name)
    assert toy.features == 2
    assert toy.train.shape == (50_000, 2)
    assert toy.test.shape == (10_000, 2)
    assert torch.isfinite(toy.train).all()
    assert 0.8 < toy.train.abs().max() < 1.5
    assert toy.train.mean(0).abs().max() < 0.05
    assert toy.fingerprint() == data.load(name).fingerprint()
    assert torch.equal(toy.batch(torch.arange(5), _generator()), toy.train[:5])


def test_eight_gaussians_have_eight_modes():
    points = data.load("eight_gaussians").train
    angle = torch.atan2(points[:, 1], points[:, 0])
    mode = (angle / (torch.pi / 4)).round().long() % 8
    assert torch.bincount(mode, minlength=8).min() > 5500


def test_checkerboard_fills_alternate_squares():
    points = data.load("checkerboard").train
    cells = (points * 2).floor().long()
    assert ((cells.sum(1) % 2) == (cells[0].sum() % 2)).all()


def test_npz_of_images(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 4, 5), dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz",
        train_x=images[:20],
        val_x=images[20:24],
        test_x=images[24:],
        train_y=np.arange(20),
    )
    found = data.load(tmp_path / "a.npz")
    assert found.transform == Transform((4, 5), 256)
    assert found.transform.is_image
    assert [len(s) for s in (found.train, found.val, found.test)] == [20, 4, 6]
    x = found.batch(torch.arange(20), _generator())
    assert (found.transform.decode(x) == images[:20]).all()
    assert torch.equal(found.held_out("test", 3), found.held_out("test", 3))
    assert len(found.held_out("val", 0, limit=2)) == 2


def test_rows_set_aside_for_validation():
    whole, found = data.load("moons"), data.load("moons", validation=0.1)
    assert not whole.has_validation
    assert found.has_validation
    assert [len(s) for s in (found.train, found.val, found.test)] == [45_000, 5_000, 10_000]
    assert torch.equal(found.test, whole.test)
    together = torch.cat([found.train, found.val])
    assert torch.equal(together.sort(0).values, whole.train.sort(0).values)
    again = data.load("moons", validation=0.1)
    assert again.fingerprint() == found.fingerprint() != whole.fingerprint()
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"expected a number in \[0, 1\)"):
            data.load("moons", validation=share)


def test_validation_leaves_rows_to_train_on(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"validation is 0\.5 of 1 training rows"):
        data.load(tmp_path / "a.npy", validation=0.5)


def test_grey_levels_of_a_file(tmp_path):
    np.save(tmp_path / "a.npy", np.full((20, 3), 16, dtype=np.uint8))
    found = data.load(tmp_path / "a.npy", grey_levels=17)
    x = found.batch(torch.arange(18), _generator())
    assert x.min() > 0.85
    assert x.max() < 1
    with pytest.raises(ValueError, match="expected values below 16 grey levels"):
        data.load(tmp_path / "a.npy", grey_levels=16)


def test_tables_are_standardised_by_the_train_split(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(3.0, 5.0, (100, 3))
    table[:, 2] = 7.0
    np.savez(tmp_path / "t.npz", x=table)
    found = data.load(tmp_path / "t.npz")
    assert (len(found.train), len(found.test)) == (90, 10)
    x = found.transform.encode(found.train, torch.zeros(90, 3))
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0)[:2], torch.ones(2))
    np.testing.assert_allclose(found.transform.decode(x), found.train.numpy(), rtol=1e-5, atol=1e-5)
    rows = {tuple(row) for row in torch.cat([found.train, found.test]).tolist()}
    assert rows == {tuple(row) for row in table.tolist()}


def _columns(case):
    """Columns (200,) that arithmetic in single precision, or on squares, merges."""
    z = np.random.default_rng(0).normal(size=200)
    match case:
        case "offset":
            return 1.6e9 + 30 * z
        case "whole":
            return (1.6e9 + 30 * z).astype(np.int64)
        case "short":
            return np.round(1e4 + 30 * z).astype(np.int16)
        case "small":
            return 1e-300 * z
        case "large":
            return 1e299 * z
        case "big-endian":
            return (1.6e9 + 30 * z).astype(">f8")


@pytest.mark.parametrize("case", ["offset", "whole", "short", "small", "large", "big-endian"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_no_offset_and_no_scale_eats_a_column(tmp_path, case, suffix):
    column, path = _columns(case), tmp_path / f"t{suffix}"
    table = np.stack([column, np.full_like(column, column[0])], 1)
    match suffix:
        case ".npy":
            np.save(path, table)
        case ".npz":
            np.savez(path, train_x=table, test_x=table[:7].astype(table.dtype))
        case ".csv":
            path.write_text("".join(f"{a!r},{b!r}\n" for a, b in table.tolist()))
    found = data.load(path)
    z = found.batch(torch.arange(len(found.train)), _generator())
    assert z.dtype is torch.float32
    assert len(z[:, 0].unique()) == len(found.train[:, 0].unique()) > 60
    assert z[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert z[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert (z[:, 1] == 0).all()
    raw, back = found.train.double().numpy(), found.transform.decode(z)
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, raw, rtol=0, atol=1e-6 * _std(raw))
    assert found.transform.log_scale == pytest.approx(np.log(_std(raw)))
    again = Transform.from_dict(found.transform.to_dict())
    assert np.array_equal(again.decode(z), back)


def _std(raw):
    """Deviation of the first column, of numbers around 1."""
    x = raw[:, 0] - raw[0, 0]
    return np.abs(x).max() * (x / np.abs(x).max()).std()


def test_the_fingerprint_sees_every_bit(tmp_path):
    table = 1.6e9 + np.arange(60.0).reshape(20, 3)
    prints = set()
    for change in (0.0, 1.0):
        table[:, 0] += change
        np.savez(tmp_path / "t.npz", train_x=table, val_x=table[:3], test_x=table[:2])
        found = data.load(tmp_path / "t.npz")
        prints |= {found.fingerprint(), found.fingerprint("val"), found.fingerprint("test")}
        assert found.is_of(found.fingerprint())
        assert not found.is_of(found.fingerprint("val"))
    assert len(prints) == 6
    narrow = dataclasses.replace(found, train=found.train.float())
    assert found.is_of(narrow.fingerprint())
    assert not narrow.is_of(found.fingerprint())


def test_files_of_test_rows_alone(tmp_path):
    rows = np.arange(12, dtype=np.float64).reshape(4, 3)
    np.savez(tmp_path / "t.npz", test_x=rows)
    with pytest.raises(ValueError, match=r"no training array.*test_x"):
        data.load(tmp_path / "t.npz")
    found = data.load(tmp_path / "t.npz", training=False, validation=0.1)
    assert found.train.shape == (0, 3)
    assert np.array_equal(found.test.numpy(), rows)
    assert np.array_equal(found.val.numpy(), rows)


def test_transform_survives_json():
    import json

    transform = Transform((3,), 0, (1.0, 2.0, 3.0), (0.5, 1.0, 2.0))
    assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


def _write(path, case):
    match case:
        case "nan":
            np.save(path, np.array([[1.0, 2.0], [np.nan, 0.0]]))
        case "inf":
            np.save(path, np.array([[1.0, np.inf], [0.0, 0.0]]))
        case "overflow":
            np.save(path, np.array([[1.0, 1e308], [0.0, 0.0]]))
        case "single":
            np.save(path, np.array([[1.0, np.inf], [0.0, 0.0]], dtype=np.float32))
        case "whole":
            np.save(path, np.array([[1, 2**53 + 1], [0, 0]]))
        case "negative":
            np.save(path, np.array([[1, 2], [-(2**60), 0]]))
        case "empty":
            np.save(path, np.empty((0, 3)))
        case "scalar":
            np.save(path, np.float64(3.0))
        case "text":
            np.save(path, np.array(["a", "b"]))
        case "complex":
            np.save(path, np.ones((3, 2), dtype=complex))
        case "object":
            np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
        case "foreign":
            path.write_bytes(b"\x89PNG not an array")
        case "nothing":
            path.write_bytes(b"")
        case "one row":
            np.save(path, np.ones((1, 3)))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("nan", "row 1, column 0 .* is nan, expected finite"),
        ("inf", "row 0, column 1 .* is inf, expected finite"),
        ("overflow", r"row 0, column 1 .* is 1e\+308, expected finite numbers up to 1e\+300"),
        ("single", "row 0, column 1 .* is inf, expected finite"),
        ("whole", r"row 0, column 1 .* is 9007199254740993, expected whole numbers up to 2\^53"),
        ("negative", r"row 1, column 0 .*expected whole numbers"),
        ("empty", "expected at least one row"),
        ("scalar", "expected at least one row"),
        ("text", "expected numbers"),
        ("complex", "expected numbers"),
        ("object", "holds Python objects"),
        ("foreign", "not a readable NumPy file"),
        ("nothing", "not a readable NumPy file"),
        ("one row", "expected at least 2"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(tmp_path, case, words):
    _write(tmp_path / "bad.npy", case)
    with pytest.raises(ValueError, match=words) as error:
        data.load(tmp_path / "bad.npy")
    assert "\n" not in str(error.value)


def test_bad_npz_is_refused(tmp_path):
    np.savez(tmp_path / "keys.npz", labels=np.ones(3))
    with pytest.raises(ValueError, match=r"no training array.*labels"):
        data.load(tmp_path / "keys.npz")
    np.savez(tmp_path / "shapes.npz", train_x=np.ones((4, 3)), test_x=np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"2 features .* expected 3"):
        data.load(tmp_path / "shapes.npz")
    np.savez(tmp_path / "whole.npz", x=np.random.default_rng(0).normal(size=(500, 3)))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable NumPy file"):
        data.load(tmp_path / "cut.npz")


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"'mnits', expected one of digits, .*pinwheel or the path"):
        data.load("mnits")
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist.npz", 60000, 10000, (28, 28)),
        ("bsds_patches.npz", 100000, 20000, (8, 8)),
        ("tab_magic.npz", 15407, 1902, (10,)),
        ("tab_miniboone_head.npz", 1234, 152, (43,)),
        ("svhn_head.npz", 260, 28, (32, 32, 3)),
    ],
)
def test_real_files(name, train, test, shape):
    if not (SHARED / name).is_file():
        pytest.skip(f"no {name} beside the repository")
    found = data.load(SHARED / name)
    assert (len(found.train), len(found.test), found.transform.shape) == (train, test, shape)
    x = found.batch(torch.arange(64), _generator())
    assert torch.isfinite(x).all()


def test_the_embedded_digits_are_those_of_the_file():
    pytest.importorskip("sklearn")
    path = SHARED / "digits8x8.npz"
    if not path.is_file():
        pytest.skip("no digits8x8.npz beside the repository")
    digits = data.load("digits")
    with np.load(path, allow_pickle=False) as file:
        stored = file["x"].reshape(1797, 64)
    assert (torch.cat([digits.train, digits.test]).numpy() == stored).all()
