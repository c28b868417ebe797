"""The functions a user calls on raw tensors. Arguments are checked once, by ``arguments``, and flattened.

A score head is given as nn.Linear-shaped weights and biases with one activation between the layers; its input
is [context, x, sin(w x), cos(w x)] for fixed frequencies w (possibly none). Everything here is differentiable
once, in reverse mode: a second derivative, forward mode and torch.func raise. For those call
``fastcsm.reference`` directly, which is plain PyTorch.

Under torch.autocast, score_head, csm_loss, linear_csm_loss and masked_linear take their tensors in autocast's
dtype, like torch.nn.functional.linear (losses are float32 nevertheless); langevin, conditional_density and
probability_flow take them in float32. Tensors of float64 are left alone.
"""

from ..reference.network import Head, Network
from ..reference.quadrature import Density, Interval
from .arguments import Stages
from .conditional_density import conditional_density, conditional_density_draw
from .csm_loss import csm_loss
from .draws import Draw
from .langevin import langevin, langevin_draw
from .linear_csm_loss import linear_csm_loss
from .masked_linear import masked_linear
from .probability_flow import Flow, probability_flow
from .score_head import score, score_head

__all__ = [
    "Density",
    "Draw",
    "Flow",
    "Head",
    "Interval",
    "Network",
    "Stages",
    "conditional_density",
    "conditional_density_draw",
    "csm_loss",
    "langevin",
    "langevin_draw",
    "linear_csm_loss",
    "masked_linear",
    "probability_flow",
    "score",
    "score_head",
]
