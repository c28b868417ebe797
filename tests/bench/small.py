"""Small cases, one of every kind, and a document of results."""

import json
from dataclasses import dataclass

from fastcsm.bench.harness.case import Contender
from fastcsm.bench.harness.runner import add_speedups, document, run_case
from fastcsm.bench.micro.registry import (
    CsmLoss,
    Draw,
    ExactDraw,
    FlowOfRows,
    Langevin,
    LogDensity,
    MaskedLayers,
    ScoresOfRows,
    TrainingStep,
)

SMALL = CsmLoss(rows=97, context=3, hidden=(7, 5))
ROWS = [
    SMALL,
    ScoresOfRows(rows=33, context=3, hidden=(7, 5)),
    ScoresOfRows(rows=33, context=3, hidden=(7, 5), backward=True),
    Langevin(rows=13, context=3, hidden=(7, 5), levels=3, steps=4),
]
MODELS = [
    MaskedLayers(features=7, hidden=(9, 11), context=3, batch=5),
    MaskedLayers(features=7, hidden=(9, 11), context=3, batch=5, backward=True),
    TrainingStep(features=7, hidden=(9, 11), context=3, head=(6, 5), batch=4),
    LogDensity(rows=21, context=5),
    FlowOfRows(rows=21, context=5),
    ExactDraw(features=6, hidden=(9, 9), context=3, head=(6, 6), samples=5, levels=3, steps=2, measured=5),
    Draw(features=7, hidden=(9, 9), context=3, head=(6, 6), samples=5, levels=3, steps=2, measured=5),
    Draw(features=7, hidden=(9, 9), context=3, head=(6, 6), samples=5, levels=3, steps=2, sets=3),
]


@dataclass(frozen=True)
class Spoiled(CsmLoss):
    """csm_loss with contenders that are wrong in different ways beside the right ones."""

    def contenders(self, precisions, compiled):
        found = super().contenders(precisions, compiled)
        right = found["fastcsm"].call

        def scaled():
            outputs = right()
            return {**outputs, "grad_context": outputs["grad_context"] * 1.001}

        def poisoned():
            outputs = right()
            return {**outputs, "loss": outputs["loss"] * float("nan")}

        def missing():
            return {"loss": right()["loss"]}

        def broken():
            raise RuntimeError("no such thing. Really.\nmore")

        wrong = {"scaled": scaled, "poisoned": poisoned, "missing": missing, "broken": broken}
        return found | {name: Contender(name, call) for name, call in wrong.items()}


def measured_document():
    result = run_case(SMALL, precisions=["highest"], rounds=2, compiled=False, memory=None)
    return document([result], rounds=2)


def altered(measured, name, factor, spread=0.0):
    """The document with the times of one row, or of all, multiplied."""
    measured = json.loads(json.dumps(measured))
    for result in measured["results"]:
        for row in result["rows"]:
            if name in (row["name"], "all"):
                median = row["seconds"]["median"] * factor
                quarters = {"q1": median * (1 - spread), "median": median, "q3": median * (1 + spread)}
                row["seconds"] = quarters
        add_speedups({row["name"]: row for row in result["rows"]})
    return measured
