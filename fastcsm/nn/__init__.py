"""Modules: the masked context network, the score head, and the autoregressive model made of the two."""

from .arcsm import ARCSM
from .made import MADE, MaskedLinear
from .noise import NoiseSchedule
from .score_head import ScoreHead

__all__ = ["ARCSM", "MADE", "MaskedLinear", "NoiseSchedule", "ScoreHead"]
