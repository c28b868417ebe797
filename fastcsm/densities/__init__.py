"""What p(x) is: normalised densities of score models."""

from .conditional import METHODS, Accuracy, Conditionals, LogDensity

__all__ = ["METHODS", "Accuracy", "Conditionals", "LogDensity"]
