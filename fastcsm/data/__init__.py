"""Data sets, and the transforms between raw values and model space."""

from .dataset import Dataset, Transform
from .load import load, names

__all__ = ["Dataset", "Transform", "load", "names"]
