"""Training from the first step to the last, so that a run can stop at any moment and resume.

A run is a folder: ``checkpoint.safetensors``, ``config.json`` and ``log.csv``.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..backends.precision import matmul_precision
from ..data import Dataset
from ..progress import Bar
from . import checkpoint, folder
from .config import RunConfig
from .distributed import Group
from .folder import RunLog, read_log
from .seeds import own_defaults
from .trainer import Trainer


class Interrupted(Exception):
    """Training stopped by a signal, after its checkpoint was written.

    Attributes:
        code: exit code a command line should end with, 128 + the signal's number.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, checkpoint saved")
        self.code = 128 + number


@own_defaults()
def train(
    config: RunConfig,
    data: Dataset,
    run: str | Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Train a model into a run folder, or go on with the one that is there.

    With ``resume`` the result is bit-identical to that of a run never stopped, on the same machine and number
    of threads and without ``max_minutes``. torch's global generator is left as it was.

    Args:
        config: hyper-parameters; on resume, those of the run, possibly with another budget.
        data: as loaded by :func:`fastcsm.data.load`.
        run: folder to create; an existing one that is not empty is refused without ``resume``.
        device: where to train.
        resume: go on from the checkpoint in ``run``.
        quiet: show no progress.
        clock: seconds that ``max_minutes`` counts; ``time.process_time`` on a machine that is shared.

    Returns:
        Summary: run, steps, seconds, parameters, loss, held_out and best_held_out (per dimension, or None),
        best_step.

    Raises:
        TrainingError: the folder exists, is used by another process, or the loss is no longer finite.
        CheckpointError: on resume, as :func:`fastcsm.training.checkpoint.read`.
        Interrupted: SIGINT or SIGTERM came; the checkpoint was saved.
    """
    run, device = Path(run), torch.device(device)
    devices = [device] if device.type == "cuda" else []
    group = Group(device, quiet)
    try:
        with matmul_precision(config.matmul_precision), torch.random.fork_rng(devices=devices):
            with Bar("preparing", quiet=quiet):
                saved = checkpoint.read(run) if resume else None
                trainer = Trainer(config, data, device, saved, group)
                if group.rank == 0 and not resume:
                    trainer.evaluate(rows=1)  # a model that cannot run fails here, with nothing on disk yet
                    folder.create(run, config, trainer.save)
            if group.rank == 0:
                with folder.lock(run):
                    if resume:
                        folder.write_config(run, config)
                    return _loop(trainer, run, quiet, clock)
            group.barrier()
            return _loop(trainer, None, True, clock)
    finally:
        group.close()


class _Stop(BaseException):
    """A signal came where nothing had changed yet."""


class _Signals:
    """SIGINT and SIGTERM while a ``with`` block runs: the first is taken note of, a second acts as usual."""

    def __init__(self) -> None:
        self._caught: list[int] = []
        self._before: dict[int, Any] = {}
        self._heard = False

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (int(signal.SIGINT), int(signal.SIGTERM)):
                # None where it was not set from Python
                self._before[number] = signal.signal(number, self._catch) or signal.SIG_DFL
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: Any) -> None:
        self._caught.append(number)
        signal.signal(number, self._before[number])
        if self._heard:
            raise _Stop

    def number(self) -> int:
        """The signal that came, or 0."""
        return max(self._caught, default=0)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside the block a signal ends it at once, with :class:`_Stop`."""
        self._heard = True
        try:
            if self._caught:
                raise _Stop
            yield
        finally:
            self._heard = False


def _loop(trainer: Trainer, run: Path | None, quiet: bool, clock: Callable[[], float]) -> dict[str, Any]:
    """Train to the end of the budget. ``run`` is None on processes that only compute."""
    config, group = trainer.config, trainer.group
    log = RunLog(run / "log.csv", trainer.step) if run else None
    if run:
        group.barrier()
    started, last_saved = clock() - trainer.elapsed, time.monotonic()
    row: dict[str, Any] | None = None
    note = ""
    try:
        with _Signals() as signals, Bar("training", quiet=quiet or run is None) as bar:
            if group.size == 1:  # several stop together, between steps
                trainer.interruptible = signals.heard
            while trainer.unfinished or not trainer.done():
                try:
                    if not trainer.unfinished:
                        trainer.advance()
                    elapsed, stop = group.sum([clock() - started, signals.number()])
                    trainer.elapsed = elapsed / group.size
                    trainer.finish()
                except _Stop:
                    stop = 1.0
                else:
                    if trainer.step % config.log_every == 0 or trainer.phase_is_over():
                        row = trainer.log_row()
                        if log:
                            log.add(row)
                        held_out = "" if row["held_out"] is None else f", held out {row['held_out']:.4f}"
                        note = f"loss {row['loss']:.4f}{held_out}"
                done = trainer.done() and not trainer.unfinished
                bar.to(trainer.step, trainer.total_steps + config.finetune_steps, note)
                now = time.monotonic()
                if run and (done or stop or now - last_saved >= config.checkpoint_seconds):
                    log.sync()
                    trainer.save(run)
                    last_saved = now
                if stop and not done:
                    raise Interrupted(signals.number() or int(signal.SIGINT), trainer.step)
    finally:
        if log:
            log.close()
    rows = [row] if row else read_log(run / "log.csv")[-1:] if run else []
    return {
        "run": str(run) if run else None,
        "steps": trainer.step,
        "seconds": round(trainer.elapsed, 1),
        "parameters": sum(p.numel() for p in trainer.parameters()),
        "loss": rows[0]["loss"] if rows else None,
        "held_out": rows[0]["held_out"] if rows else None,
        "best_held_out": trainer.best.state()["loss"],
        "best_step": trainer.best.step,
    }
