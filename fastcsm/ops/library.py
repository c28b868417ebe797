"""How every op is made: a schema, a fake, and an implementation that asks for a backend when it runs."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends

_LIBRARY = torch.library.Library("fastcsm", "DEF")


def define(
    schema: str,
    fake: Callable[..., Any],
    request: Callable[..., backends.Request] | None = None,
    gradient: bool = True,
) -> Callable[..., Any]:
    """Define ``fastcsm::<schema>`` and return the operator; ``request`` reads its arguments for a backend.

    The operator itself records no gradients: the autograd.Function beside each schema does. Without
    ``gradient`` there is none, and the results are constants to autograd.
    """
    name = schema.partition("(")[0]

    def run(*args: Any) -> Any:
        found = (request or _request)(args)
        with torch.no_grad(), _as_given(found.device):
            return backends.select(name, found)(*args)

    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastcsm::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.fastcsm, name).default

    def call(*args: Any) -> Any:
        _refuse_transforms()
        return op(*args)

    return call if gradient else torch.no_grad()(call)


def differentiable(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``, and this package's sentence where a transform keeps that from running."""
    _refuse_transforms()
    return function.apply(*args)


def _refuse_transforms() -> None:
    # A transform would take an op's results for constants, without a word.
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "fastcsm ops do not run inside torch.func transforms; call fastcsm.reference, which is plain"
            " PyTorch"
        )


def _as_given(device: str) -> contextlib.AbstractContextManager:
    """No autocast inside an op: its arguments have the dtypes that are meant."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def _request(args: tuple[Any, ...]) -> backends.Request:
    """The first tensor tells device and dtype, the first list of tensors the widths."""
    tensor = next(arg for arg in args if isinstance(arg, Tensor))
    weights = next((arg for arg in args if isinstance(arg, list)), ())
    inputs = weights[0].shape[1] if weights else 0
    widths = tuple(weight.shape[0] for weight in weights)
    return backends.Request(tensor.device.type, tensor.dtype, widths, inputs)


def needs_grad(*tensors: Tensor) -> bool:
    """Whether autograd is recording and any of the tensors requires a gradient."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def halves(params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases, which autograd takes in a row, as an op takes them."""
    layers = len(params) // 2
    return list(params[:layers]), list(params[layers:])


def for_autograd(grads: Any, need: Sequence[bool], between: int, params: int) -> tuple[Tensor | None, ...]:
    """Gradients of (context, x, weights, biases) as autograd takes them: None for what needs none.

    Args:
        grads: what a backward pass of the head returned.
        need: whether those of the context, of x and of the parameters were asked for.
        between: arguments between x and the parameters, which have no gradient.
        params: how many parameters there are.
    """
    (context, x, weights, biases), (need_context, need_x, need_params) = grads, need
    return (
        context if need_context else None,
        x if need_x else None,
        *[None] * between,
        *([*weights, *biases] if need_params else [None] * params),
    )


def choice() -> str | None:
    """The backend in force now, for the backward pass to run on; None while compiling."""
    return None if torch.compiler.is_compiling() else backends.chosen()


def under(choice: str | None, op: Callable[..., Any], *args: Any) -> Any:
    """Call ``op`` under a choice made earlier."""
    if choice is None:
        return op(*args)
    with backends.backend(choice):
        return op(*args)


class _Twice(torch.autograd.Function):
    """Gradients that raise when they are differentiated, with respect to anything they depend on."""

    @staticmethod
    def forward(ctx: Any, grads, *inputs):
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *_):
        raise RuntimeError(
            "fastcsm ops can be differentiated once; for higher derivatives call fastcsm.reference, which is"
            " plain PyTorch"
        )


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backward pass whose second derivative raises instead of being silently incomplete.

    torch's once_differentiable looks at the upstream gradients only; here the saved tensors count as well,
    so the function must save every input it is differentiable in.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *upstream: Tensor) -> Any:
        with torch.no_grad():
            grads = backward(ctx, *upstream)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return grads
        return _Twice.apply(grads, *upstream, *ctx.saved_tensors)

    return run
