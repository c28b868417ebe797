"""Data sets, and the transforms between raw values and model space."""

from .dataset import Dataset
from .load import load, names
from .transform import Transform

__all__ = ["Dataset", "Transform", "load", "names"]
