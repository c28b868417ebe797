"""Which calls the measurements give to the CUDA C++ kernels rather than to Triton's: ``measured.json``.

The table's rows come from measurements on a GPU (``python bench/dispatch.py bench/results/<gpu>.json``): a
call goes to "cuda" where a row for its op, precision and sizes says that the kernel was faster there.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from .precision import of_products


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        op: an op's name.
        precision: "float32", "tf32" or "bfloat16".
        layers, inputs, width: the largest numbers of hidden layers, of inputs of the head and of its hidden
            units for which the line speaks; for masked_linear 1 and those of a layer's inputs and outputs.
        rows: for masked_linear and its backward pass the most rows for which the line speaks; else 0.
        backend: "cuda" or "triton", the faster one.
        ratio: time of the other over its time.
        file: the measurement, in bench/results/.
    """

    op: str
    precision: str
    layers: int
    inputs: int
    width: int
    rows: int
    backend: str
    ratio: float
    file: str


@cache
def table() -> tuple[Row, ...]:
    """The rows of ``measured.json``."""
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    return tuple(Row(**row) for row in json.loads(text))


def precision(dtype: torch.dtype) -> str:
    """How products of ``dtype`` are done on a GPU under torch's setting in force."""
    if dtype is torch.float32:
        return of_products("cuda")
    return str(dtype).removeprefix("torch.")


def why_not_cuda(
    op: str, dtype: torch.dtype, inputs: int, widths: tuple[int, ...], rows_of_call: int = 0
) -> str:
    """Why "auto" does not take the CUDA C++ kernel for a call; "" if it does.

    The sizes are those of a :class:`fastcsm.backends.registry.Request`.
    """
    hidden = widths[:-1] or widths
    rows = [
        row
        for row in table()
        if (row.op, row.precision) == (op, precision(dtype))
        and len(hidden) <= row.layers
        and inputs <= row.inputs
        and max(hidden, default=0) <= row.width
        and rows_of_call <= row.rows
    ]
    if not rows:
        return "not measured on a GPU, so it runs only where it is chosen by name"
    closest = min(rows, key=lambda row: (row.rows, row.layers, row.width, row.inputs))
    if closest.backend == "cuda":
        return ""
    return f"Triton's kernel was {closest.ratio:.2f} times as fast ({closest.file})"
