"""How every op is made: a schema, a fake, and an implementation that asks for a backend when it runs."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends

_LIBRARY = torch.library.Library("fastcsm", "DEF")


class Shaped(NamedTuple):
    """Which arguments of an op are rows: their context (..., C) and others (...); and which results.

    Attributes:
        context, others: places of arguments.
        results: places of results, and for each that of the argument whose shape it has, if it is not empty.
    """

    context: int
    others: tuple[int, ...]
    results: tuple[tuple[int, int], ...]

    def flat(self, implementation: Callable[..., Any]) -> Callable[..., Any]:
        """The implementation for rows of any leading shape; those of libraries take them as they are."""
        if getattr(implementation, "any_shape", False):
            return implementation

        def run(*args: Any) -> Any:
            given = list(args)
            context = given[self.context]
            given[self.context] = context.reshape(given[self.others[0]].numel(), context.shape[-1])
            for k in self.others:
                given[k] = given[k].reshape(-1)
            results = list(implementation(*given))
            for k, like in self.results:
                if results[k].numel() == args[like].numel():
                    results[k] = results[k].reshape(args[like].shape)
            return tuple(results)

        return run


def define(
    schema: str,
    fake: Callable[..., Any],
    request: Callable[..., backends.Request] | None = None,
    gradient: bool = True,
    shaped: Shaped | None = None,
) -> Callable[..., Any]:
    """Define ``fastcsm::<schema>`` and return the operator; ``request`` reads its arguments for a backend.

    With ``shaped`` rows may have any leading shape, whatever the implementation knows. The operator itself
    records no gradients: the autograd.Function beside each schema does. Without ``gradient`` there is none,
    and the results are constants to autograd.
    """
    name, _, rest = schema.partition("(")
    declared = [argument.split()[0] for argument in rest.partition(")")[0].split(", ")]
    lists = [k for k, kind in enumerate(declared) if kind.endswith("[]")]
    request = request or _request_of(declared)

    def run(*args: Any) -> Any:
        found = request(args)
        implementation = backends.select(name, found)
        if shaped is not None and args[shaped.context].dim() != 2:
            implementation = shaped.flat(implementation)
        if not (torch.is_grad_enabled() or is_autocast_on(found.device)):
            return implementation(*args)
        with torch.no_grad(), _as_given(found.device):
            return implementation(*args)

    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastcsm::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.fastcsm, name).default

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        kinds = {*map(type, args)}
        for k in lists:
            kinds.update(map(type, args[k]))
        # Where the dispatcher would just call the implementation, it is called.
        if is_eager() and _PLAIN.issuperset(kinds):
            return run(*args)
        _refuse_transforms([item for arg in args for item in (arg if isinstance(arg, list) else (arg,))])
        return op(*args)

    return call if gradient else torch.no_grad()(call)


def differentiable(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``, and this package's sentence where a transform keeps that from running."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    if not is_eager():
        _refuse_transforms(args)
    # As function.apply, which first looks for transforms.
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


_REFERENCE = "call fastcsm.reference, which is plain PyTorch"


def _refuse_transforms(args: Sequence[Any]) -> None:
    # A transform would take an op's results for constants, without a word.
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(f"fastcsm ops do not run inside torch.func transforms; {_REFERENCE}")
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(arg).tangent is not None for arg in args if isinstance(arg, Tensor)
    ):
        raise RuntimeError(f"fastcsm ops have no forward-mode derivative; {_REFERENCE}")


def is_batched(upstream: Tensor) -> bool:
    """Whether many gradients are asked for at once, by ``is_grads_batched`` or vmap over a backward pass."""
    if torch.compiler.is_compiling():
        return False
    kinds = torch._C._functorch
    return kinds.is_legacy_batchedtensor(upstream) or kinds.is_batchedtensor(upstream)


def unbatched(*upstream: Tensor) -> None:
    """Refuse a backward pass of many gradients at once."""
    if any(map(is_batched, upstream)):
        raise RuntimeError(
            "fastcsm ops take one gradient at a time, without is_grads_batched and vectorize: call"
            " torch.autograd.grad once for each"
        )


#: What the dispatcher has nothing to add to.
_PLAIN = frozenset((Tensor, torch.nn.Parameter, int, float, bool, str, list))


def is_eager() -> bool:
    """Whether ops do no more than they say: no mode, no transform, no forward-mode derivative, no tracing."""
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )


def is_autocast_on(device: str) -> bool:
    """Whether torch.autocast is on for a device type."""
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def _as_given(device: str) -> contextlib.AbstractContextManager:
    """No autocast inside an op: its arguments have the dtypes that are meant."""
    return torch.autocast(device, enabled=False) if is_autocast_on(device) else contextlib.nullcontext()


def _request_of(kinds: list[str]) -> Callable[[tuple[Any, ...]], backends.Request]:
    """Reads calls with arguments of these kinds.

    The first, a tensor, tells device and dtype, the first list of tensors the widths.
    """
    place = kinds.index("Tensor[]")

    def request(args: tuple[Any, ...]) -> backends.Request:
        tensor, weights = args[0], args[place]
        device = "cpu" if tensor.is_cpu else tensor.device.type
        widths = tuple([weight.shape[0] for weight in weights])
        return backends.Request(device, tensor.dtype, widths, weights[0].shape[1] if weights else 0)

    return request


def needs_grad(*tensors: Tensor) -> bool:
    """Whether autograd is recording and any of the tensors requires a gradient."""
    return torch.is_grad_enabled() and True in [tensor.requires_grad for tensor in tensors]


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
        if not torch.is_grad_enabled():
            return backward(ctx, *upstream)
        with torch.no_grad():
            grads = backward(ctx, *upstream)
        if torch.compiler.is_compiling():
            return grads
        return _Twice.apply(grads, *upstream, *ctx.saved_tensors)

    return run
