"""What a trained model is worth: losses, likelihoods, anomaly scores, and how they are shown."""

from .anomaly import anomaly_scores, auroc
from .draws import draw_rate
from .likelihood import Grid, density_grid, likelihood, log_densities, statistics, trimmed_mean
from .losses import evaluate

__all__ = [
    "Grid",
    "anomaly_scores",
    "auroc",
    "density_grid",
    "draw_rate",
    "evaluate",
    "likelihood",
    "log_densities",
    "statistics",
    "trimmed_mean",
]
