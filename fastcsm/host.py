"""What host and device tell each other once: later calls do not wait, and a CUDA graph can capture them."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_copies: Any = WeakIdKeyDictionary()


def on_host(tensor: Tensor) -> Tensor:
    """The tensor on the processor: itself, or a copy that is kept while it lives and is not written to."""
    if tensor.device.type == "cpu":
        return tensor
    if tensor.is_inference():  # it does not count what is written to it
        return tensor.cpu()
    version, copy = _copies.get(tensor, (None, None))
    if version != tensor._version:
        copy = tensor.cpu()
        _copies[tensor] = tensor._version, copy
    return copy


@cache
def constant(values: tuple[float | Sequence[float], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, or lines of them, as a tensor that nobody writes to, kept for the life of the process.

    A captured graph may hold its address. Any stream may read it: torch returns when the copy is done.
    """
    return torch.tensor(values, dtype=dtype, device=device)
