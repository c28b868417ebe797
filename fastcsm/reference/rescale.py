"""rescale: gradients times one number, in place."""

from collections.abc import Sequence

from torch import Tensor


def rescale(gradients: Sequence[Tensor], upstream: Tensor) -> None:
    """Multiply tensors of any floating dtypes by the scalar ``upstream``, which is not read on the host."""
    for gradient in gradients:
        gradient.mul_(upstream)
