"""Seeds: every random number of a run follows from the run's seed, a stream and an epoch or step."""

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
