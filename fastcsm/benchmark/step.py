"""A whole training step, MADE forward, CSM loss, backward and AdamW, by each way to the derivative."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import activations, losses
from ..nn import ARCSM, MaskedLinear
from . import baselines
from .cases import Contender, Outputs
from .measure import interleave, quartiles
from .runner import check_rows

__all__ = ["step_table"]

Loss = Callable[[ARCSM, Tensor, Any], Tensor]


class _PlainMaskedLinear(nn.Module):
    """MaskedLinear as written without fastcsm: a stored mask times the weight."""

    mask: Tensor

    def __init__(self, layer: MaskedLinear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        mask = layer.in_degrees <= layer.out_degrees[:, None]
        self.register_buffer("mask", mask.to(layer.weight.dtype))
        self.activation = None if layer.activation is None else activations.get(layer.activation).f

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.mask, self.bias)
        return y if self.activation is None else self.activation(y)


def _plain(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, MaskedLinear):
            setattr(module, name, _PlainMaskedLinear(child))
        else:
            _plain(child)


def _own_loss(model: ARCSM, x: Tensor, noise: Any) -> Tensor:
    return model.csm_loss(x, noise=noise)


def _plain_loss(rows_loss: Callable[..., Tensor]) -> Loss:
    """The loss of ARCSM.csm_loss (objective "csm") around a baseline for the rows."""

    def loss(model: ARCSM, x: Tensor, noise: Any) -> Tensor:
        head = losses.head_parameters(model.head)
        if isinstance(head, str):
            raise ValueError(f"model.head must be a head that can run fused: {head}")
        alpha: float | Tensor = 1 / len(x)
        beta = alpha
        if noise is None:
            context = model.context_net(x)
        else:
            z_hat, z, sigma = noise
            context = model.context_net(x + model.noise.sigma_min * z_hat)
            x = x + sigma * z
            if model.conditional:
                context = torch.cat([context, sigma.log().unsqueeze(-1)], -1)
                beta = sigma.flatten() / len(x)
        frequencies = x.new_empty(0) if head.frequencies is None else head.frequencies
        biases = [
            w.new_zeros(len(w)) if b is None else b for w, b in zip(head.weights, head.biases, strict=True)
        ]
        rows = (context.flatten(0, -2), x.flatten(), head.weights, biases, frequencies, head.activation)
        return rows_loss(*rows, alpha, beta)

    return loss


def _gradients(model: ARCSM, loss: Loss, x: Tensor, noise: Any) -> Outputs:
    value = loss(model, x, noise)
    names, parameters = zip(*((k, p) for k, p in model.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(value, parameters)
    return {"loss": value.detach(), **dict(zip(names, grads, strict=True))}


def _step(model: ARCSM, loss: Loss, x: Tensor, noise: Any) -> Callable[[], Outputs]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> Outputs:
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, x, noise)
        value.backward()
        optimizer.step()
        return {"loss": value.detach()}

    return run


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
        An entry of a document's "results" without matrix rate, for :func:`fastcsm.benchmark.format_table`.

    Raises:
        ValueError: if batch or rounds is below 1, or the head cannot run fused.
    """
    for name, number in (("batch", batch), ("rounds", rounds)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    features = cast(int, model.context_net.features)
    x = (torch.rand(batch, features, generator=generator) * 2 - 1).to(parameter)
    noise = None
    if model.noise is not None:
        drawn = model.draw_noise((batch, features), generator=generator)
        noise = tuple(part.to(parameter) for part in drawn)

    def clone(plain: bool) -> ARCSM:
        copied = copy.deepcopy(model).train()
        copied.objective = "csm"
        if plain:
            _plain(copied)
        return copied

    ways: dict[str, tuple[str, Loss, bool]] = {
        "double_backward": ("eager double backward", _plain_loss(baselines.csm_double_backward), False),
        "jvp": ("torch.func.jvp", _plain_loss(baselines.csm_jvp), False),
        "tangent": ("hand-written tangent, eager", _plain_loss(baselines.csm_tangent), False),
        "compile_tangent": ("torch.compile of the tangent", _plain_loss(baselines.csm_tangent), True),
        "fastcsm": ("fastcsm", _own_loss, False),
    }
    contenders, steps = {}, {}
    for name, (label, loss, compile_it) in ways.items():
        if compile_it and not compiled:
            continue
        chosen: Loss = torch.compile(loss, dynamic=False) if compile_it else loss
        fixed, trained = clone(plain=name != "fastcsm").eval(), clone(plain=name != "fastcsm")
        contenders[name] = Contender(
            label,
            call=partial(_gradients, fixed, chosen, x, noise),
            own=name == "fastcsm",
        )
        steps[name] = _step(trained, chosen, x, noise)
    truth = clone(plain=True).eval().double()
    wide = None if noise is None else tuple(part.double() for part in noise)
    reference = _gradients(truth, _plain_loss(baselines.csm_double_backward), x.double(), wide)
    rows = check_rows(contenders, reference, {})
    timed = {name: steps[name] for name, row in rows.items() if row["status"] == "ok"}
    seconds = interleave(timed, rounds)
    for name in timed:
        rows[name]["seconds"] = quartiles(seconds[name])
        if "double_backward" in timed:
            slow = quartiles(seconds["double_backward"])["median"]
            rows[name]["speedup"] = slow / rows[name]["seconds"]["median"]
    return {
        "op": "training_step",
        "title": f"training step: batch {batch}, D = {features}, {torch.get_num_threads()} threads",
        "config": {"batch": batch, "features": features},
        "rows": list(rows.values()),
    }
