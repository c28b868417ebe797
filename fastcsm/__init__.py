"""Custom kernels for composite score matching and autoregressive score models in PyTorch."""

from . import functional, nn
from .backends import backend, info
from .losses import csm_loss, denoising_loss, score_and_derivative

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "backend",
    "csm_loss",
    "denoising_loss",
    "functional",
    "info",
    "nn",
    "score_and_derivative",
]
