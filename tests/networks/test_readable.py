import grammar
import pytest
import torch
from torch import nn

import fastcsm
from fastcsm.networks import heads, readable
from fastcsm.nn import ARCSM, MADE, ScoreHead

D, C = 3, 4
MODULES, PARTS = 2000, 20

pytestmark = [
    pytest.mark.filterwarnings("ignore:the score head runs"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
]


def call(head, context, x):
    """The head, called, in plain PyTorch."""
    with readable.calling():
        if isinstance(head, ScoreHead):
            return head(context, x)
        return head(torch.cat([context, x.unsqueeze(-1)], -1)).squeeze(-1)


def by_double_backward(head, context, x):
    y = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    s = call(head, context, y)
    (ds,) = torch.autograd.grad(s.sum(), y, create_graph=True)
    return s, ds


def check_losses(head, shape):
    context = torch.randn(*shape, C, dtype=torch.float64, requires_grad=True)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(shape, dtype=torch.float64)
    leaves = [value for value in (*head.parameters(), context, x) if value.requires_grad]
    s, ds = by_double_backward(head, context, x)
    r, dr = fastcsm.score_and_derivative(head, context, x)
    pairs = (
        (fastcsm.csm_loss(head, context, x), (s**2 / 2 + ds).sum(-1).mean()),
        (
            fastcsm.denoising_loss(head, context, x, noise, 0.5),
            (s + noise / 0.5).square().sum(-1).mean() / 2,
        ),
        ((noise * r).sum() + dr.sin().sum(), (noise * s).sum() + ds.sin().sum()),
    )
    for values in pairs:
        grads = (
            torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for v in values
        )
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)
        for got, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


class Opaque(nn.Module):
    """A network or head of which nothing can be read."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        if isinstance(module, MADE):
            self.features, self.order = module.features, module.order

    def forward(self, h):
        if isinstance(self.module, ScoreHead):
            return call(self.module, h[..., :-1], h[..., -1])
        return self.module(h)


def check_draws(network, head):
    model, called = ARCSM(network, head), ARCSM(Opaque(network), Opaque(head))
    options = {"method": "langevin", "seed": 3, "steps": 3, "step_size": 0.1}
    torch.testing.assert_close(model.sample(4, **options), called.sample(4, **options), rtol=1e-8, atol=1e-9)


def check_quantiles(network, head):
    model, called = ARCSM(network, head), ARCSM(Opaque(network), Opaque(head))
    x = torch.randn(4, D, dtype=torch.float64)
    u = model.cdf(x)
    torch.testing.assert_close(u, called.cdf(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.quantile(u), x, rtol=1e-4, atol=1e-4)


def check(seed):
    """One module of the grammar, for every way in which the package runs it."""
    draw = grammar.drawn(seed)
    head = grammar.head(draw, C)
    check_losses(head, draw.choice(((5,), (2, 3))))
    if seed % 7 == 0:
        check_draws(grammar.network(draw, D, C), head)
    if seed % 19 == 0:
        check_quantiles(grammar.network(draw, D, C), grammar.confined(draw, C))


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_the_modules_calling_them_gives_the_same(part):
    for seed in range(part, MODULES, PARTS):
        try:
            check(seed)
        except Exception as error:
            raise AssertionError(f"module {seed} of the grammar: {error}") from error


def differs(seed):
    try:
        check(seed)
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return True
    return False


def by_forward_mode(head, context, x):
    return torch.func.jvp(lambda x: head.score(context, x), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize(
    ("owner", "name", "planted"),
    [
        (readable, "why_called", lambda module, functions: None),
        (readable, "_has_hooks", lambda own: None),
        (ScoreHead, "why_called", lambda head: None),
        (MADE, "why_called", lambda network: None),
        (heads.ByAutodiff, "score_and_derivative", by_forward_mode),
    ],
)
def test_what_reads_too_much_is_found(owner, name, planted, monkeypatch):
    monkeypatch.setattr(owner, name, planted)
    assert any(differs(seed) for seed in range(0, MODULES, 4))


def layer_norm():
    return nn.Sequential(nn.Linear(C + 1, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 1))


def sequential():
    return nn.Sequential(nn.Linear(C + 1, 16), nn.SiLU(), nn.Linear(16, 1))


def changed(head, change, of=lambda head: head[0]):
    change(of(head))
    return head


class Inside(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, h):
        return self.head(h[..., :-1], h[..., -1])


HEADS = {
    "layer norm": layer_norm(),
    "glu": nn.Sequential(nn.Linear(C + 1, 16), nn.GLU(), nn.Linear(8, 1)),
    "distances": nn.Sequential(nn.Linear(C + 1, 6), grammar.Distances(6), nn.Tanh(), nn.Linear(6, 1)),
    "checkpoint": nn.Sequential(nn.Linear(C + 1, 6), grammar.Residual(6), nn.Linear(6, 1)),
    "a function of one's own": nn.Sequential(nn.Linear(C + 1, 6), grammar.Cubed(), nn.Linear(6, 1)),
    "hook of the whole": changed(sequential(), grammar.louder_forward, lambda head: head),
    "backward hook": changed(sequential(), grammar.louder_gradients),
    "low rank": changed(sequential(), grammar.low_rank),
    "weight of another kind": changed(sequential().double(), grammar.as_subclass),
    "subclass of ScoreHead": grammar.LouderHead(C, (8,)),
    "a layer of a ScoreHead wrapped": changed(ScoreHead(C, (8,)), grammar.low_rank, lambda h: h.layers[1]),
    "ScoreHead, normed by a hook": changed(ScoreHead(C, (8,)), nn.utils.weight_norm, lambda h: h.layers[0]),
    "a ScoreHead inside": Inside(ScoreHead(C, (8,))),
    "lazy": nn.Sequential(
        nn.LazyLinear(16, dtype=torch.float64), nn.SiLU(), nn.LazyLinear(1, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_called(name):
    head = HEADS[name] if name == "lazy" else HEADS[name].double()
    for shape in ((16, 5), (7,)):
        check_losses(head, shape)


def test_after_a_step_the_weights_are_those_of_then():
    head = changed(ScoreHead(C, (8,)).double(), nn.utils.spectral_norm, lambda h: h.layers[0])
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    context, x = torch.randn(6, D, C, dtype=torch.float64), torch.randn(6, D, dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        fastcsm.csm_loss(head, context, x).backward()
        optimizer.step()
    check_losses(head.eval(), (6, D))


def test_frequencies_that_are_trained_get_their_gradient():
    head = ScoreHead(C, (8,), frequencies=3).double()
    head.frequencies.requires_grad_()
    context, x = torch.randn(6, D, C, dtype=torch.float64), torch.randn(6, D, dtype=torch.float64)
    s, ds = by_double_backward(head, context, x)
    losses = fastcsm.csm_loss(head, context, x), (s**2 / 2 + ds).sum() / 6
    torch.testing.assert_close(*(torch.autograd.grad(loss, head.frequencies) for loss in losses))


def test_hooks_of_all_modules_are_run():
    head, calls = sequential().double(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        fastcsm.csm_loss(head, torch.randn(2, C).double(), torch.randn(2).double())
    finally:
        handle.remove()
    assert calls == [*head, head]


def test_a_compiled_module_is_read_as_what_it_is():
    head = sequential()
    assert isinstance(heads.of(torch.compile(head)), heads.Fused)


def test_a_called_head_is_right_where_nothing_is_recorded_and_where_all_is_compiled():
    head = layer_norm().double()
    context, x = torch.randn(6, D, C, dtype=torch.float64), torch.randn(6, D, dtype=torch.float64)
    expected = by_double_backward(head, context, x)
    with torch.no_grad():
        without = fastcsm.score_and_derivative(head, context, x)
    assert not any(value.requires_grad for value in without)
    with torch.inference_mode():
        inferred = fastcsm.score_and_derivative(head, context.clone(), x.clone())
    for found in (without, inferred):
        torch.testing.assert_close(found, tuple(value.detach() for value in expected))
    loss = torch.compile(
        lambda context, x: fastcsm.csm_loss(head, context, x), fullgraph=True, backend="aot_eager"
    )
    got, wanted = (
        torch.autograd.grad(f, list(head.parameters()))
        for f in (loss(context, x), (expected[0] ** 2 / 2 + expected[1]).sum() / 6)
    )
    torch.testing.assert_close(got, wanted)


class Leaky(nn.Module):
    """Every context reads every variable."""

    features = D

    def forward(self, x):
        return x.sum(1)[:, None, None].expand(-1, D, C)


@pytest.mark.parametrize(
    "how", [lambda m: m.sample(3, step_size=0.1), lambda m: m.quantile(torch.full((3, D), 0.4).double())]
)
def test_a_network_that_is_not_autoregressive_is_refused(how):
    model = ARCSM(Leaky(), grammar.confined(grammar.drawn(0), C))
    with pytest.raises(
        ValueError, match="context_net must be autoregressive and the same at every call; its"
    ):
        how(model)


def test_dropout_that_is_on_is_not_taken_for_off():
    model = ARCSM(MADE(D, (8,), C, dropout=0.5).double(), grammar.confined(grammar.drawn(0), C))
    u = torch.full((3, D), 0.4, dtype=torch.float64)
    with pytest.raises(ValueError, match="the same at every call"):
        model.quantile(u)
    torch.testing.assert_close(model.eval().cdf(model.quantile(u)), u)
