"""Whether calling a module does the same as reading its weights: asked here, of heads and of networks.

What runs fused reads tensors off modules. Calling may do more: hooks, a forward of a subclass or of one
object (adapters, offloading), parametrizations, weights that are no plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _torch_module

from .. import functional

#: "linear", the name of an activation, or "" for what does nothing.
_KINDS: dict[Any, str] = {
    nn.Linear: "linear",
    nn.Identity: "",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
}
_KINDS |= {nn.Softplus: "softplus", nn.GELU: "gelu", nn.ELU: "elu", nn.Sigmoid: "sigmoid"}
#: Those with other parameters are other functions.
_PARAMETERS: dict[type[nn.Module], Any] = {
    nn.Softplus: (("beta", 1), ("threshold", 20)),
    nn.GELU: (("approximate", "tanh"),),
    nn.ELU: (("alpha", 1),),
}
#: What calling runs of modules of torch, as it was when this file was read.
_CALLED: dict[type[nn.Module], Any] = {kind: (kind.forward,) for kind in (nn.Sequential, nn.Dropout, *_KINDS)}
_PLAIN = frozenset((type(None), Tensor, nn.Parameter, nn.Buffer, FakeTensor, FunctionalTensor))
_CALL = nn.Module.__call__
_BEFORE, _AFTER, _BACK_BEFORE, _BACK_AFTER = (
    getattr(_torch_module, f"_global_{kind}_hooks")
    for kind in ("forward_pre", "forward", "backward_pre", "backward")
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
        if name in own or getattr(kind, name) is not function:
            return f"{kind.__name__} has a {name} of its own"
    if kind.__call__ is not _CALL or "_call_impl" in own:
        return f"{kind.__name__} has a __call__ of its own"
    if _has_hooks(own):
        return f"{kind.__name__} has hooks"
    for value in own["_parameters"].values():
        if type(value) not in _PLAIN:
            return f"a parameter of {kind.__name__} is a {type(value).__name__}"
    return None


def has_hooks(module: Any) -> bool:
    """Whether calling it, a module or a function, runs hooks, its own or those of all modules."""
    return isinstance(module, nn.Module) and _has_hooks(module.__dict__)


def _has_hooks(own: dict[str, Any]) -> bool:
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or (_BEFORE or _AFTER or _BACK_BEFORE or _BACK_AFTER)
    )


def why_layer_called(module: Any, kind: type[nn.Module]) -> str | None:
    """:func:`why_called` of a layer that must be of this very type."""
    if type(module) is not kind:
        return f"{type(module).__name__} is not the {kind.__name__} it is read as"
    return why_called(module, _CALLED.get(kind) or getattr(kind, "called"))  # noqa: B009 (not of nn.Module)


def layers_of(head: Any) -> functional.Head | str:
    """The layers of a head that runs fused, or the reason why it does not."""
    if type(head) is not nn.Sequential:
        if isinstance(head, ReadableHead):
            return head.why_called() or head.raw()
        if isinstance(head, nn.Module) and "_orig_mod" in head._modules:  # of torch.compile
            return layers_of(head._orig_mod)
        return f"{type(head).__name__} is neither a ScoreHead nor an nn.Sequential"
    weights: list[Any] = []
    biases: list[Any] = []
    kinds: list[str] = []
    after_linear = False
    for index, module in enumerate(head._modules.values()):
        found = _kind_of(module)
        if found is None:
            return f"module {index} ({module}) is not a supported activation"
        why = why_called(module, _CALLED[type(module)])
        if found == "linear":
            if after_linear:
                why = "it follows a Linear with no activation between them"
            after_linear = True
            weight, bias = linear(module)
            weights.append(weight)
            biases.append(bias)
        elif found:
            if not after_linear:
                why = "it does not follow a Linear"
            after_linear = False
            kinds.append(found)
        if why:
            return f"module {index} ({type(module).__name__}): {why}"
    if len(weights) < 2 or not after_linear or weights[-1].shape[0] != 1:
        return "it does not have a hidden layer and end in a Linear with one output"
    if kinds.count(kinds[0]) < len(kinds):
        return f"it mixes the activations {', '.join(sorted(set(kinds)))}"
    why = why_called(head, _CALLED[nn.Sequential])
    return why or functional.Head(weights, biases, None, kinds[0])


def linear(module: Any) -> tuple[Any, Any]:
    """Weight and bias of an nn.Linear; quicker than its attributes, which are looked for elsewhere first."""
    own = module._parameters
    if "weight" in own and "bias" in own:
        return own["weight"], own["bias"]
    return module.weight, module.bias


def _kind_of(module: Any) -> str | None:
    """As in ``_KINDS``, or None."""
    kind = type(module)
    if kind is nn.Dropout:
        return "" if module.p == 0 or not module.training else None
    for name, value in _PARAMETERS.get(kind, ()):
        if getattr(module, name) != value:
            return None
    return _KINDS.get(kind)


def is_lazy(module: Any) -> bool:
    """Whether the module has parameters that its first call makes."""
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return any(map(torch.nn.parameter.is_lazy, parameters))
