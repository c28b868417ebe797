import signal

import pytest

from fastcsm.training.trainer import Trainer


@pytest.fixture
def stop_at(monkeypatch):
    """Sends SIGTERM after so many steps of all training from then on."""

    def after(steps):
        advance, count = Trainer.advance, [0]

        def stop(trainer):
            advance(trainer)
            count[0] += 1
            if count[0] == steps:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Trainer, "advance", stop)

    return after
