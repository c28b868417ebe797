"""How x is drawn. A model looks a sampler up here by the word that users write.

A sampler is (parts, drawing, data_range, **options) -> x (n, D), for the parts of a model, a
:class:`Drawing` and the interval that holds the data's values.
"""

from collections.abc import Callable

from torch import Tensor

from .autoregressive import RELATIVE_STEP, Drawing, flow, inverse_cdf, langevin

BY_NAME: dict[str, Callable[..., Tensor]] = {"flow": flow, "inverse_cdf": inverse_cdf, "langevin": langevin}

__all__ = ["BY_NAME", "RELATIVE_STEP", "Drawing"]
