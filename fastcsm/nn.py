"""Modules: context networks, score heads, and the models made of them."""

from .models.arcsm import ARCSM, NoiseSchedule
from .models.average import Average
from .models.mixture_made import MixtureMADE
from .networks.made import MADE
from .networks.masked_linear import MaskedLinear
from .networks.score_head import ScoreHead

__all__ = ["ARCSM", "MADE", "Average", "MaskedLinear", "MixtureMADE", "NoiseSchedule", "ScoreHead"]
