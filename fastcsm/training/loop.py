"""Training from the first step to the last, so that a run can stop at any moment and resume.

A run is a folder: ``checkpoint.safetensors``, ``config.json`` and ``log.csv``.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
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
from .trainer import Trainer


class Interrupted(Exception):
    """Training stopped by a signal, after its checkpoint was written.

    Attributes:
        code: exit code a command line should end with, 128 + the signal's number.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, checkpoint saved")
        self.code = 128 + number


def train(
    config: RunConfig,
    data: Dataset,
    run: str | Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    quiet: bool = False,
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
    group = Group(device)
    try:
        with matmul_precision(config.matmul_precision), torch.random.fork_rng(devices=devices):
            saved = checkpoint.read(run) if resume else None
            trainer = Trainer(config, data, device, saved, group)
            if group.rank == 0:
                if not resume:
                    trainer.evaluate(rows=1)  # a model that cannot run fails here, with nothing on disk yet
                    folder.create(run, config, trainer.save)
                with folder.lock(run):
                    if resume:
                        folder.write_config(run, config)
                    return _loop(trainer, run, quiet)
            group.barrier()
            return _loop(trainer, None, True)
    finally:
        group.close()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM while the block runs; a second one acts as usual."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def catch(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loop(trainer: Trainer, run: Path | None, quiet: bool) -> dict[str, Any]:
    """Train to the end of the budget. ``run`` is None on processes that only compute."""
    config, group = trainer.config, trainer.group
    log = RunLog(run / "log.csv", trainer.step) if run else None
    if run:
        group.barrier()
    bar = Bar("training", quiet=quiet or run is None)
    started, last_saved = time.monotonic() - trainer.elapsed, time.monotonic()
    row: dict[str, Any] | None = None
    try:
        with _signals() as caught:
            while not trainer.done():
                if trainer.finetuned_from is None and trainer.phase_is_over():
                    trainer.start_finetuning()
                trainer.advance()
                clock, stop = group.sum([time.monotonic() - started, max(caught, default=0)])
                trainer.elapsed = clock / group.size
                over = trainer.phase_is_over()
                if trainer.step % config.eval_every == 0 or over:
                    trainer.watch()
                done, over = trainer.done(), trainer.phase_is_over()
                if trainer.step % config.log_every == 0 or over:
                    row = trainer.log_row()
                    if log:
                        log.add(row)
                    held_out = "" if row["held_out"] is None else f", held out {row['held_out']:.4f}"
                    total = trainer.total_steps + config.finetune_steps
                    bar.to(trainer.step, total, f"loss {row['loss']:.4f}{held_out}")
                now = time.monotonic()
                if run and (done or stop or now - last_saved >= config.checkpoint_seconds):
                    log.sync()
                    trainer.save(run)
                    last_saved = now
                if stop and not done:
                    raise Interrupted(max(caught, default=int(signal.SIGINT)), trainer.step)
    finally:
        bar.close()
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
