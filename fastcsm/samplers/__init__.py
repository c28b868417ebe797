"""How x is drawn. A model looks a sampler up here by the word that users write.

A sampler is (parts, drawing, data_range, **options) -> x (n, D), in the model's dtype and on its device, for
the parts of a trained model in evaluation mode, in the order of their levels, a :class:`Drawing`, and the
interval that holds the data's values. It raises ValueError where a size is out of range.
"""

from collections.abc import Callable

from torch import Tensor

from .autoregressive import RELATIVE_STEP, Drawing, flow, inverse_cdf, langevin

BY_NAME: dict[str, Callable[..., Tensor]] = {"flow": flow, "inverse_cdf": inverse_cdf, "langevin": langevin}

__all__ = ["BY_NAME", "RELATIVE_STEP", "Drawing"]
