"""conditional_density and probability_flow on rows, and whole draws by quantiles beside Langevin's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import functional, random
from ..density import Conditionals
from ..nn import ARCSM
from ..sampling import exact
from . import baselines
from .base import Contender, Outputs, own_contenders
from .cases import Rows, step_operations
from .draw import Draw

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ExactDraw", "FlowOfRows", "LogDensity"]

SIGMA = 0.04
#: Root-mean-square error of the probabilities of draws that is let pass.
_DRAWN = {"inverse_cdf": 2e-3, "flow": 3e-2}


def restoring(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Add the line -x to a random softplus head, so that its densities exist: two units a layer pass x on."""
    with torch.no_grad():
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            weight[:2], bias[:2] = 0.0, 0.0
        weights[0][:2, -1] = torch.tensor([1.0, -1.0])
        for weight in weights[1:-1]:
            weight[:2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        weights[-1][0, :2] = torch.tensor([-1.0, 1.0])


@dataclass(frozen=True)
class LogDensity(Rows):
    """log q(x given c) of rows at sigma = 0.04 by quadrature over [-1.2, 1.2], float32, tolerance 1e-4.

    The head is conditional, without frequencies, and begins with ``panels`` panels of 16 evaluations.
    """

    panels: int = 4

    op = "conditional_density"
    most_rounds = 3
    warmup = 1

    def title(self) -> str:
        return f"{super().title()}, {self.panels} panels of 16 nodes at first"

    def variants(self) -> list[Self]:
        return [self]

    def suite(self) -> list[Self]:
        return [replace(self, rows=1568)]

    def quick(self) -> Self:
        return replace(self, rows=min(self.rows, 512))

    def operations(self) -> float:
        """2 sum H_k H_{k+1} a node of the first panels, 2 C H_1 once a row."""
        steps = 16 * self.panels * step_operations(self.hidden, self.frequencies)
        return self.rows * (steps + 2.0 * self.context * self.hidden[0])

    def bytes(self) -> float:
        """c (without log sigma) and x read, log q written; parameters read."""
        return 4.0 * (self.rows * (self.context + 1) + self.parameters())

    def inputs(self) -> tuple[Any, ...]:
        weights, biases, frequencies, generator = self._head()
        restoring(weights, biases)
        context = torch.randn(self.rows, self.context - 1, generator=generator)
        x = 0.2 * torch.randn(self.rows, generator=generator)
        return context, x, weights, biases, frequencies, self.activation

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        arguments = self.inputs()
        context, x, weights, biases, frequencies, activation = arguments

        @torch.no_grad()
        def fixed() -> Outputs:
            return {"log_density": eager_quadrature(*arguments, panels=2 * self.panels)}

        def own() -> Outputs:
            found = functional.conditional_density(
                context, x, weights, biases, activation=activation, frequencies=frequencies,
                score_scale=1 / SIGMA, stage_feature=math.log(SIGMA), low=-1.2, high=1.2,
                tolerance=1e-4, panels=self.panels,
            )  # fmt: skip
            return {"log_density": found.log_density}

        label = f"eager quadrature, {2 * self.panels} panels for all rows"
        found = {"fixed": Contender(label, fixed)}
        return found | own_contenders(own, precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        context, x, weights, biases, frequencies, activation = self.inputs()
        layers = [w.double() for w in weights], [b.double() for b in biases]
        truth = eager_quadrature(
            context.double(), x.double(), *layers, frequencies.double(), activation, panels=12
        )
        return {"log_density": truth}, {}


def eager_quadrature(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    *,
    panels: int,
    part: int = 512,
) -> Tensor:
    """log q(x) by panels of 16 Gauss-Legendre nodes, the same for all rows; no error estimate.

    Fair because the context's product is taken once a row, the integrals of s and exp(L) are two small
    products, and ``part`` rows come at a time: by default as many as fit the cache of a processor many times
    over, not all at once.
    """
    nodes, rule = np.polynomial.legendre.leggauss(16)
    upto = np.linalg.inv(np.polynomial.legendre.legvander(nodes, 15))  # (degree, node)
    tables = [torch.as_tensor(table).to(x) for table in (nodes, rule, upto)]
    return torch.cat(
        [
            _eager_part(c, v, weights, biases, activation, panels, *tables)
            for c, v in zip(context.split(part), x.split(part), strict=True)
        ]
    )


def _integrals(t: Tensor, upto: Tensor) -> Tensor:
    """Integrals from -1 to t (...) of polynomials that are 1 at one node, 0 at the others; (..., 16)."""
    p = [torch.ones_like(t), t]
    for k in range(1, 16):
        p.append(((2 * k + 1) * t * p[k] - k * p[k - 1]) / (k + 1))
    parts = [t + 1, *((p[k + 1] - p[k - 1]) / (2 * k + 1) for k in range(1, 16))]
    return torch.stack(parts, -1) @ upto


def _eager_part(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    panels: int,
    nodes: Tensor,
    rule: Tensor,
    upto: Tensor,
) -> Tensor:
    low, width = -1.2, 2.4 / panels
    t = low + width * (torch.arange(panels, device=x.device)[:, None] + (nodes + 1) / 2)
    c = context.shape[1]
    base = F.linear(context, weights[0][:, :c], biases[0]) + math.log(SIGMA) * weights[0][:, c]
    h = base[:, None] + t.flatten()[:, None] * weights[0][:, c + 1]
    f = baselines.ACTIVATIONS[activation]
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        h = F.linear(f(h), weight, bias)
    s = F.linear(f(h), weights[-1], biases[-1])[..., 0].view(len(x), panels, 16) / SIGMA
    total = (s @ rule) * width / 2
    start = total.cumsum(1) - total
    log_q = start[..., None] + width / 2 * s @ _integrals(nodes, upto).T
    log_z = (log_q + (rule * width / 2).log()).flatten(1).logsumexp(1)
    place = ((x - low) / width).floor().clamp(0, panels - 1).long()
    inside = _integrals(2 * ((x - low) / width - place) - 1, upto)
    own = s[torch.arange(len(x), device=x.device), place]
    return start.gather(1, place[:, None])[:, 0] + width / 2 * (own * inside).sum(1) - log_z


@dataclass(frozen=True)
class FlowOfRows(Rows):
    """probability_flow of rows from sigma = 0.04 to 1 with the change of log p, tolerance 1e-4; in float32
    whatever torch's precision of products.

    The head is conditional, without frequencies, and passes the line -x on. The eager row takes ``steps``
    steps, about as exact as fastcsm at its tolerance.
    """

    rows: int = 12544
    steps: int = 8

    op = "probability_flow"
    most_rounds = 3
    warmup = 1

    def variants(self) -> list[Self]:
        return [self]

    def suite(self) -> list[Self]:
        return [replace(self, rows=1568)]

    def quick(self) -> Self:
        return replace(self, rows=min(self.rows, 512))

    def operations(self) -> float:
        """2 * 2 sum H_k H_{k+1} an evaluation, primal and tangent, and 2 C H_1 once a row; 13 evaluations,
        those of two steps, the fewest that a way takes."""
        evaluation = 2 * step_operations(self.hidden, self.frequencies)
        return self.rows * (13 * evaluation + 2.0 * self.context * self.hidden[0])

    def bytes(self) -> float:
        """c (without log sigma) and x read, the point and the change written; parameters read."""
        return 4.0 * (self.rows * (self.context + 2) + self.parameters())

    def inputs(self) -> tuple[Any, ...]:
        weights, biases, frequencies, generator = self._head()
        restoring(weights, biases)
        context = torch.randn(self.rows, self.context - 1, generator=generator)
        x = 0.2 * torch.randn(self.rows, generator=generator)
        return context, x, weights, biases, frequencies, self.activation

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        arguments = self.inputs()
        context, x, weights, biases, frequencies, activation = arguments

        def fixed() -> Outputs:
            return _by_rk4(arguments, self.steps)

        def own() -> Outputs:
            found = functional.probability_flow(
                context, x, weights, biases, activation=activation, frequencies=frequencies,
                sigma_from=SIGMA, sigma_to=1.0, tolerance=1e-4,
            )  # fmt: skip
            return {"point": found.point, "change": found.change}

        label = f"eager Runge-Kutta 4, {self.steps} steps for all rows"
        return {"fixed": Contender(label, fixed)} | own_contenders(own, ["highest"], limit=1e-4)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        context, x, weights, biases, frequencies, activation = self.inputs()
        layers = [w.double() for w in weights], [b.double() for b in biases]
        wide = (context.double(), x.double(), *layers, frequencies.double(), activation)
        return _by_rk4(wide, 4 * self.steps), {}


def _by_rk4(rows: tuple[Any, ...], steps: int) -> Outputs:
    point, change = baselines.flow_rk4(*rows, sigma_from=SIGMA, sigma_to=1.0, steps=steps)
    return {"point": point, "change": change}


@dataclass(frozen=True)
class ExactDraw(Draw):
    """Draws by quantiles, of the density at the last level and by the probability flow, beside Langevin's."""

    op = "conditional_density_draw"

    def variants(self) -> list[Self]:
        return [replace(self, staged=False)]

    def model(self) -> ARCSM:
        model = super().model()
        restoring(model.head.weights, model.head.biases)  # type: ignore[arg-type]
        model.data_range = (-1.5, 1.5)
        return model

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        found = super().contenders(precisions[:1], compiled)
        model, variables = self.model(), self.shares()[0]
        samples = torch.arange(self.samples)
        dimensions = torch.tensor(variables)
        u = random.uniform(0, samples[:, None], dimensions, 0, torch.float64)

        def drawn(method: str) -> Outputs:
            return {"x": exact(model, self.samples, method, seed=0)}

        def check(method: str) -> Outputs:
            x, wide = drawn(method)["x"].double(), self.model().double()
            rows = Conditionals(wide, "flow" if method == "flow" else "quadrature")
            return {"error": rows.cdf(wide.context_net(x)[:, variables], x[:, variables]) - u}

        own = next(name for name in found if name.startswith("fastcsm"))
        found[own] = replace(found[own], label="fastcsm, Langevin")
        for method, label in (("inverse_cdf", "inverse CDF"), ("flow", "probability flow")):
            found[method] = Contender(
                f"fastcsm, {label}",
                lambda method=method: drawn(method),  # type: ignore[misc]
                own=True,
                check=lambda method=method: check(method),  # type: ignore[misc]
                limit=_DRAWN[method],
            )
        return found
