"""Measurements: a speed is a ratio to named baselines of one process, and a share of the machine's limit."""

from .base import Case
from .cases import CsmLoss, Langevin, ScoresOfRows
from .command import main
from .compare import compare
from .densities import ExactDraw, FlowOfRows, LogDensity
from .draw import Draw
from .masked import MaskedLayers
from .measure import Probe, extra_memory, interleave, machine_slug, quartiles
from .registry import CASES, right_contenders, suite
from .report import format_header, format_table, readme_block, update_readme
from .runner import document, run_case
from .step import TrainingStep, step_table

__all__ = [
    "CASES",
    "Case",
    "CsmLoss",
    "Draw",
    "ExactDraw",
    "FlowOfRows",
    "Langevin",
    "LogDensity",
    "MaskedLayers",
    "Probe",
    "ScoresOfRows",
    "TrainingStep",
    "compare",
    "document",
    "extra_memory",
    "format_header",
    "format_table",
    "interleave",
    "machine_slug",
    "main",
    "quartiles",
    "readme_block",
    "right_contenders",
    "run_case",
    "step_table",
    "suite",
    "update_readme",
]
