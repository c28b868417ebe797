"""Custom kernels for composite score matching and autoregressive score models in PyTorch."""

from . import functional, nn
from .backends import backend, info
from .backends.info import __version__
from .networks.heads import score_and_derivative
from .objectives import csm_loss, denoising_loss

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
