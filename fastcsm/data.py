"""Data sets by name or from a file, each with the transform that takes raw values to model space and back."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import toys

_TOY_TRAIN, _TOY_HELD_OUT = 50_000, 10_000
_DIGITS_TRAIN = 1500
_TRAIN_KEYS = ("train_x", "x_train", "train", "x", "data", "arr_0")
_VAL_KEYS = ("val_x", "x_val", "val", "valid_x", "x_valid", "valid")
_TEST_KEYS = ("test_x", "x_test", "test")


@dataclass(frozen=True)
class Transform:
    """The map between raw rows and model space.

    Grey values v in 0..grey_levels-1 become 2 (v + u) / grey_levels - 1 with u uniform on [0, 1)
    (dequantisation); with ``grey_levels = 0`` the map is (v - shift) / scale per feature.

    Args:
        shape: shape of one raw sample; its product is the number of features D.
        grey_levels: number of levels of an image, or 0.
        shift, scale: (D,) tuples of floats; empty for images.
    """

    shape: tuple[int, ...]
    grey_levels: int = 0
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def features(self) -> int:
        return int(np.prod(self.shape))

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 2 or (len(self.shape) == 3 and self.shape[-1] in (1, 3))

    def encode(self, rows: Tensor, uniform: Tensor) -> Tensor:
        """Raw rows (B, D) and uniforms (B, D) on [0, 1) to float32 model space (B, D)."""
        if self.grey_levels:
            return (rows.float() + uniform) * (2.0 / self.grey_levels) - 1.0
        return (rows - torch.tensor(self.shift)) / torch.tensor(self.scale)

    def decode(self, x: Tensor) -> np.ndarray:
        """Model space (B, D) to raw values (B, *shape): whole grey values (uint8), or float32."""
        x = x.detach().to("cpu", torch.float32)
        if self.grey_levels:
            values = ((x + 1.0) * (self.grey_levels / 2.0)).floor().clamp(0, self.grey_levels - 1)
            return values.to(torch.uint8).numpy().reshape(-1, *self.shape)
        values = x * torch.tensor(self.scale) + torch.tensor(self.shift)
        return values.numpy().reshape(-1, *self.shape)

    def to_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "grey_levels": self.grey_levels,
            "shift": list(self.shift),
            "scale": list(self.scale),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transform:
        return cls(
            tuple(int(v) for v in values["shape"]),
            int(values["grey_levels"]),
            tuple(float(v) for v in values["shift"]),
            tuple(float(v) for v in values["scale"]),
        )


@dataclass(frozen=True)
class Dataset:
    """Raw rows (uint8 or float32, (N, D)) in three splits and their transform.

    ``val`` is watched during training and ``test`` is what ``fastcsm evaluate`` reports; where a source has
    only one held-out split both names mean that split, unless part of the training rows is set aside for
    ``val`` (see :func:`load`).
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor
    transform: Transform

    @property
    def features(self) -> int:
        return self.train.shape[1]

    @property
    def has_validation(self) -> bool:
        """Whether ``val`` holds other rows than ``test``."""
        return self.val.data_ptr() != self.test.data_ptr()

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Training rows ``indices`` (B,) in model space (B, D), dequantised afresh from ``generator``."""
        rows = self.train[indices]
        return self.transform.encode(rows, torch.rand(rows.shape, generator=generator))

    def held_out(self, split: str, seed: int, limit: int | None = None) -> Tensor:
        """Split "val" or "test" in model space, at most ``limit`` rows, dequantised once from ``seed``."""
        rows = {"val": self.val, "test": self.test}[split][:limit]
        generator = torch.Generator().manual_seed(seed)
        return self.transform.encode(rows, torch.rand(rows.shape, generator=generator))

    def fingerprint(self) -> str:
        """SHA-256 over the raw training rows, shape and type: a resumed run must see the same data."""
        digest = hashlib.sha256(f"{tuple(self.train.shape)} {self.train.dtype}".encode())
        digest.update(self.train.contiguous().numpy().data)
        return digest.hexdigest()


def names() -> list[str]:
    """The built-in data sets."""
    return ["digits", *toys.names()]


def load(source: str | Path, *, grey_levels: int = 256, validation: float = 0.0) -> Dataset:
    """Load a built-in data set or a file.

    Args:
        source: ``digits`` (scikit-learn's 1,797 scans of 8x8; rows 0-1499 train, the rest held out), a 2-D
            toy (see :func:`names`), or the path of a ``.npz``, ``.npy`` or ``.csv`` file. In a .npz the
            training split is ``train_x`` (or ``x``), held-out splits are ``val_x`` and ``test_x``; without
            them every tenth row, after a fixed permutation, is held out. Other axes are flattened. uint8
            values are dequantised to [-1, 1]; other numbers are standardised per feature with the mean and
            deviation of the train split.
        grey_levels: number of grey levels of uint8 files.
        validation: share in [0, 1) of the training rows, the last ones of a fixed permutation, that is taken
            out of ``train`` and becomes ``val``; 0 leaves both as they are.

    Raises:
        ValueError: unknown name, unreadable or non-numeric file, NaN or infinite values, no rows, or
            validation out of range or leaving no row on one side.
        FileNotFoundError: no such file.
    """
    return _with_validation(_load(source, grey_levels), validation)


def _with_validation(found: Dataset, share: float) -> Dataset:
    if not 0 <= share < 1:
        raise ValueError(f"validation is {share}, expected a number in [0, 1)")
    if share == 0:
        return found
    rows = len(found.train)
    count = max(1, round(share * rows))
    if count >= rows:
        raise ValueError(f"validation is {share} of {rows} training rows, expected to leave at least one")
    order = np.random.RandomState(0).permutation(rows)
    return replace(found, train=found.train[order[:-count]], val=found.train[order[-count:]])


def _load(source: str | Path, grey_levels: int) -> Dataset:
    name = str(source)
    if name == "digits":
        return _digits()
    if name in toys.names():
        return _toy(name)
    path = Path(source)
    if path.suffix.lower() not in (".npz", ".npy", ".csv"):
        raise ValueError(
            f"data is '{name}', expected one of {', '.join(names())} or the path of a .npz, .npy or .csv file"
        )
    if not path.is_file():
        raise FileNotFoundError(f"data: no file '{name}'")
    return _from_arrays(name, _read(path), grey_levels)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "data 'digits' is embedded in scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    rows = torch.from_numpy(load_digits().data.astype(np.uint8))
    train, held_out = rows[:_DIGITS_TRAIN], rows[_DIGITS_TRAIN:]
    return Dataset("digits", train, held_out, held_out, Transform((8, 8), 17))


def _toy(name: str) -> Dataset:
    points = toys.sample(name, _TOY_TRAIN + _TOY_HELD_OUT, np.random.default_rng(0)).astype(np.float32)
    rows = torch.from_numpy(points)
    held_out = rows[_TOY_TRAIN:]
    return Dataset(name, rows[:_TOY_TRAIN], held_out, held_out, Transform((2,), 0, (0.0, 0.0), (1.0, 1.0)))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file under the names "train", and "val" and "test" where it has them."""
    if path.suffix.lower() == ".csv":
        return {"train": _read_csv(path)}
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"train": content}
        with content:
            found = {}
            for split, keys in (("train", _TRAIN_KEYS), ("val", _VAL_KEYS), ("test", _TEST_KEYS)):
                key = next((k for k in keys if k in content.files), None)
                if key is not None:
                    found[split] = content[key]
            if "train" not in found:
                raise _DataError(
                    f"data: '{path}' has no training array, expected one of {', '.join(_TRAIN_KEYS)} "
                    f"and found {', '.join(content.files) or 'nothing'}"
                )
            return found
    except _DataError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            reason = "it holds Python objects, expected plain numeric arrays"
        else:
            reason = "it is not a readable NumPy file (damaged, truncated or of another format)"
        raise ValueError(f"data: cannot load '{path}', {reason}") from None


class _DataError(ValueError):
    pass


def _read_csv(path: Path) -> np.ndarray:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"data: cannot read '{path}' as UTF-8 text ({type(error).__name__})") from None
    rows = [line.split(",") for line in lines]
    if rows and not all(_is_number(cell) for cell in rows[0]):
        header, rows, first = rows[0], rows[1:], 2
    else:
        header, first = rows[0] if rows else [], 1
    for number, row in enumerate(rows, start=first):
        if len(row) != len(header):
            raise ValueError(
                f"data: line {number} of '{path}' has {len(row)} columns, expected {len(header)}"
            )
        bad = next((cell for cell in row if not _is_number(cell)), None)
        if bad is not None:
            raise ValueError(f"data: line {number} of '{path}' holds '{bad.strip()}', expected numbers only")
    return np.array([[float(cell) for cell in row] for row in rows], dtype=np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _from_arrays(name: str, arrays: dict[str, np.ndarray], grey_levels: int) -> Dataset:
    tensors = {split: _rows(name, split, array, grey_levels) for split, array in arrays.items()}
    shape = arrays["train"].shape[1:] or (1,)
    for split, rows in tensors.items():
        if rows.shape[1] != tensors["train"].shape[1] or rows.dtype != tensors["train"].dtype:
            raise ValueError(
                f"data: the {split} array of '{name}' has {rows.shape[1]} features of {rows.dtype}, "
                f"expected {tensors['train'].shape[1]} of {tensors['train'].dtype} as in the train array"
            )
    train = tensors["train"]
    held_out = tensors.get("test", tensors.get("val"))
    if held_out is None:
        if len(train) < 2:
            raise ValueError(f"data: '{name}' has 1 row, expected at least 2 so that one can be held out")
        order = np.random.RandomState(0).permutation(len(train))
        count = max(1, len(train) // 10)
        train, held_out = train[order[:-count]], train[order[-count:]]
    val = tensors.get("val", held_out)
    if train.dtype == torch.uint8:
        transform = Transform(shape, grey_levels)
    else:
        mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        transform = Transform(shape, 0, tuple(mean.float().tolist()), tuple(deviation.float().tolist()))
    return Dataset(name, train, val, held_out, transform)


def _rows(name: str, split: str, array: np.ndarray, grey_levels: int) -> Tensor:
    if array.dtype.kind not in "uif":
        raise ValueError(f"data: the {split} array of '{name}' is of type {array.dtype}, expected numbers")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            f"data: the {split} array of '{name}' has shape {array.shape}, expected at least one row"
        )
    flat = array.reshape(len(array), -1)
    if array.dtype == np.uint8:
        if flat.max() >= grey_levels:
            raise ValueError(
                f"data: the {split} array of '{name}' holds {flat.max()}, expected values below "
                f"{grey_levels} grey levels"
            )
        return torch.from_numpy(np.ascontiguousarray(flat))
    with np.errstate(over="ignore"):
        flat = flat.astype(np.float32)
    finite = np.isfinite(flat)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"data: row {row}, column {column} of the {split} array of '{name}' is {flat[row, column]}, "
            "expected finite float32 values"
        )
    return torch.from_numpy(flat)
