import copy
import warnings

import pytest
import torch
from torch import nn

import fastcsm
from fastcsm import functional
from fastcsm.networks import autodiff, heads
from fastcsm.networks.context import LinearContext
from fastcsm.nn import ScoreHead

ACTIVATIONS = {
    "softplus": nn.Softplus(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(approximate="tanh"),
    "elu": nn.ELU(),
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
}


def sequential(activation=None, context=4):
    f = activation or nn.SiLU()
    return nn.Sequential(
        nn.Linear(context + 1, 9), f, nn.Linear(9, 7), copy.deepcopy(f), nn.Linear(7, 1)
    ).double()


def rows(*shape, context=4):
    return torch.randn(*shape, context, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


def by_double_backward(head, context, x):
    """Score and derivative by autograd, the way they are written without this package."""
    x = x.detach().requires_grad_()
    if isinstance(head, ScoreHead):
        phase = x.unsqueeze(-1) * head.frequencies
        h = torch.cat([context, x.unsqueeze(-1), phase.sin(), phase.cos()], -1)
        for layer in head.layers[:-1]:
            h = ACTIVATIONS[head.activation](layer(h))
        s = head.layers[-1](h).squeeze(-1)
    else:
        s = head(torch.cat([context, x.unsqueeze(-1)], -1)).squeeze(-1)
    (ds,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    return s, ds


def assert_same_gradients(head, loss, expected, *tensors):
    targets = [*head.parameters(), *tensors]
    for got, wanted in zip(torch.autograd.grad(loss, targets), torch.autograd.grad(expected, targets)):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.fixture
def quiet():
    """Any warning is an error; the list of warnings already given is forgotten."""
    autodiff._warned.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_sequential_runs_fused_and_right(name):
    head = sequential(ACTIVATIONS[name])
    assert isinstance(heads.of(head), heads.Fused)
    context, x = rows(5, 3)
    context.requires_grad_()
    s, ds = by_double_backward(head, context, x)
    loss = fastcsm.csm_loss(head, context, x)
    expected = (s**2 / 2 + ds).sum() / 5
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(head, loss, expected, context)
    score, derivative = fastcsm.score_and_derivative(head, context, x)
    torch.testing.assert_close(score, s)
    torch.testing.assert_close(derivative, ds)


@pytest.mark.usefixtures("quiet")
def test_modules_that_do_nothing_are_skipped():
    plain = sequential()
    layers = list(plain)
    padded = nn.Sequential(
        nn.Identity(), layers[0], nn.Dropout(0.0), *layers[1:4], nn.Dropout(0.5), layers[4]
    )
    context, x = rows(3, 2)
    assert isinstance(heads.of(padded.train()), heads.ByAutodiff)
    torch.testing.assert_close(
        fastcsm.csm_loss(padded.eval(), context, x), fastcsm.csm_loss(plain, context, x)
    )


def hooked():
    head = sequential()
    head[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return head


class Square(nn.Module):
    def forward(self, h):
        return (h[..., :-1].sum(-1, keepdim=True) * h[..., -1:] ** 3).sin()


FALLBACKS = [
    (Square(), "Square is neither a ScoreHead nor an nn.Sequential"),
    (lambda h: h[..., -1] ** 2, "function is neither"),
    (sequential(nn.Softplus(beta=2.0)), "module 1 .* is not a supported activation"),
    (sequential(nn.GELU()), "module 1 .* is not a supported activation"),
    (sequential(nn.ELU(alpha=0.5)), "module 1 .* is not a supported activation"),
    (sequential(nn.LeakyReLU()), "module 1 .* is not a supported activation"),
    (nn.Sequential(nn.Linear(5, 1)).double(), "it does not have a hidden layer"),
    (nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1)).double(), "module 1 .* no activation between"),
    (
        nn.Sequential(nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double(),
        "does not follow a Linear",
    ),
    (nn.Sequential(nn.Linear(5, 1), nn.Tanh()).double(), "it does not have a hidden layer"),
    (
        nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3), nn.SiLU(), nn.Linear(3, 1)).double(),
        "it mixes the activations silu, tanh",
    ),
    (hooked(), "module 0 .* has hooks"),
]


@pytest.mark.parametrize(("head", "reason"), FALLBACKS)
def test_other_heads_fall_back_with_one_warning_and_are_right(head, reason):
    autodiff._warned.clear()
    context, x = rows(4, 3)
    with pytest.warns(UserWarning, match=f"double backward, not fused: .*{reason}") as caught:
        loss = fastcsm.csm_loss(head, context, x)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fastcsm.csm_loss(head, context, x)
    assert torch.equal(loss, again)
    x = x.requires_grad_()
    s = head(torch.cat([context, x.unsqueeze(-1)], -1)).reshape(x.shape)
    (ds,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    expected = (s**2 / 2 + ds).sum() / 4
    torch.testing.assert_close(loss, expected)
    if isinstance(head, nn.Module) and list(head.parameters()):
        assert_same_gradients(head, loss, expected)


def test_a_parametrised_layer_is_not_taken_for_a_plain_one():
    head = sequential()
    nn.utils.parametrizations.weight_norm(head[0])
    assert "is not a supported activation" in heads.of(head).reason


def test_a_head_of_the_wrong_shape():
    autodiff._warned.clear()
    with (
        pytest.warns(UserWarning, match="not fused"),
        pytest.raises(ValueError, match=r"head must return shape \(4, 3, 1\)"),
    ):
        fastcsm.csm_loss(lambda h: h, *rows(4, 3))


@pytest.mark.parametrize("head", [sequential(), ScoreHead(4, (8, 6), "gelu", 3).double(), Square()])
@pytest.mark.filterwarnings("ignore:the score head runs")
@pytest.mark.parametrize("shape", [(6,), (5, 3), (2, 3, 4)])
def test_weights_scales_and_reductions(head, shape):
    context, x = rows(*shape)
    weight, scale = torch.rand(shape[-1:]).double(), 1 + torch.rand(shape).double()
    s, ds = by_double_backward(head, context, x)
    per_row = weight * ((scale * s) ** 2 / 2 + scale * ds)
    samples = x.numel() // shape[-1]

    def loss(**options):
        return fastcsm.csm_loss(head, context, x, row_weight=weight, score_scale=scale, **options)

    torch.testing.assert_close(loss(), per_row.sum() / samples)
    torch.testing.assert_close(loss(reduction="sum"), per_row.sum())
    torch.testing.assert_close(loss(reduction="none"), per_row.sum(-1))
    half = fastcsm.csm_loss(head, context, x, row_weight=0.5, score_scale=3.0)
    torch.testing.assert_close(half, 0.5 * (9 * s**2 / 2 + 3 * ds).sum() / samples)
    if list(getattr(head, "parameters", list)()):
        for options in ({}, {"reduction": "sum"}):
            expected = per_row.sum() / (1 if options else samples)
            assert_same_gradients_kept(head, loss(**options), expected)
        upstream = torch.randn(shape[:-1]).double()
        assert_same_gradients_kept(
            head, (loss(reduction="none") * upstream).sum(), (per_row.sum(-1) * upstream).sum()
        )


def assert_same_gradients_kept(head, loss, expected):
    targets = list(head.parameters())
    got = torch.autograd.grad(loss, targets)
    wanted = torch.autograd.grad(expected, targets, retain_graph=True)
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("head", [sequential(), ScoreHead(4, (8, 6), "softplus", 3).double()])
def test_denoising_loss(head, reduction):
    context, x = rows(5, 3)
    noise, sigma = torch.randn(5, 3).double(), 0.1 + torch.rand(5, 3).double()
    options = {"row_weight": sigma**2, "score_scale": 1 / sigma}
    loss = fastcsm.denoising_loss(head, context, x, noise, sigma, reduction=reduction, **options)
    s, _ = by_double_backward(head, context, x)
    per_row = sigma**2 * (s / sigma + noise / sigma) ** 2 / 2
    expected = {"mean": per_row.sum() / 5, "sum": per_row.sum(), "none": per_row.sum(-1)}[reduction]
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(head, loss.sum(), expected.sum())


@pytest.mark.filterwarnings("ignore:the score head runs")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("head", [sequential(), ScoreHead(4, (8, 6), "softplus", 3).double(), Square()])
def test_contexts_that_are_not_computed_yet(head, reduction):
    hidden, x = torch.randn(5, 6).double(), torch.randn(5, 3).double()
    noise, extra = torch.randn(5, 3).double(), torch.randn(5, 3, 1).double()
    weight, bias = torch.randn(9, 6).double(), torch.randn(9).double()
    degrees = torch.arange(6) // 2, torch.arange(9) // 3
    layer = (hidden.requires_grad_(), weight, bias, *degrees)
    lazy = LinearContext(layer, extra)
    whole = torch.cat([functional.masked_linear(*layer).reshape(5, 3, 3), extra], -1)
    for loss in (
        lambda context: fastcsm.csm_loss(head, context, x, row_weight=2.0, reduction=reduction),
        lambda context: fastcsm.denoising_loss(head, context, x, noise, 0.5, reduction=reduction),
    ):
        got, expected = loss(lazy), loss(whole)
        torch.testing.assert_close(got, expected)
        grads = [torch.autograd.grad(value.sum(), hidden, retain_graph=True)[0] for value in (got, expected)]
        torch.testing.assert_close(*grads)


def test_denoising_with_numbers():
    head = sequential()
    context, x = rows(5, 3)
    noise = torch.randn(5, 3).double()
    s, _ = by_double_backward(head, context, x)
    loss = fastcsm.denoising_loss(head, context, x, noise, 0.5)
    torch.testing.assert_close(loss, ((s + noise / 0.5) ** 2 / 2).sum() / 5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_empty_batch_is_zero_with_zero_gradients(reduction):
    head = ScoreHead(4, (8,))
    context = torch.zeros(0, 3, 4, requires_grad=True)
    loss = fastcsm.csm_loss(head, context, torch.zeros(0, 3), reduction=reduction)
    assert loss.shape == ((0,) if reduction == "none" else ())
    loss.sum().backward()
    assert loss.sum() == 0
    assert context.grad.shape == (0, 3, 4)
    assert all((p.grad == 0).all() for p in head.parameters())


def test_a_row_weight_may_require_a_gradient():
    head = sequential()
    context, x = rows(5, 3)
    weight = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    s, ds = by_double_backward(head, context, x)
    (grad,) = torch.autograd.grad(fastcsm.csm_loss(head, context, x, row_weight=weight), weight)
    torch.testing.assert_close(grad, ((s**2 / 2 + ds) / 5).detach())


def test_bfloat16_loss_is_float32():
    head = ScoreHead(4, (8,)).bfloat16()
    context, x = (t.bfloat16() for t in rows(5, 3))
    for reduction in ("mean", "none"):
        assert fastcsm.csm_loss(head, context, x, reduction=reduction).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
        ({"x": torch.zeros(())}, ValueError, "x must be a tensor with at least one axis"),
        ({"x": 3.0}, ValueError, "x must be a tensor with at least one axis"),
        ({"x": torch.zeros(5, 2)}, ValueError, "x must have the shape of context"),
        ({"row_weight": torch.ones(4)}, ValueError, r"row_weight must broadcast to .* \(5, 3\), got \(4,\)"),
        ({"score_scale": torch.ones(2, 5, 3)}, ValueError, "score_scale must broadcast"),
        ({"context": torch.zeros(5, 3, 2)}, ValueError, r"weights\[0\] must have shape \(8, 35\)"),
    ],
)
def test_bad_arguments(options, error, message):
    arguments = {"context": torch.zeros(5, 3, 4), "x": torch.zeros(5, 3)} | options
    with pytest.raises(error, match=message):
        fastcsm.csm_loss(ScoreHead(4, (8,)), **arguments)


def test_denoising_needs_noise_like_x():
    head, context, x = ScoreHead(4, (8,)), torch.zeros(5, 3, 4), torch.zeros(5, 3)
    with pytest.raises(
        ValueError, match=r"noise must be a tensor of the shape of x_noisy, \(5, 3\), got \(5,\)"
    ):
        fastcsm.denoising_loss(head, context, x, torch.zeros(5), 0.1)
    with pytest.raises(ValueError, match="sigma must broadcast"):
        fastcsm.denoising_loss(head, context, x, x, torch.ones(5))


@pytest.mark.filterwarnings("ignore:the score head runs")
@pytest.mark.parametrize("head", [sequential(), ScoreHead(4, (8,)).double()])
def test_compiles_whole_and_once(head):
    def step(context, x, weight):
        return fastcsm.csm_loss(head, context, x, row_weight=weight)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        context, x = rows(n, 3)
        weight = torch.rand(n, 3).double()
        loss = compiled(context, x, weight)
        torch.testing.assert_close(loss, step(context, x, weight))
        assert_same_gradients(head, loss, step(context, x, weight))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
