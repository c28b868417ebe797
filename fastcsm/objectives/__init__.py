"""What is minimised. A model looks its objective up here by the word that users write.

An objective is (head, context, x_noisy, noise, sigma, **options) -> loss, for x_noisy = x + sigma * noise.
"""

from collections.abc import Callable

from torch import Tensor

from .conditional import csm_loss, csm_loss_of_noisy, denoising_loss, moments_loss

BY_NAME: dict[str, Callable[..., Tensor]] = {"csm": csm_loss_of_noisy, "denoising": denoising_loss}

__all__ = ["BY_NAME", "csm_loss", "denoising_loss", "moments_loss"]
