"""Training an AR-CSM: one loop whose every random number follows from (seed, step), so that a run can resume.

A run is a folder: ``checkpoint.safetensors``, ``config.json``, ``log.csv``, and ``loss.png`` at the end.
Losses in the log are per dimension; the held-out loss is that of the averaged weights, always under the same
noise. Fine-tuning by maximum likelihood, where it is asked for, follows the budget and logs -log q instead.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint, plotting, runs
from .checkpoint import Checkpoint
from .config import PRESETS, Config, build_model
from .data import Dataset
from .distributed import Group, slice_dropout
from .held_out import Best
from .nn import ARCSM
from .nn.arcsm import Noise
from .progress import Bar
from .runs import RunLog, TrainingError, read_log

__all__ = ["PRESETS", "Config", "Interrupted", "Trainer", "TrainingError", "read_log", "train"]

_HELD_OUT_ROWS = 1024
_EPOCH, _STEP, _DROPOUT, _HELD_OUT = range(4)


class Interrupted(Exception):
    """Training stopped by a signal, after its checkpoint was written.

    Attributes:
        code: exit code a command line should end with, 128 + the signal's number.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, checkpoint saved")
        self.code = 128 + number


def seed_of(seed: int, stream: int, number: int) -> int:
    """A 63-bit seed for one purpose and one epoch or step."""
    return int(np.random.SeedSequence([seed, stream, number]).generate_state(1, np.uint64)[0] >> 1)


def _generator(seed: int, stream: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, stream, number))


class Trainer:
    """State of one training run: model, averaged model, optimizer, step.

    Args:
        config: hyper-parameters.
        data: training and held-out rows.
        device: where to train.
        saved: checkpoint to go on from.
        group: the processes that train together.
    """

    def __init__(
        self, config: Config, data: Dataset, device: torch.device, saved: Checkpoint | None, group: Group
    ):
        self.config, self.data, self.device, self.group = config, data, device, group
        if config.batch_size % group.size:
            raise TrainingError(
                f"batch_size is {config.batch_size}, expected a multiple of the {group.size} processes"
            )
        self.fingerprint = data.fingerprint()
        self.step, self.elapsed, self.loss_sum, self.norm_sum, self.counted = 0, 0.0, 0.0, 0.0, 0
        self.held_out: float | None = None
        #: Step at which fine-tuning began, or None before.
        self.finetuned_from: int | None = None
        self.best = Best()
        self.model = build_model(config, data.features)
        average = copy.deepcopy(self.model)
        if saved is not None:
            if saved.fingerprint != self.fingerprint:
                raise TrainingError(f"data '{config.data}' is not what the run was trained on")
            state = saved.state
            self.step, self.elapsed, self.held_out = state["step"], state["elapsed"], state["held_out"]
            self.loss_sum, self.norm_sum, self.counted = (
                state["loss_sum"],
                state["norm_sum"],
                state["counted"],
            )
            self.finetuned_from = state.get("finetuned_from")
            self.best = Best.restore(state.get("best"), self._on_device(saved.under("best")))
            self.model = checkpoint.restore(saved, "model", config.data)
            average = checkpoint.restore(saved, "ema", config.data) if config.ema else average
        self.model.to(device)
        self.average = average.to(device).eval().requires_grad_(False) if config.ema else None
        if (config.patience or config.keep == "best") and not data.has_validation:
            raise TrainingError(
                f"validation is 0 with patience {config.patience}, keep '{config.keep}', expected above 0: "
                f"the held-out rows of '{config.data}' are its test rows"
            )
        if group.size > 1:
            slice_dropout(self.model.context_net, group)
        self.optimizer = self._optimizer(saved)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        rows = data.held_out("val", seed_of(config.seed, _HELD_OUT, 0), _HELD_OUT_ROWS)
        self._held_out_rows = rows

    def _on_device(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in weights.items()}

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.model.context_net.parameters(), *self.model.head.parameters()]

    def _optimizer(self, saved: Checkpoint | None) -> torch.optim.Optimizer:
        config = self.config
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(self.parameters(), lr=self.rate(), weight_decay=config.weight_decay, fused=True)
        if saved is not None:
            entries: dict[int, dict[str, Tensor]] = {}
            for name, value in saved.under("optimizer").items():
                number, key = name.split(".")
                entries.setdefault(int(number), {})[key] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
        return optimizer

    @property
    def total_steps(self) -> int:
        config = self.config
        return config.steps or math.ceil(config.epochs * len(self.data.train) / config.batch_size)

    def fraction(self) -> float:
        """How much of the budget is used, by steps or by time, whichever is more; then of the fine-tuning."""
        if self.finetuned_from is not None:
            return (self.step - self.finetuned_from) / max(self.config.finetune_steps, 1)
        used = self.step / self.total_steps
        if self.config.max_minutes is not None:
            used = max(used, self.elapsed / (60 * self.config.max_minutes))
        return used

    def phase_is_over(self) -> bool:
        """Whether the budget, or the fine-tuning, is used up or has lost patience."""
        return self.fraction() >= 1 or 0 < self.config.patience <= self.best.stale

    def done(self) -> bool:
        """Whether nothing is left to do."""
        last = self.finetuned_from is not None or not self.config.finetune_steps
        return last and self.phase_is_over()

    def start_finetuning(self) -> None:
        """From the weights the budget leaves, with a fresh optimizer."""
        self.finetuned_from = self.step
        self.model.load_state_dict(self.best.weights or self._averaged().state_dict())
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())
        self.best = Best()
        self.optimizer = self._optimizer(None)

    def _averaged(self) -> ARCSM:
        return self.model if self.average is None else self.average

    def rate(self) -> float:
        """Learning rate at this step; with stages the cosine runs over each stage."""
        config, tuning = self.config, self.finetuned_from is not None
        first = config.finetune_lr if tuning else config.lr
        if config.schedule == "constant":
            return first
        used = min(self.fraction(), 1.0)
        if self.model.staged and not tuning:
            used = min(used * config.levels - self.model.stage, 1.0)
        return config.final_lr + (first - config.final_lr) * 0.5 * (1 + math.cos(math.pi * used))

    def _advance_stages(self) -> None:
        if not self.model.staged or self.finetuned_from is not None:
            return
        wanted = min(int(self.fraction() * self.config.levels), self.config.levels - 1)
        while self.model.stage < wanted:
            self.model.advance_stage()
            if self.average is not None:
                self.average.advance_stage()

    def _indices(self) -> Tensor:
        """Row numbers of this step's batch: epochs are permutations, laid end to end."""
        size, rows = self.config.batch_size, len(self.data.train)
        first, parts = self.step * size, []
        while size:
            epoch, offset = divmod(first, rows)
            if self._order[0] != epoch:
                order = torch.randperm(rows, generator=_generator(self.config.seed, _EPOCH, epoch))
                self._order = (epoch, order)
            part = self._order[1][offset : offset + size]
            parts.append(part)
            first, size = first + len(part), size - len(part)
        return torch.cat(parts)

    def _to_device(self, value: Tensor) -> Tensor:
        return value.to(self.device, getattr(torch, self.config.dtype))

    def advance(self) -> None:
        """One optimizer step."""
        self._advance_stages()
        config, model = self.config, self.model
        generator = _generator(config.seed, _STEP, self.step)
        mine = self.group.slice(config.batch_size)
        x = self._to_device(self.data.batch(self._indices(), generator)[mine])
        noise = None
        if model.noise is not None:
            shape = (config.batch_size, self.data.features)
            z_hat, z, sigma = (self._to_device(v[mine]) for v in model.draw_noise(shape, generator))
            noise = (z_hat, z, sigma)
        torch.manual_seed(seed_of(config.seed, _DROPOUT, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(x, noise)
        loss.backward()
        parameters = self.parameters()
        self.group.average_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
        value, size = self.group.sum([loss.detach(), norm])
        if not math.isfinite(value) and self.finetuned_from is not None:
            raise TrainingError(
                f"at step {self.step} a conditional of the model has no density to fine-tune, expected one "
                "trained for longer or a smaller finetune_lr"
            )
        if not math.isfinite(value) or not math.isfinite(size):
            raise TrainingError(
                f"at step {self.step} the loss is {value / self.group.size} and the gradient norm "
                f"{size / self.group.size}, expected finite numbers: a smaller lr may help"
            )
        self.optimizer.step()
        self._average(self.step)
        self.step += 1
        self.loss_sum += value / self.group.size / self.data.features
        self.norm_sum += size / self.group.size
        self.counted += 1

    def _loss(self, x: Tensor, noise: Noise | None) -> Tensor:
        """The model's objective, or -log q of x + sigma_L z where it is fine-tuned."""
        if self.finetuned_from is None:
            return self.model.csm_loss(x, noise=noise)
        return -_noisy_log_prob(self.model, x, noise).mean()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.average is None:
            return
        step -= self.finetuned_from or 0
        weight = 1 - min(self.config.ema, (1 + step) / (10 + step))
        new: list[Tensor] = [*self.parameters()]
        old: list[Tensor] = [*self.average.context_net.parameters(), *self.average.head.parameters()]
        torch._foreach_lerp_(old, new, weight)

    @torch.no_grad()
    def evaluate(self, rows: int | None = None) -> float:
        """Held-out loss per dimension of the averaged weights, with dropout off and always the same noise.

        While fine-tuning it is -log q of noisy rows, per dimension.
        """
        model = self._averaged()
        was_training = model.training
        model.eval()
        generator = _generator(self.config.seed, _HELD_OUT, 1)
        total, x = 0.0, self._held_out_rows[:rows]
        for part in x.split(256):
            noise = None
            if model.noise is not None:
                z_hat, z, sigma = (self._to_device(v) for v in model.draw_noise(part.shape, generator))
                noise = (z_hat, z, sigma)
            part = self._to_device(part)
            if self.finetuned_from is None:
                total += float(model.csm_loss(part, noise=noise)) * len(part)
            else:
                total -= float(_noisy_log_prob(model, part, noise).sum())
        model.train(was_training)
        return total / x.numel()

    def log_row(self) -> dict[str, Any]:
        """A line of log.csv; the means start again."""
        config = self.config
        row = {
            "step": self.step,
            "epoch": round(self.step * config.batch_size / len(self.data.train), 4),
            "stage": self.model.stage + (self.finetuned_from is not None),
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": self.loss_sum / max(self.counted, 1),
            "grad_norm": self.norm_sum / max(self.counted, 1),
            "held_out": self.held_out,
            "seconds": round(self.elapsed, 3),
        }
        self.loss_sum, self.norm_sum, self.counted, self.held_out = 0.0, 0.0, 0, None
        return row

    def watch(self) -> None:
        """Evaluate on the held-out rows and remember the best."""
        self.held_out = self.evaluate()
        self.best.update(self.held_out, self.step, self._averaged(), self.config.keep == "best")

    def save(self, run: Path) -> None:
        """Write the run's checkpoint."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.weights.items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in entry.items()}
        state = {
            "step": self.step,
            "stage": self.model.stage,
            "elapsed": self.elapsed,
            "loss_sum": self.loss_sum,
            "norm_sum": self.norm_sum,
            "counted": self.counted,
            "held_out": self.held_out,
            "best": self.best.state(),
            "finetuned_from": self.finetuned_from,
        }
        transform = self.data.transform
        checkpoint.save(run, Checkpoint(self.config, transform, self.fingerprint, state, tensors))


def train(
    config: Config,
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
        CheckpointError: on resume, as :func:`fastcsm.checkpoint.read`.
        Interrupted: SIGINT or SIGTERM came; the checkpoint was saved.
    """
    run, device = Path(run), torch.device(device)
    precision = torch.get_float32_matmul_precision()
    devices = [device] if device.type == "cuda" else []
    group = Group(device)
    try:
        torch.set_float32_matmul_precision(config.matmul_precision)
        with torch.random.fork_rng(devices=devices):
            saved = checkpoint.read(run) if resume else None
            trainer = Trainer(config, data, device, saved, group)
            if group.rank == 0:
                if not resume:
                    trainer.evaluate(rows=1)  # a model that cannot run fails here, with nothing on disk yet
                    runs.create(run, config, trainer.save)
                with runs.lock(run):
                    if resume:
                        runs.write_config(run, config)
                    return _loop(trainer, run, quiet)
            group.barrier()
            return _loop(trainer, None, True)
    finally:
        torch.set_float32_matmul_precision(precision)
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
    first = trainer.step
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
                    bar.to(trainer.step, trainer.total_steps + config.finetune_steps, _note(row))
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
    if run and (trainer.step > first or not (run / "loss.png").exists()) and plotting.available():
        plotting.loss_curve(read_log(run / "log.csv"), run / "loss.png")
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


def _noisy_log_prob(model: ARCSM, x: Tensor, noise: Noise | None) -> Tensor:
    """log q (B,), by quadrature, of x (B, D) with the noise of the context network, sigma_L z_hat."""
    if model.noise is not None and noise is not None:
        x = x + model.noise.sigma_min * noise[0]
    return model.log_prob(x, method="quadrature")


def _note(row: dict[str, Any]) -> str:
    held_out = "" if row["held_out"] is None else f", held out {row['held_out']:.4f}"
    return f"loss {row['loss']:.4f}{held_out}"
