"""Models to compare an AR-CSM with, built from the same layers."""

from .mixture_made import MixtureMADE

__all__ = ["MixtureMADE"]
