"""How fast a model draws."""

from __future__ import annotations

import time
from typing import Any

from ..models.model import Model

#: Draws are doubled twice from the first number until they take this long, or are as many as the last.
_SECONDS, _FIRST, _LAST = 0.2, 16, 4096


def draw_rate(model: Model, method: str | None = None) -> dict[str, Any] | None:
    """Draws per second of a model, by its best method unless another is given; None if it draws none.

    The first call, which may compile, is not counted; later ones draw more samples together while they are
    fast, and the last is timed: from 16 samples, and at most 4096.

    Returns:
        Dictionary: ``method``, ``samples``, ``seconds``, and ``per_second``, their ratio.
    """
    if not model.sample_methods:
        return None
    method, n, seconds = method or model.sample_methods[0], _FIRST, 0.0
    model.sample(n, method)
    while True:
        started = time.perf_counter()
        model.sample(n, method).isfinite().all().item()  # a device has then done its work
        seconds = time.perf_counter() - started
        if seconds >= _SECONDS or n >= _LAST:
            return {"method": method, "samples": n, "seconds": seconds, "per_second": n / seconds}
        n *= 4
