"""Seeds: every random number of a run follows from the run's seed, a stream and an epoch or step."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

#: Streams: what a number is drawn for.
EPOCH, STEP, DROPOUT, HELD_OUT, EVALUATION = range(5)


def seed_of(seed: int, stream: int, number: int) -> int:
    """A 63-bit seed for one purpose and one epoch or step."""
    return int(np.random.SeedSequence([seed, stream, number]).generate_state(1, np.uint64)[0] >> 1)


def generator_of(seed: int, stream: int, number: int) -> torch.Generator:
    """A generator for one purpose and one epoch or step."""
    return torch.Generator().manual_seed(seed_of(seed, stream, number))


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """torch's default dtype and device as they are at first, float32 and "cpu", whatever a program set.

    What generators draw depends on both.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # A mode of this kind is asked at every call of torch.
        with torch.device("cpu") if device.type != "cpu" else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)
