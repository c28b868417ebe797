"""Arrays from .npz, .npy and .csv files, and data sets made of them."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, Transform

_KEYS = {
    "train": ("train_x", "x_train", "train", "x", "data", "arr_0"),
    "val": ("val_x", "x_val", "val", "valid_x", "x_valid", "valid"),
    "test": ("test_x", "x_test", "test"),
}
SUFFIXES = (".npz", ".npy", ".csv")


def read(name: str, grey_levels: int) -> Dataset:
    """The data set of the file of that name; see :func:`fastcsm.data.load`."""
    return _from_arrays(name, _read(Path(name)), grey_levels)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file under the names "train", and "val" and "test" where it has them."""
    if path.suffix.lower() == ".csv":
        return {"train": _read_csv(path)}
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
    if "train" not in found:
        raise ValueError(
            f"data: '{path}' has no training array, expected one of {', '.join(_KEYS['train'])} "
            f"and found {', '.join(content.files) or 'nothing'}"
        )
    return found


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
