"""Tuning: the candidates of ``configurations.py`` timed for the calls of one program."""

from collections.abc import Callable
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from .configurations import Key, choices
from .launch import DoesNotFit

Call = Callable[[], Any]


def tune(call: Call, *, rounds: int = 5, timer: Callable[[Call], float] | None = None) -> dict[Key, Any]:
    """Time the candidates of every kernel that ``call`` launches; the fastest are used from here on.

    ``call`` is the work as it is done later, at its sizes: ``tune(lambda: model.csm_loss(x).backward())``.
    One choice after the other is made, by the time of the whole call, for the rest of the process: results
    before and after may differ by rounding. Call it before graphs are captured, as a graph keeps the kernels
    it was captured with, and while no other thread runs kernels.

    Args:
        call: takes no arguments; is run some 10 times for each candidate.
        rounds: calls that are timed for each candidate; their median counts.
        timer: the time of a call, by default its seconds on the current device.

    Returns:
        The chosen candidate of each choice.

    Raises:
        RuntimeError: if the current stream is being captured in a CUDA graph.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tune must be called before a CUDA graph is captured, not during the capture")
    found: dict[Key, tuple[Any, ...]] = {}
    choices.asked = found
    try:
        call()
    finally:
        choices.asked = None
    return {
        key: _fastest(key, candidates, timer or _seconds(rounds), call) for key, candidates in found.items()
    }


def _fastest(key: Key, candidates: tuple[Any, ...], timer: Callable[[Call], float], call: Call) -> Any:
    """Takes the candidate of least time; those that do not fit the device are passed over."""
    before, times = choices.best.get(key), {}
    try:
        for candidate in candidates:
            choices.best[key] = candidate
            try:
                times[candidate] = timer(call)
            except (OutOfResources, DoesNotFit):
                continue
        before = min(times, key=times.__getitem__, default=before)
    finally:
        if before is None:
            del choices.best[key]
        else:
            choices.best[key] = before
    return before or candidates[0]


def _seconds(rounds: int) -> Callable[[Call], float]:
    """A timer by events on the current stream."""

    def median(call: Call) -> float:
        for _ in range(3):
            call()
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return sorted(times)[rounds // 2]

    return median
