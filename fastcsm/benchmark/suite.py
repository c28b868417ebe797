"""The ops that can be measured, and the cases of a whole run."""

from collections.abc import Mapping

from .base import Case
from .cases import CsmLoss, Langevin, ScoresOfRows
from .densities import ExactDraw, FlowOfRows, LogDensity
from .draw import Draw
from .masked import MaskedLayers
from .step import TrainingStep

__all__ = ["CASES", "suite"]

_KINDS: tuple[type[Case], ...] = (
    CsmLoss,
    ScoresOfRows,
    MaskedLayers,
    TrainingStep,
    Langevin,
    Draw,
    LogDensity,
    FlowOfRows,
    ExactDraw,
)
CASES: Mapping[str, type[Case]] = {kind.op: kind for kind in _KINDS}


def suite() -> list[Case]:
    """Every op, at sizes that together take two minutes on two cores."""
    return [case for kind in CASES.values() for case in kind().suite()]
