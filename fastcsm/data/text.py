"""Tables of numbers in text files: each line is read as what it says, or named."""

import codecs
import csv
import math
import re
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Cells that stand for a number that is not known; a line of nothing else does not name columns.
_MISSING = {"", "?", "-", ".", "na", "n/a", "#n/a", "nan", "null", "none", "inf", "-inf"}


def read_csv(path: Path) -> np.ndarray:
    """The numbers of a text file, (rows, columns) float64.

    Cells are separated by tabs, semicolons, commas or spaces, whichever comes first in this list and in the
    first row of numbers, and may be quoted. The text is UTF-8, or UTF-16 or UTF-32 with a byte order mark.
    Lines that start with "#" before the first row, and a first row without any number, are names and notes.
    Empty lines are nothing, except between the rows of a single column.

    Raises:
        ValueError: naming the line: a cell is no finite number, a row has other columns than the first, the
            text is of another encoding, or a quote does not end.
    """
    lines = _text(path).split("\n")
    numbers, width, first = array("d"), 0, 0
    for line, row in _cells(path, lines):
        if not width:
            width, first = len(row), line
            if _is_header(row):
                continue
        if len(row) != width:
            raise ValueError(
                f"data: line {line} of '{path}' has {len(row)} columns, expected {width} as in line {first}"
            )
        try:
            numbers.extend([_number(cell) for cell in row])
        except ValueError as error:
            raise ValueError(f"data: line {line} of '{path}' holds {error}") from None
    table = np.array(numbers, dtype=np.float64).reshape(-1, max(width, 1))
    _check_names(path, first, table)
    return table


def _text(path: Path) -> str:
    content = path.read_bytes()
    encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(f"data: line {line} of '{path}' is not text in {encoding.upper()}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cells(path: Path, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of the rows, without the notes above them."""
    stripped = (line.strip(" ") for line in lines)
    reader = csv.reader(stripped, delimiter=_separator(lines), skipinitialspace=True, strict=True)
    above, empty, start = True, 0, 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"data: line {start} of '{path}' is not a row of cells ({error})") from None
        line, start = start, reader.line_num + 1
        row = [cell.strip() for cell in row]
        if not row or row == [""]:
            empty = 0 if above else line
        elif not (above and row[0].startswith("#") and not any(map(_is_number, row))):
            if empty and len(row) == 1:
                raise ValueError(f"data: line {empty} of '{path}' is empty, expected a number")
            above, empty = False, 0
            yield line, row


def _separator(lines: list[str]) -> str:
    """What separates the cells of the second row, which is one of numbers, or of the only one."""
    rows = (re.sub(r'"[^"]*"', "", line).strip(" ") for line in lines if not line.startswith("#"))
    sample = [row for row, _ in zip(filter(None, rows), range(2), strict=False)]
    return next((mark for mark in "\t;, " if sample and mark in sample[-1]), ",")


def _number(cell: str) -> float:
    """The number that a cell is; a ValueError says what it holds instead."""
    try:
        # float() also takes 1_000 and the digits of other scripts.
        value = math.nan if "_" in cell or not cell.isascii() else float(cell)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    if not cell:
        raise ValueError("an empty cell, expected numbers only")
    if re.fullmatch(r"[+-]?[\d.]*(,\d+)+", cell):
        raise ValueError(f"'{cell}', expected numbers with a decimal point and without commas")
    expected = "finite numbers" if cell.lower().lstrip("+-") in ("nan", "inf", "infinity") else "numbers"
    raise ValueError(f"'{cell[:40]}', expected {expected} only")


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(_number(cell))
    except ValueError:
        return False


def _is_header(row: list[str]) -> bool:
    """Whether a first row names the columns: no number in it, and not only marks of missing ones."""
    return not any(map(_is_number, row)) and any(cell.lower() not in _MISSING for cell in row)


def _check_names(path: Path, line: int, table: np.ndarray) -> None:
    """Warn of a first row of numbers that look like names: 0, 1, 2 ..., or whole above fractions alone."""
    if len(table) < 2 or table.shape[1] < 2:
        return
    row, rest = table[0], table[1:]
    counts = len(row) > 2 and any(np.array_equal(row, np.arange(start, start + len(row))) for start in (0, 1))
    if counts or ((row % 1 == 0).all() and (rest % 1 != 0).all()):
        warnings.warn(
            f"data: line {line} of '{path}' is taken for a row of numbers: remove it if it names the columns",
            stacklevel=2,
        )
