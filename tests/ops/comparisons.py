"""What backends that a test registers are held to: the ops' results by name, and plain PyTorch's."""

import math
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from support import Case, assert_as_accurate, plain_loss, plain_score_head, split, with_gradients

import fastcsm
from fastcsm import functional
from fastcsm.ops.langevin import langevin
from fastcsm.reference import conditional_density as density_reference

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
#: What densities are asked for.
DENSITY = {"low": -1.0, "high": 1.0, "tolerance": 1e-4, "panels": 8, "score_scale": 0.7, "stage_feature": 0.3}


def round_tf32(x):
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def truncate_tf32(x):
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


class Tf32Linear(torch.autograd.Function):
    """x w^T with the operands of every product made tf32 by ``narrow``."""

    @staticmethod
    def forward(ctx, x, weight, narrow):
        x, weight = narrow(x), narrow(weight)
        ctx.save_for_backward(x, weight)
        ctx.narrow = narrow
        return x @ weight.t()

    @staticmethod
    def backward(ctx, upstream):
        x, weight = ctx.saved_tensors
        upstream = ctx.narrow(upstream)
        return upstream @ weight, upstream.t() @ x, None


def tf32_linear(x, weight, bias=None, *, narrow=round_tf32):
    product = Tf32Linear.apply(x, weight, narrow)
    return product if bias is None else product + bias


@contextmanager
def plain_precision(precision, narrow=round_tf32):
    """Plain PyTorch's products inside the ``with`` block are those of a GPU in this precision.

    As PyTorch does it on a GPU, operands are rounded to tf32; ``narrow`` is another way.
    """
    with pytest.MonkeyPatch.context() as patch:
        if precision == "tf32":
            patch.setattr(torch.nn.functional, "linear", partial(tf32_linear, narrow=narrow))
            for name in ("solve", "nodes"):  # which ask for the unit of rounding of what enters a product
                found = getattr(density_reference, name)
                patch.setattr(density_reference, name, lambda *args, found=found: found(*args[:-1], 2.0**-10))
        yield


def compared(backend, run, plain, case, precision, narrow=round_tf32):
    """(the backend's ``run`` of a case, plain PyTorch's in the same precision, and in float64)."""
    case = case.to(DTYPES[precision])
    with fastcsm.backend(backend):
        got = run(case)
    truth = plain(case.to(torch.float64))
    with plain_precision(precision, narrow):
        return got, plain(case), truth


def check(backend, run, plain, precision, narrow=round_tf32, **settings):
    """``run``'s results on a backend are as accurate as ``plain``'s, plain PyTorch, in the same precision."""
    if precision == "tf32" and settings.get("activation") == "relu":
        settings["activation"] = "elu"  # rounding moves relu's kink past rows, an error of any size
    cases = (Case(seed=seed, **settings) for seed in range(3))
    assert_as_accurate(*(compared(backend, run, plain, case, precision, narrow) for case in cases))


def scores(case):
    head, options = split(case.leaves()), {"activation": case.activation, "frequencies": case.frequencies}
    s, ds = functional.score_head(*head, **options)
    return {
        "score": s.detach(),
        "derivative": ds.detach(),
        "alone": functional.score(*head, **options).detach(),
    }


def plain_scores(case):
    s, ds = plain_score_head(case, case.leaves())
    return {"score": s.detach(), "derivative": ds.detach(), "alone": s.detach()}


def loss(case):
    leaves = case.leaves()
    value = functional.csm_loss(
        *split(leaves),
        activation=case.activation,
        frequencies=case.frequencies,
        alpha=case.alpha,
        beta=case.beta,
        gamma=case.gamma,
    )
    return named(with_gradients(value, leaves))


def plain_gradients(case):
    leaves = case.leaves()
    return named(with_gradients(plain_loss(case, leaves), leaves))


def named(results):
    """Gradients under one name for each kind of parameter, flat, so that heads of any depth are compared."""
    weights = [value.flatten() for name, value in results.items() if name.startswith("weights")]
    biases = [value.flatten() for name, value in results.items() if name.startswith("biases")]
    kinds = {"first": weights[0], "hidden": torch.cat(weights[1:-1] or [weights[0]]), "output": weights[-1]}
    return {
        **{name: results[name] for name in ("loss", "context", "x") if name in results},
        **kinds,
        "biases": torch.cat(biases[:-1]),
        "output_bias": biases[-1],
    }


def upstream(case, score, derivative):
    grad_score, grad_derivative = case.grads
    return (grad_score * score + grad_derivative * derivative).sum()


def backward(case):
    leaves = case.leaves()
    s, ds = functional.score_head(*split(leaves), activation=case.activation, frequencies=case.frequencies)
    return named(with_gradients(upstream(case, s, ds), leaves))


def plain_backward(case):
    leaves = case.leaves()
    return named(with_gradients(upstream(case, *plain_score_head(case, leaves)), leaves))


def settings(shape, activation):
    rows, context, hidden, frequencies = shape
    return {
        "rows": rows,
        "context": context,
        "hidden": hidden,
        "frequencies": frequencies,
        "activation": activation,
    }


def chain(case, stages=True, sizes=(0.3, 0.1), steps=1, seed=77, squash=0.0):
    """langevin's states; with ``stages`` the last column of the context is each stage's own."""
    given = case.context[:, :-1].contiguous() if stages and not squash else case.context
    head = case.weights, case.biases, case.frequencies, case.activation
    rows = torch.arange(len(case.x), device=case.x.device)
    noise = steps, seed, 2**40 + rows, rows % 7, 9
    scales = [1.0 + i for i in range(len(sizes))]
    features = [0.1 - 0.6 * i for i in range(len(sizes))] if stages else []
    return {"x": langevin(given, case.x, *head, list(sizes), scales, features, *noise, squash)}


def plain_chain(case, **options):
    with fastcsm.backend("reference"):
        return chain(case, **options)


def density(case, backend, point=None, **changes):
    """conditional_density's results."""
    options = DENSITY | {"activation": case.activation, "frequencies": case.frequencies} | changes
    own = options["stage_feature"] is not None and "squash" not in options
    context = case.context[:, :-1] if own else case.context
    point = case.x if point is None else point
    with fastcsm.backend(backend), torch.no_grad():
        return functional.conditional_density(context, point, case.weights, case.biases, **options)._asdict()


def in_precision(backend, precision, case, run, narrow=round_tf32):
    """(the backend's, plain PyTorch's, truth) of ``run(case, backend)``."""
    case = case.to(DTYPES[precision])
    got, truth = run(case, backend), run(case.to(torch.float64), "reference")
    with plain_precision(precision, narrow):
        return got, run(case, "reference"), truth


def log_density_gradients(case, backend, feature=None, squash=None):
    """Gradients of the sum of log densities; ``feature`` takes the place of the context's last column, or,
    with ``squash``, is added to it."""
    leaves = case.leaves()
    context, x, weights, biases = split(leaves)
    if feature is not None and squash is None:
        context = context[:, :-1]
    head = {"frequencies": case.frequencies, "activation": case.activation}
    interval = {"low": -1.0, "high": 1.0, "tolerance": 1e-6, "stage_feature": feature, "squash": squash}
    with fastcsm.backend(backend):
        q = functional.conditional_density(context, x, weights, biases, **head, **interval).log_density
        return named(with_gradients(q.sum(), leaves))


def flow_shares(got, plain, truth, names=("point", "change")):
    """As ``shares``, of a flow's results: the steps that rounding decides move single rows."""
    found = {}
    for name in names:
        error, most = ((results[name].double() - truth[name]).norm() for results in (got, plain))
        allowed = (2 * most + 1e-4 * truth[name].norm()).item()
        found[name] = 0.0 if error == 0 else error.item() / allowed if allowed else math.inf
    return found


def check_flow(run, plain, case, precision, levels):
    """probability_flow's ``run`` takes the steps that ``plain`` takes, and ends where the fine flow does."""
    dtype = DTYPES[precision]
    levels = levels | {"tolerance": 1e-2, "change": case.activation != "gelu"}
    got, expected = run(case.to(dtype), **levels)._asdict(), plain(case.to(dtype), **levels)._asdict()
    fine = levels | {"tolerance": 1e-4 if case.activation == "relu" else 1e-7}
    truth = plain(case.to(torch.float64), **fine)._asdict()
    for name, share in flow_shares(got, expected, truth).items():
        assert got[name].dtype == torch.float32
        assert share <= 1, name
        # Where rounding decides whether a step is taken, single rows differ.
        off = (got[name] - expected[name]).abs().median() if len(case.x) > 0 else 0.0
        assert dtype.itemsize == 2 or off <= 1e-5, name
    assert levels["change"] or not got["change"].any()


def _of_shape(case, shape):
    """Scores, losses and gradients of the rows in this shape, their features not beside each other."""
    context = case.context.reshape(*shape, 6).movedim(-1, 0).contiguous().movedim(0, -1).requires_grad_()
    x, alpha = case.x.reshape(shape).clone().requires_grad_(), case.alpha.reshape(shape)
    weights, biases = ([t.clone().requires_grad_() for t in ts] for ts in (case.weights, case.biases))
    head = {"weights": weights, "biases": biases, "frequencies": case.frequencies}
    scores = functional.score(context, x, **head), *functional.score_head(context, x, **head)
    losses = [
        functional.csm_loss(context, x, **head, alpha=a, beta=alpha, gamma=0.5)
        for a in (alpha, alpha.clone().requires_grad_())
    ]
    leaves = context, x, *weights, *biases
    grads = [torch.autograd.grad(value.sum(), leaves, retain_graph=True) for value in (*scores[1:], *losses)]
    return scores, losses, grads


def check_shape(backend, shape):
    """Rows in any leading shape, contiguous or not, are those rows: results and gradients to the bit."""
    case = Case(rows=math.prod(shape)).to(torch.float32)
    with fastcsm.backend(backend):
        scores, losses, grads = _of_shape(case, shape)
        flat = _of_shape(case, (math.prod(shape),))
    for a, b in zip(scores, flat[0], strict=True):
        assert a.shape == shape
        assert torch.equal(a.flatten(), b)
    assert [loss.shape for loss in losses] == [(), ()]
    assert all(map(torch.equal, losses, flat[1]))
    for ours, theirs in zip(grads, flat[2], strict=True):
        assert ours[1].shape == shape
        assert all(torch.equal(a.reshape(b.shape), b) for a, b in zip(ours, theirs, strict=True))
