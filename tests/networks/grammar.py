"""Random heads and context networks of what torch.nn offers, from a seed."""

import random

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from fastcsm.nn import MADE, MaskedLinear, ScoreHead

SUPPORTED = (nn.SiLU, nn.Tanh, nn.Softplus, nn.Sigmoid, nn.ELU, lambda: nn.GELU(approximate="tanh"))
OTHERS = (
    *(nn.GELU, nn.Mish, nn.SELU, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.PReLU, nn.Identity),
    lambda: nn.Softplus(beta=2.0),
    lambda: nn.ELU(alpha=0.5),
    lambda: nn.CELU(0.7),
    lambda: nn.Softmax(-1),
    lambda: nn.Dropout(0.0),
    lambda: Halves(),
    lambda: Cubed(),
    lambda: Louder(),
)


class Halves(nn.Module):
    """GLU of two copies, so that it keeps the width."""

    def forward(self, h):
        return nn.functional.glu(torch.cat([h, 0.5 * h], -1))


class Louder(nn.SiLU):
    def forward(self, h):
        return 1.5 * super().forward(h)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, upstream):
        return 3 * ctx.saved_tensors[0] ** 2 * upstream


class Cubed(nn.Module):
    def forward(self, h):
        return _Cube.apply(h.tanh())


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, h):
        return h + checkpoint(self.inner, h, use_reentrant=False)


class Distances(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(width, width))

    def forward(self, h):
        return torch.cdist(h, self.centres, compute_mode="use_mm_for_euclid_dist")


class Adapted(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, h):
        return self.scale * super().forward(h)


class Renamed(nn.Linear):
    pass


class LouderHead(ScoreHead):
    def forward(self, context, x):
        return 1.5 * super().forward(context, x)


class LouderMADE(MADE):
    def forward(self, x):
        return 1.5 * super().forward(x)


class ShiftedMADE(MADE):
    def hidden(self, x):
        return super().hidden(x) + 0.1


class LouderMasked(MaskedLinear):
    def forward(self, x):
        return 1.5 * super().forward(x)


def low_rank(layer):
    """As adapters do: this object's forward, not its class's."""
    down, up = torch.randn(2, layer.in_features), 0.3 * torch.randn(layer.out_features, 2)
    layer.down, original = nn.Parameter(down), layer.forward
    layer.forward = lambda h: original(h) + h @ layer.down.T @ up.to(h).T


def as_subclass(layer):
    """A weight that is a tensor of another kind."""
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Doubled))


class Doubled(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            return function(args[0], 2 * args[1].as_subclass(torch.Tensor), *args[2:])
        return super().__torch_function__(function, types, args, kwargs or {})


def louder_forward(module):
    module.register_forward_hook(lambda module, inputs, output: 1.4 * output)


def louder_inputs(module):
    module.register_forward_pre_hook(lambda module, inputs: tuple(1.2 * value for value in inputs))


def louder_gradients(module):
    module.register_full_backward_hook(lambda module, before, after: tuple(0.7 * g for g in before))


LAYER_CHANGES = (
    low_rank,
    louder_forward,
    louder_inputs,
    louder_gradients,
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
    lambda layer: layer.weight.requires_grad_(False),
    lambda layer: layer.requires_grad_(False),
    lambda layer: setattr(layer, "bias", None),
)


def linear(draw, before, after):
    kind = draw.choices((nn.Linear, Adapted, Renamed), (8, 1, 1))[0]
    return kind(before, after)


def change_layers(draw, layers):
    if layers and draw.random() < 0.5:
        draw.choice(LAYER_CHANGES)(draw.choice(layers))


def sequential(draw, inputs):
    """An nn.Sequential from (..., inputs) to (..., 1), half of them of what runs fused."""
    usual = draw.random() < 0.5
    shared = draw.choice(SUPPORTED)
    modules, before = [], inputs
    for _ in range(draw.randint(1, 3)):
        after = draw.choice((1, 3, 8))
        modules.append(linear(draw, before, after))
        if not usual and draw.random() < 0.4:
            modules.append(draw.choice((nn.LayerNorm, nn.RMSNorm, Residual, Distances))(after))
        if usual or draw.random() < 0.9:
            modules.append((shared if usual else draw.choice((*SUPPORTED, *OTHERS)))())
        before = after
    if before > 1 and draw.random() < 0.3:
        square = linear(draw, before, before)
        modules += [square, shared(), square, shared()]
    head = nn.Sequential(*modules, nn.Linear(before, 1))
    if not usual and draw.random() < 0.2:
        head = nn.Sequential(nn.Sequential(*head[:-1]), head[-1])
    change_layers(draw, [module for module in modules if isinstance(module, nn.Linear)])
    if draw.random() < 0.2:
        draw.choice((louder_forward, louder_inputs, louder_gradients))(draw.choice([head, *head]))
    return head


def head(draw, context_features):
    """An nn.Sequential or a ScoreHead, in double precision, in evaluation mode."""
    if draw.random() < 0.6:
        found = sequential(draw, context_features + 1)
    else:
        kind = draw.choices((ScoreHead, LouderHead), (3, 1))[0]
        name = draw.choice(("silu", "softplus", "tanh", "gelu"))
        found = kind(context_features, draw.choice(((8,), (8, 3))), name, draw.choice((0, 2)))
        change_layers(draw, list(found.layers))
        if draw.random() < 0.2:
            draw.choice((louder_forward, louder_gradients))(draw.choice([found, *found.layers]))
    return found.double().eval()


def confined(draw, context_features):
    """A head with a density: the score of a Gaussian, whose mean the context moves, changed as others are."""
    away = torch.cat([0.3 * torch.randn(context_features), torch.ones(1)])
    if draw.random() < 0.5:
        found = nn.Sequential(nn.Linear(context_features + 1, 2), nn.ReLU(), nn.Linear(2, 1))
        layers = [found[0], found[2]]
    else:
        found = draw.choice((ScoreHead, LouderHead))(context_features, (2,), "relu", 0)
        layers = list(found.layers)
    with torch.no_grad():
        layers[0].weight.copy_(torch.stack([away, -away]))
        layers[1].weight.copy_(torch.tensor([[-1.0, 1.0]]))
        for layer in layers:
            layer.bias.zero_()
    if draw.random() < 0.5:
        draw.choice((louder_forward, louder_gradients))(draw.choice([found, *layers]))
    elif draw.random() < 0.3:
        nn.utils.weight_norm(draw.choice(layers))
    return found.double().eval()


def network(draw, features, context_features):
    """A MADE, a subclass of one, or one that is changed."""
    kind = draw.choices((MADE, LouderMADE, ShiftedMADE), (4, 1, 1))[0]
    order = draw.sample(range(features), features)
    residual, width = draw.random() < 0.3, draw.choice((4, 7))
    made = kind(
        *(features, (width,) * draw.randint(1, 3), context_features),
        order=order,
        activation="silu",
        residual=residual,
    )
    layers = [made.output, *made.layers]
    change = draw.choice(
        (
            None,
            louder_forward,
            parametrizations.weight_norm,
            nn.utils.weight_norm,
            lambda layer: setattr(layer, "activation", "tanh"),
            lambda layer: setattr(layer, "bias", None),
            lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
            lambda layer: layer.requires_grad_(False),
        )
    )
    if change is not None:
        change(draw.choice(layers))
    if draw.random() < 0.15:
        place = draw.randrange(len(made.layers))
        old = made.layers[place]
        new = LouderMasked(old.in_degrees, old.out_degrees, activation=old.activation)
        new.load_state_dict(old.state_dict(), strict=False)
        made.layers[place] = new
    return made.double().eval()


def drawn(seed):
    """Python's and torch's generators for a seed."""
    torch.manual_seed(seed)
    return random.Random(seed)
