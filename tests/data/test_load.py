from pathlib import Path

import numpy as np
import pytest
import torch

from fastcsm import data
from fastcsm.data import Transform

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


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
    assert rows == {tuple(row) for row in table.astype(np.float32).tolist()}


def test_csv_with_and_without_header(tmp_path):
    body = "1,2.5\n-3,4e1\n5,6\n"
    (tmp_path / "plain.csv").write_text(body)
    (tmp_path / "named.csv").write_text("a,b\n" + body)
    plain, named = data.load(tmp_path / "plain.csv"), data.load(tmp_path / "named.csv")
    assert torch.equal(plain.train, named.train)
    assert sorted(torch.cat([plain.train, plain.test])[:, 1].tolist()) == [2.5, 6.0, 40.0]


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
            np.save(path, np.array([[1.0, 1e300], [0.0, 0.0]]))
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
        ("overflow", "expected finite float32"),
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,x\n", "line 3 .* holds 'x'"),
        ("1,2\n3\n", "line 2 .* has 1 columns, expected 2"),
        ("a,b\n", "at least one row"),
        ("", "at least one row"),
        ("1,nan\n2,3\n", "expected finite"),
    ],
)
def test_bad_csv_is_refused(tmp_path, text, words):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        data.load(tmp_path / "bad.csv")


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
