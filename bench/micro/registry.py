"""The ops that can be measured, and the cases of a whole run."""

from collections.abc import Mapping

from ..harness.case import Case, Contender
from ..harness.runner import check_rows
from .conditional_density import LogDensity
from .conditional_density_draw import ExactDraw
from .csm_loss import CsmLoss
from .langevin import Langevin
from .langevin_draw import Draw
from .masked_linear import MaskedLayers
from .probability_flow import FlowOfRows
from .score_head import ScoresOfRows
from .training_step import TrainingStep

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


def right_contenders(op: str) -> dict[str, Contender]:
    """The contenders of an op at the sizes of ``--quick``, by case and label.

    Raises:
        ValueError: if a result is wrong; the sentence names it.
    """
    found = {}
    for case in dict.fromkeys(case.quick() for case in CASES[op]().variants()):
        contenders = case.contenders(["highest"], compiled=False)
        for name, row in check_rows(contenders, *case.reference()).items():
            label = f"{case.title()}: {row['label']}"
            if row["status"] != "ok":
                raise ValueError(f"{label} {row['status']}: {row['reason']}")
            found[label] = contenders[name]
    return found
