"""Whether calling a module does the same as reading its weights: asked here, of heads and of networks.

What runs fused reads tensors off modules. Calling may do more: hooks, a forward of a subclass or of one
object (adapters, offloading), parametrizations, weights that are no plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _torch_module

from .. import functional

#: What calling runs of modules of torch, as it was when this file was read.
_CALLED: dict[type[nn.Module], Any] = {
    kind: (kind.forward,)
    for kind in (
        *(nn.Sequential, nn.Linear, nn.Identity, nn.Dropout),
        *(nn.Softplus, nn.GELU, nn.ELU, nn.Tanh, nn.SiLU, nn.ReLU, nn.Sigmoid),
    )
}
_PLAIN = (Tensor, nn.Parameter, nn.Buffer, FakeTensor, FunctionalTensor)
_HOOKS = tuple(f"_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre"))
_GLOBAL_HOOKS = tuple(
    getattr(_torch_module, f"_global_{kind}_hooks")
    for kind in ("forward", "forward_pre", "backward", "backward_pre")
)

_calling: ContextVar[bool] = ContextVar("calling", default=False)


@contextmanager
def calling() -> Iterator[None]:
    """Inside the ``with`` block modules are called, and their results can be differentiated twice."""
    token = _calling.set(True)
    try:
        yield
    finally:
        _calling.reset(token)


class Readable(nn.Module):
    """A module whose weights are read where that is what calling it would give."""

    #: The functions that calling runs; those of a subclass or of one object are not what is read.
    called: Sequence[Callable[..., Any]]

    def why_called(self) -> str | None:
        """Why calling the module may do otherwise than its weights say; None if it does the same."""
        if not torch.compiler.is_compiling() and _calling.get():
            return "it is part of a head that is called"
        return why_called(self, self.called)


class ReadableHead(Readable):
    """A head that says itself which layers it consists of, and is called with (context, x)."""

    def raw(self) -> functional.Head:
        """The layers as :mod:`fastcsm.functional` takes them."""
        raise NotImplementedError


def why_called(module: nn.Module, functions: Sequence[Callable[..., Any]]) -> str | None:
    """Why calling the module may do otherwise than these functions on its own tensors; or None."""
    kind, own = type(module), module.__dict__
    for function in functions:
        name = function.__name__
        if getattr(kind, name) is not function or name in own:
            return f"{kind.__name__} has a {name} of its own"
    if kind.__call__ is not nn.Module.__call__ or "_call_impl" in own:
        return f"{kind.__name__} has a __call__ of its own"
    if has_hooks(module):
        return f"{kind.__name__} has hooks"
    for name, value in module._parameters.items():
        if value is not None and type(value) not in _PLAIN:
            return f"the {name} of {kind.__name__} is a {type(value).__name__}"
    return None


def has_hooks(module: Any) -> bool:
    """Whether calling the module runs hooks, its own or those of all modules."""
    return any(map(len, _GLOBAL_HOOKS)) or any(getattr(module, hooks, None) for hooks in _HOOKS)


def why_layer_called(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """:func:`why_called` of a layer that must be of this very type."""
    if type(module) is not kind:
        return f"{type(module).__name__} is not the {kind.__name__} it is read as"
    return why_called(module, kind.called if issubclass(kind, Readable) else _CALLED[kind])


def layers_of(head: Any) -> functional.Head | str:
    """The layers of a head that runs fused, or the reason why it does not."""
    head = getattr(head, "_orig_mod", head)  # of torch.compile
    if isinstance(head, ReadableHead):
        return head.why_called() or head.raw()
    if type(head) is not nn.Sequential:
        return f"{type(head).__name__} is neither a ScoreHead nor an nn.Sequential"
    linears: list[nn.Linear] = []
    kinds: list[str] = []
    for index, module in enumerate(head):
        at = f"module {index} ({type(module).__name__})"
        found = _kind_of(module)
        if found is None:
            return f"module {index} ({module}) is not a supported activation"
        different = why_layer_called(module, type(module))
        if different:
            return f"{at}: {different}"
        if found == "linear":
            if len(kinds) != len(linears):
                return f"{at} follows a Linear with no activation between them"
            linears.append(cast(nn.Linear, module))
        elif found:
            if len(linears) != len(kinds) + 1:
                return f"{at} does not follow a Linear"
            kinds.append(found)
    if len(linears) < 2 or len(kinds) != len(linears) - 1 or linears[-1].out_features != 1:
        return "it does not have a hidden layer and end in a Linear with one output"
    if len(set(kinds)) > 1:
        return f"it mixes the activations {', '.join(sorted(set(kinds)))}"
    different = why_layer_called(head, nn.Sequential)
    if different:
        return different
    return functional.Head([m.weight for m in linears], [m.bias for m in linears], None, kinds[0])


def _kind_of(module: nn.Module) -> str | None:
    """ "linear", an activation's name, "" for what does nothing, or None."""
    kind = type(module)
    if kind is nn.Linear:
        return "linear"
    if kind is nn.Identity or (kind is nn.Dropout and (module.p == 0 or not module.training)):
        return ""
    if kind is nn.Softplus:
        return "softplus" if module.beta == 1 and module.threshold == 20 else None
    if kind is nn.GELU:
        return "gelu" if module.approximate == "tanh" else None
    if kind is nn.ELU:
        return "elu" if module.alpha == 1 else None
    plain = {nn.Tanh: "tanh", nn.SiLU: "silu", nn.ReLU: "relu", nn.Sigmoid: "sigmoid"}
    return plain.get(kind)


def is_lazy(module: Any) -> bool:
    """Whether the module has parameters that its first call makes."""
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return any(map(torch.nn.parameter.is_lazy, parameters))
