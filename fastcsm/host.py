"""Tensors of a device as the host knows them, without waiting for the device at every call."""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_copies: Any = WeakIdKeyDictionary()


def on_host(tensor: Tensor) -> Tensor:
    """The tensor on the processor: itself, or a copy that is kept while it lives and is not written to.

    For what a module keeps, such as degrees: only the first call waits for the device, so that later ones can
    be captured in a CUDA graph.
    """
    if tensor.device.type == "cpu":
        return tensor
    if tensor.is_inference():  # it does not count what is written to it
        return tensor.cpu()
    version, copy = _copies.get(tensor, (None, None))
    if version != tensor._version:
        copy = tensor.cpu()
        _copies[tensor] = tensor._version, copy
    return copy
