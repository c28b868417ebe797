"""A whole training step, MADE forward, CSM loss, backward and Adam, by each way to the derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fastcsm.networks import heads
from fastcsm.nn import ARCSM, ScoreHead

from ..baselines import head
from ..baselines.masked import use_plain_layers
from ..harness.case import Case, Contender, Outputs, own_contenders, widths
from ..harness.measure import interleave, quartiles
from ..harness.runner import add_speedups, check_rows
from .masked_linear import made, made_operations
from .rows import WAYS, head_operations

Loss = Callable[[ARCSM, Tensor, Any], Tensor]
Adam = Callable[..., torch.optim.Optimizer]

MASKED = "mask * weight"


def _own_loss(model: ARCSM, x: Tensor, noise: Any) -> Tensor:
    return model.csm_loss(x, noise=noise)


def _plain_loss(rows_loss: Callable[..., Tensor]) -> Loss:
    """The loss of ARCSM.csm_loss around a baseline for the rows."""

    def loss(model: ARCSM, x: Tensor, noise: Any) -> Tensor:
        fused = heads.of(model.head)
        if isinstance(fused, heads.ByAutodiff):
            raise ValueError(f"model.head must be a head that can run fused: {fused.reason}")
        found = fused.layers
        alpha: float | Tensor = 1 / len(x)
        beta = alpha
        weights, frequencies = found.weights, found.frequencies
        frequencies = x.new_empty(0) if frequencies is None else frequencies
        if noise is None:
            context = model.context_net(x)
        else:
            z_hat, z, sigma = noise
            context = model.context_net(x + model.noise.sigma_min * z_hat)
            x = x + sigma * z
            if weights[0].shape[1] > context.shape[-1] + 1 + 2 * len(frequencies):  # it reads log sigma
                context = torch.cat([context, sigma.log().unsqueeze(-1)], -1)
                beta = sigma.flatten() / len(x)
        biases = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, found.biases, strict=True)]
        rows = context.flatten(0, -2), x.flatten(), weights, biases, frequencies, found.activation
        return rows_loss(head.Rows(*rows), alpha, beta)

    return loss


class _Trained:
    """A copy of a model and its optimiser; the checked and measured calls by a given loss."""

    def __init__(self, model: ARCSM, data: tuple[Tensor, Any], adam: Adam, plain: bool):
        self.model = copy.deepcopy(model)
        if plain:
            use_plain_layers(self.model)
        self.data = data
        self.adam = adam

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made when first used: torch.optim imports much."""
        return self.adam([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)

    def gradients(self, loss: Loss) -> Outputs:
        value = loss(self.model.eval(), *self.data)
        known = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        names, parameters = zip(*known, strict=True)
        grads = torch.autograd.grad(value, parameters)
        return {"loss": value.detach(), **dict(zip(names, grads, strict=True))}

    def step(self, loss: Loss) -> Outputs:
        self.optimizer.zero_grad(set_to_none=True)
        value = loss(self.model.train(), *self.data)
        value.backward()
        self.optimizer.step()
        return {"loss": value.detach()}


def _contenders(
    model: ARCSM,
    data: tuple[Tensor, Any],
    adam: Adam,
    ways: Sequence[str],
    precisions: Sequence[str],
) -> dict[str, Contender]:
    plain, own = (_Trained(model, data, adam, plain) for plain in (True, False))
    found = {}
    for way in ways:
        label, rows_loss = WAYS[way]
        loss = _plain_loss(rows_loss)
        compiled = way.startswith("compile")
        if compiled:
            loss = torch.compile(loss, dynamic=False)
        step, gradients = partial(plain.step, loss), partial(plain.gradients, loss)
        options: dict[str, Any] = {"check": gradients, "memory": gradients, "compiled": compiled}
        found[way] = Contender(label, step, **options)
        if way == "double_backward" and "medium" in precisions:
            found[f"{way}_medium"] = Contender(f'{label}, "medium"', step, "medium", **options)
    gradients = partial(own.gradients, _own_loss)
    step = partial(own.step, _own_loss)
    return found | own_contenders(step, precisions, check=gradients, memory=gradients)


def _truth(model: ARCSM, data: tuple[Tensor, Any]) -> Outputs:
    x, noise = data
    noise = None if noise is None else tuple(part.double() for part in noise)
    wide = _Trained(copy.deepcopy(model).double(), (x.double(), noise), torch.optim.Adam, plain=True)
    return wide.gradients(_plain_loss(head.csm_double_backward))


def _data(model: ARCSM, batch: int) -> tuple[Tensor, Any]:
    """Random data and the noise of one step, in the model's dtype and on its device."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = batch, cast(int, model.context_net.features)
    x = (torch.rand(shape, generator=generator) * 2 - 1).to(parameter)
    if model.noise is None:
        return x, None
    return x, tuple(part.to(parameter) for part in model.draw_noise(shape, generator=generator))


@dataclass(frozen=True)
class TrainingStep(Case):
    """A step of an AR-CSM without noise: MADE and head, CSM loss, backward, torch.optim.Adam, float32.

    All rows run the same Adam, PyTorch's default one or its fused one. Extra memory is that of the loss and
    its backward pass, without the optimiser.
    """

    features: int = 784
    hidden: tuple[int, ...] = (1024, 1024)
    context: int = 32
    head: tuple[int, ...] = (128, 128)
    batch: int = 64
    activation: str = "softplus"
    fused: bool = False

    op = "training_step"
    slow = ("compile_tangent",)
    quick_sizes: ClassVar = {"features": 64, "batch": 16, "hidden": 256}
    warm_sizes: ClassVar = {"features": 5, "batch": 4, "hidden": 8}

    def title(self) -> str:
        sizes = f"D = {self.features}, hidden {widths(self.hidden)}, C = {self.context}, B = {self.batch}"
        return f"{self.op}: {sizes}, head {widths(self.head)} {self.activation}, {self._adam_label()}"

    def variants(self) -> Sequence[TrainingStep]:
        return [replace(self, fused=False), replace(self, fused=True)]

    def suite(self) -> Sequence[TrainingStep]:
        return [replace(self, batch=16, hidden=(512, 512), fused=True)]

    def _adam(self) -> Adam:
        return partial(torch.optim.Adam, fused=True) if self.fused else torch.optim.Adam

    def _adam_label(self) -> str:
        return "Adam(fused=True)" if self.fused else "Adam"

    def operations(self) -> float:
        """The MADE's edges three times (the first layer's twice), and the head's loss on B * D rows."""
        rows = self.batch * self.features
        layers = made_operations(self._model().context_net, self.batch, True)
        return layers + rows * head_operations("loss", self.context, self.head)

    def bytes(self) -> float:
        """Data read; every parameter and Adam's two means of it read and written."""
        numbers = sum(parameter.numel() for parameter in self._model().parameters())
        return 4.0 * (self.batch * self.features + 6 * numbers)

    def matrix_shape(self) -> tuple[int, int, int]:
        return self.batch * self.features, max(self.head), max(self.head)

    def _model(self) -> ARCSM:
        net = made(self.features, self.hidden, self.context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return ARCSM(net, ScoreHead(self.context, self.head, self.activation, frequencies=0))

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        model = self._model()
        ways = ["double_backward", *(["compile_tangent"] if compiled else [])]
        found = _contenders(model, _data(model, self.batch), self._adam(), ways, precisions)
        return {
            name: entry if entry.own else replace(entry, label=f"{MASKED}, {entry.label}")
            for name, entry in found.items()
        }

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        model = self._model()
        return _truth(model, _data(model, self.batch)), {}

    def parts(self) -> Mapping[str, Callable[[], object]]:
        trained = _Trained(self._model(), (torch.empty(0), None), self._adam(), False)
        for parameter in trained.model.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        return {self._adam_label(): trained.optimizer.step}


def step_table(*, model: ARCSM, batch: int, rounds: int = 10, compiled: bool = True) -> dict[str, Any]:
    """The same training step by eager double backward, func.jvp, torch.compile and fastcsm, in one run.

    A step is the context network's forward pass, the CSM loss, the backward pass and AdamW, on random data
    and fixed noise, in the model's dtype, on its device and with the threads torch is set to. The baselines
    run a context network of plain masked layers. Loss and gradients of each are checked against float64
    before it is timed.

    Args:
        model: its context_net has the attribute ``features``; it is copied, never changed.
        batch: samples in a step.
        rounds: interleaved rounds.
        compiled: whether torch.compile is among the contenders (its first call takes a while).

    Returns:
        An entry of a document's "results" without limits, for :func:`..harness.report.format_table`.

    Raises:
        ValueError: if batch or rounds is below 1, or the head cannot run fused.
    """
    for name, number in (("batch", batch), ("rounds", rounds)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    data = _data(model, batch)
    ways = ["double_backward", "jvp", "tangent", *(["compile_tangent"] if compiled else [])]
    contenders = _contenders(model, data, torch.optim.AdamW, ways, ["highest"])
    rows = check_rows(contenders, _truth(model, data), {})
    timed = {name: contenders[name].call for name, row in rows.items() if row["status"] == "ok"}
    seconds = interleave(timed, rounds)
    for name in timed:
        rows[name]["seconds"] = quartiles(seconds[name])
    add_speedups(rows)
    features = data[0].shape[1]
    return {
        "op": "training_step",
        "title": f"training step: batch {batch}, D = {features}, {torch.get_num_threads()} threads",
        "config": {"batch": batch, "features": features},
        "rounds": rounds,
        "rows": list(rows.values()),
    }
