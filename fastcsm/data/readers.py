"""Arrays from .npz, .npy and .csv files, and data sets made of them."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from .dataset import Dataset
from .fitting import standardisation
from .text import read_csv
from .transform import Transform

_KEYS = {
    "train": ("train_x", "x_train", "train", "x", "data", "arr_0"),
    "val": ("val_x", "x_val", "val", "valid_x", "x_valid", "valid"),
    "test": ("test_x", "x_test", "test"),
}
SUFFIXES = (".npz", ".npy", ".csv")
#: Numbers are at most this large, so that their differences are finite; whole ones at most the other, so that
#: float64 holds them.
_LARGEST, _LARGEST_WHOLE = 1e300, 2**53


def read(name: str, grey_levels: int, training: bool) -> Dataset:
    """The data set of the file of that name; see :func:`fastcsm.data.load`."""
    return _from_arrays(name, _read(Path(name), training), grey_levels)


def _read(path: Path, training: bool) -> dict[str, np.ndarray]:
    """The arrays of a file under the names "train", "val" and "test" where it has them."""
    if path.suffix.lower() == ".csv":
        return {"train": read_csv(path)}
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"train": content}
        with content:
            names = {split: [key for key in keys if key in content.files] for split, keys in _KEYS.items()}
            found = {split: content[keys[0]] for split, keys in names.items() if keys}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            reason = "it holds Python objects, expected plain numeric arrays"
        else:
            reason = "it is not a readable NumPy file (damaged, truncated or of another format)"
        raise ValueError(f"data: cannot load '{path}', {reason}") from None
    if "train" not in found and (training or not found):
        raise ValueError(
            f"data: '{path}' has no training array, expected one of {', '.join(_KEYS['train'])} "
            f"and found {', '.join(content.files) or 'nothing'}"
        )
    return found


def _from_arrays(name: str, arrays: dict[str, np.ndarray], grey_levels: int) -> Dataset:
    checked = {split: _rows(name, split, array, grey_levels) for split, array in arrays.items()}
    like, first = next(iter(checked.items()))
    for split, rows in checked.items():
        if rows.shape[1] != first.shape[1] or (rows.dtype == np.uint8) != (first.dtype == np.uint8):
            raise ValueError(
                f"data: the {split} array of '{name}' has {rows.shape[1]} features of {rows.dtype}, "
                f"expected {first.shape[1]} of {first.dtype} as in the {like} array"
            )
    kind = np.result_type(*checked.values())
    tensors = {split: torch.from_numpy(rows.astype(kind, copy=False)) for split, rows in checked.items()}
    held_out = tensors.get("test", tensors.get("val"))
    train = tensors.get("train")
    if train is None:
        train = tensors[like][:0]
    if held_out is None:
        if len(train) < 2:
            raise ValueError(f"data: '{name}' has 1 row, expected at least 2 so that one can be held out")
        order = np.random.RandomState(0).permutation(len(train))
        count = max(1, len(train) // 10)
        train, held_out = train[order[:-count]], train[order[-count:]]
    shape = arrays[like].shape[1:] or (1,)
    if kind == np.uint8:
        transform = Transform(shape, grey_levels)
    else:
        transform = Transform(shape, 0, *standardisation(train.numpy() if len(train) else first))
    return Dataset(name, train, tensors.get("val", held_out), held_out, transform)


def _rows(name: str, split: str, array: np.ndarray, grey_levels: int) -> np.ndarray:
    """An array as rows (N, D) of uint8, of float32 where that holds its numbers, or of float64."""
    where = f"the {split} array of '{name}'"
    if array.dtype.kind not in "uif":
        raise ValueError(f"data: {where} is of type {array.dtype}, expected numbers")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"data: {where} has shape {array.shape}, expected at least one row")
    flat = array.reshape(len(array), -1)
    if array.dtype == np.uint8:
        if flat.max() >= grey_levels:
            raise ValueError(
                f"data: {where} holds {flat.max()}, expected values below {grey_levels} grey levels"
            )
        return np.ascontiguousarray(flat)
    wide = array.dtype.itemsize > 4
    if array.dtype.kind == "f":
        fits, expected = np.isfinite(flat), f"finite numbers up to {_LARGEST:g}"
        fits &= np.abs(flat) <= _LARGEST if wide else True
    else:
        fits, expected = np.ones(flat.shape, dtype=bool), "whole numbers up to 2^53"
        fits &= (flat <= _LARGEST_WHOLE) & (flat >= -_LARGEST_WHOLE) if wide else True
    if not fits.all():
        row, column = np.argwhere(~fits)[0]
        raise ValueError(
            f"data: row {row}, column {column} of {where} is {flat[row, column]}, expected {expected}"
        )
    exact = np.promote_types(array.dtype, np.float32) == np.float32
    return np.ascontiguousarray(flat, np.float32 if exact else np.float64)
