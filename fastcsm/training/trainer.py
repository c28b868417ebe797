"""The state of a training run, and one step of it: every random number follows from (seed, step).

Losses are per dimension; the held-out loss is that of the averaged weights, always under the same noise.
Fine-tuning by maximum likelihood, where it is asked for, follows the budget and has -log q for a loss.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset
from ..models.model import Model
from . import checkpoint
from .best import Best
from .checkpoint import Checkpoint
from .config import RunConfig
from .distributed import Group, slice_dropout
from .folder import TrainingError
from .seeds import DROPOUT, EPOCH, HELD_OUT, STEP, generator_of, seed_of

_HELD_OUT_ROWS = 1024
#: Attributes of a trainer that a checkpoint holds as they are.
_STATE = ("step", "elapsed", "loss_sum", "norm_sum", "counted", "held_out")


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
        self, config: RunConfig, data: Dataset, device: torch.device, saved: Checkpoint | None, group: Group
    ):
        self.config, self.data, self.device, self.group = config, data, device, group
        if config.batch_size % group.size:
            raise TrainingError(
                f"batch_size is {config.batch_size}, expected a multiple of the {group.size} processes"
            )
        self.fingerprint, self._val_fingerprint = data.fingerprint(), data.fingerprint("val")
        self.step, self.elapsed, self.loss_sum, self.norm_sum, self.counted = 0, 0.0, 0.0, 0.0, 0
        self.held_out: float | None = None
        #: Step at which fine-tuning began, or None before.
        self.finetuned_from: int | None = None
        #: Whether the last step still has to be watched.
        self.unfinished = False
        #: The block in which nothing has changed yet, so that it may be left and done again.
        self.interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        self.best = Best()
        self.model = config.build(data.features)
        self.model.data_range = data.transform.data_range
        average = copy.deepcopy(self.model)
        if saved is not None:
            self._check(saved)
            self.data = dataclasses.replace(data, transform=saved.transform)
            for name in _STATE:
                setattr(self, name, saved.state[name])
            self.finetuned_from = saved.state.get("finetuned_from")
            self.unfinished = saved.state.get("unfinished", False)
            weights = {name: value.to(device) for name, value in saved.under("best").items()}
            self.best = Best.restore(saved.state.get("best"), weights)
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
            slice_dropout(self.model, group)
        self.optimizer = self._optimizer(saved)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        rows = self.data.held_out("val", seed_of(config.seed, HELD_OUT, 0), _HELD_OUT_ROWS)
        self._held_out_rows = rows

    def _check(self, saved: Checkpoint) -> None:
        """Raise unless the data are those of the run, whatever they are called."""
        same = self.data.is_of(saved.fingerprint)
        if not same or saved.state.get("val_fingerprint") not in (None, self._val_fingerprint):
            kind = "held-out" if same else "training"
            raise TrainingError(
                f"data '{self.config.data}' is not what the run was trained on, expected the same {kind} rows"
            )

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

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

    def _averaged(self) -> Model:
        return self.model if self.average is None else self.average

    def rate(self) -> float:
        """Learning rate at this step: it rises over the first ones, and a cosine runs over each stage."""
        config, tuning = self.config, self.finetuned_from is not None
        rate = config.finetune_lr if tuning else config.lr
        if config.schedule == "cosine":
            used = min(self.fraction(), 1.0)
            used = used if tuning else self.model.stage_fraction(used)
            rate = config.final_lr + (rate - config.final_lr) * 0.5 * (1 + math.cos(math.pi * used))
        return rate * min(1.0, (self.step + 1) / max(config.warmup_steps, 1))

    def _indices(self) -> Tensor:
        """Row numbers of this step's batch: epochs are permutations, laid end to end."""
        size, rows = self.config.batch_size, len(self.data.train)
        first, parts = self.step * size, []
        while size:
            epoch, offset = divmod(first, rows)
            if self._order[0] != epoch:
                order = torch.randperm(rows, generator=generator_of(self.config.seed, EPOCH, epoch))
                self._order = (epoch, order)
            part = self._order[1][offset : offset + size]
            parts.append(part)
            first, size = first + len(part), size - len(part)
        return torch.cat(parts)

    def _to_device(self, value: Tensor) -> Tensor:
        return value.to(self.device, getattr(torch, self.config.dtype))

    def advance(self) -> None:
        """One optimizer step, which :meth:`finish` has to follow."""
        if self.finetuned_from is None and self.phase_is_over():
            self.start_finetuning()
        config, model = self.config, self.model
        if self.finetuned_from is None:
            for each in (model, self._averaged()):
                each.go_on(self.fraction())
        generator = generator_of(config.seed, STEP, self.step)
        mine = self.group.slice(config.batch_size)
        x = self._to_device(self.data.batch(self._indices(), generator)[mine])
        shape = (config.batch_size, self.data.features)
        noise = tuple(self._to_device(value[mine]) for value in model.draw_noise(shape, generator))
        torch.manual_seed(seed_of(config.seed, DROPOUT, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        model.train()
        self.optimizer.zero_grad(set_to_none=True)
        # The model's objective, or -log q of noisy rows where it is fine-tuned.
        minimised = model.loss if self.finetuned_from is None else model.likelihood_loss
        with self.interruptible():
            loss = minimised(x, noise=noise)
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
        self.unfinished = True

    def finish(self) -> None:
        """What belongs to a step beside its weights: the held-out evaluation, where it is due."""
        if self.step % self.config.eval_every == 0 or self.phase_is_over():
            with self.interruptible():
                self.watch()
        self.unfinished = False

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.average is None:
            return
        step -= self.finetuned_from or 0
        weight = 1 - min(self.config.ema, (1 + step) / (10 + step))
        both = zip(self.average.parameters(), self.model.parameters(), strict=True)
        trained = [(old, new) for old, new in both if new.requires_grad]
        torch._foreach_lerp_([old for old, _ in trained], [new for _, new in trained], weight)

    @torch.no_grad()
    def evaluate(self, rows: int | None = None) -> float:
        """Held-out loss per dimension of the averaged weights, with dropout off and always the same noise.

        While fine-tuning it is -log q of noisy rows, per dimension.
        """
        model, x = self._averaged(), self._held_out_rows[:rows]
        generator, total = generator_of(self.config.seed, HELD_OUT, 1), 0.0
        with model.evaluating():
            for part in x.split(256):
                noise = tuple(self._to_device(value) for value in model.draw_noise(part.shape, generator))
                part = self._to_device(part)
                if self.finetuned_from is None:
                    total += float(model.held_out_loss(part, noise=noise)) * len(part)
                else:
                    total += float(model.likelihood_loss(part, noise, "none").sum())
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
        state = {name: getattr(self, name) for name in _STATE}
        state |= {"stage": self.model.stage, "best": self.best.state(), "finetuned_from": self.finetuned_from}
        state |= {"unfinished": self.unfinished, "val_fingerprint": self._val_fingerprint}
        transform = self.data.transform
        checkpoint.save(run, Checkpoint(self.config, transform, self.fingerprint, state, tensors))
