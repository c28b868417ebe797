"""What calls would do on a GPU, without one: on tensors of the device "meta" kernels are listed, not run.

Those tensors have no numbers: what needs one on the host, and would wait for the device, fails.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastcsm
from fastcsm import backends
from fastcsm.kernels import launch
from fastcsm.nn import MADE
from fastcsm.reference import incremental

META = torch.device("meta")
#: Of torch's ops that are no views, those that launch nothing.
FREE = ("empty", "unsafe_view", "detach")


class OnMeta(backends.Triton):
    """The Triton backend for tensors on "meta"."""

    name = "meta"

    def shared_bytes(self) -> int:
        return 232_448  # an H100's

    def missing(self) -> list[str]:
        return []

    def interpreted(self) -> bool:
        return False

    def refuses(self, op: str, request: backends.Request) -> list[str]:
        return super().refuses(op, request._replace(device="cuda"))


class Ops(TorchDispatchMode):
    """Counts the kernels of torch that calls launch, and fails where one reads what the host has made since.

    Attributes:
        kernels: how often each is launched.
        first: whether the host may make what is kept for later calls.
    """

    def __init__(self, *given: torch.Tensor, first: bool = False):
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.first = first
        # Storages, not tensors: who holds a gradient keeps autograd from handing it on as it is.
        self._there: list[Any] = []
        self._note(given)

    def _note(self, tensors: Sequence[torch.Tensor]) -> None:
        self._there += [tensor.untyped_storage() for tensor in tensors if tensor.device == META]

    def _is_there(self, tensor: torch.Tensor) -> bool:
        return any(tensor.untyped_storage()._cdata == storage._cdata for storage in self._there)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            if func.namespace == "fastcsm":
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(result)
        if all(tensor.device != META for tensor in given + made):
            return result
        if not self.first:
            assert all(map(self._is_there, given)), f"{func} reads what the host has made"
        self._note(given + made)
        if not func.is_view and not any(word in func.name() for word in FREE):
            self.kernels[func.name()] += 1
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Listed(NamedTuple):
    """What a call launches, and its results."""

    ours: list[launch.Launch]
    torchs: Counter[str]
    results: Any

    def names(self) -> Counter[str]:
        """How often each of our kernels is launched."""
        return Counter(map(named, self.ours))


def named(one: launch.Launch) -> str:
    """The name of the kernel of a launch."""
    return one.kernel.fn.__name__


def listed(call: Callable[[], Any]) -> Listed:
    """What every call of a function but the first launches on Triton's backend."""
    backends.register(OnMeta())
    try:
        with fastcsm.backend("meta"), launch.recorded() as launches, Ops(first=True) as ops:
            call()
            launches.clear()
            ops.kernels.clear()
            ops.first = False
            results = call()
    finally:
        del backends.registry.known["meta"]
    return Listed(launches, ops.kernels, results)


def on_meta(model: torch.nn.Module) -> torch.nn.Module:
    """The model on "meta", and what the host would read of its constants at the first call."""
    there = deepcopy(model).to(META)
    for module, own in zip(there.modules(), model.modules(), strict=True):
        read = [(getattr(module, name), getattr(own, name)) for name in getattr(own, "_constants", ())]
        if isinstance(own, MADE):
            degrees, places = module.layers[0].in_degrees, own.places.to(META)
            module._drawn = degrees, degrees._version, (own.order, places)
            read.append((places, own.places))
        for tensor, copy in [*read, *zip(module.buffers(False), own.buffers(False), strict=True)]:
            incremental._copies[tensor] = tensor._version, copy
    return there
