"""What is timed: an op on the backends, and what it is compared with."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import comparisons
import torch
from torch import Tensor

from fastcsm import functional, nn

from ..baselines import masked
from ..baselines.flow import flow_rk4
from ..baselines.head import csm_double_backward, csm_jvp, csm_tangent
from ..baselines.langevin import Stages, langevin_loop
from ..baselines.quadrature import eager_quadrature
from ..micro.conditional_density import SIGMA
from ..micro.langevin_draw import Draw
from ..micro.masked_linear import made_operations
from ..micro.rows import fused, head_operations
from . import subjects
from .checks import narrow
from .subjects import (
    PRECISIONS,
    Conditional,
    Head,
    Layer,
    LinearHead,
    Preconditioned,
    Result,
    Subject,
    on,
    set_precision,
    with_gradients,
)

Call = Callable[[], Any]
Tensors = list[Tensor]
DRAW = Draw(samples=512, hidden=(1024, 1024))


class Timing(NamedTuple):
    """What is timed.

    Attributes:
        op, config: by which measured.py knows it.
        own: the call on the backend in force; a tensor or several.
        compare: of a backend, (its results, plain PyTorch's, the truth), on few rows where enough; None
            where checks.py alone compares.
        peers: what it is compared with, by name.
        launched: calls that Python launches, as they are too long for that to count, or meant so.
        scale: the work of ``own`` over that of a peer, where it is not 1.
        operations: that a matrix unit must do; 0: no shares are taken.
        mm: products whose rate is measured beside, besides the square one.
        steps: of a draw, for the time of one.
        memory: whether it is of interest what the calls allocate.
        twice: makes ``own`` on twice the rows, for its memory.
    """

    op: str
    config: Result
    own: Call
    compare: Callable[[str], tuple[Tensors, Tensors, Tensors]] | None = None
    peers: Mapping[str, Call] = MappingProxyType({})
    launched: tuple[str, ...] = ()
    scale: Mapping[str, float] = MappingProxyType({})
    operations: float = 0.0
    mm: tuple[tuple[int, int, int], ...] = ()
    steps: int = 0
    memory: bool = False
    twice: Callable[[], Call] | None = None


def against_reference(
    subject: Any, run: Callable[[Any], Tensors], precision: str, backend: str
) -> tuple[Tensors, Tensors, Tensors]:
    """``run`` of a subject on a backend, by plain PyTorch in the same precision, and in float64."""
    low = subject.to(PRECISIONS[precision][0])
    got = on(backend, lambda: run(low))
    truth = on("reference", lambda: run(low.to(torch.float64)))
    with comparisons.plain_precision(precision, narrow(backend)):
        return got, on("reference", lambda: run(low)), truth


def widths_of(head: Head) -> list[int]:
    """The inputs of a head's layers, by which measured.py knows it."""
    return [weight.shape[1] for weight in head.rows.weights]


def losses(head: Head) -> Tensors:
    leaves = head.leaves()
    return with_gradients(head.loss(leaves), leaves)


def csm_loss(
    precision: str, frequencies: int = 0, rows: int = 401408, hidden: tuple[int, int] = (128, 128)
) -> Timing:
    """The loss and all its gradients, beside what a user would write."""
    dtype, context = PRECISIONS[precision][0], 32
    activation = "silu" if frequencies else "softplus"
    head = Head(rows, context, hidden, frequencies, activation).to(dtype)
    leaves = head.leaves()
    compiled = csm_tangent if subjects.DRY else torch.compile(csm_tangent)

    def plain(function: Callable) -> Call:
        return lambda: with_gradients(function(head.split(leaves), 1.0, 1.0), leaves)

    def twice() -> Call:
        larger = Head(2 * rows, context, hidden, frequencies, activation).to(dtype)
        return lambda: losses(larger)

    return Timing(
        "csm_loss",
        {"rows": rows, "frequencies": frequencies, "head": widths_of(head)},
        lambda: with_gradients(head.loss(leaves), leaves),
        compare=partial(against_reference, head.first(4096), losses, precision),
        peers={
            "eager double backward": plain(csm_double_backward),
            "jvp": plain(csm_jvp),
            "tangent": plain(csm_tangent),
            "compiled tangent": plain(compiled),
        },
        operations=rows * head_operations("loss", context, hidden, frequencies),
        mm=((rows, *hidden),),
        memory=True,
        twice=twice,
    )


class Upstream(Subject):
    """A network and a gradient of its contexts."""

    def __init__(self, batch, features, hidden, context):
        torch.manual_seed(0)
        self.made = nn.MADE(features, hidden, context).to(subjects.device())
        self.x = torch.randn(batch, features, device=subjects.device())
        self.upstream = torch.randn(batch, features, context, device=subjects.device())

    def run(self, network=None):
        y = (network or self.made)(self.x)
        return list(torch.autograd.grad(y, list(self.made.parameters()), self.upstream))


def made(
    precision: str, batch: int = 1024, features: int = 784, hidden: tuple[int, ...] = (4096, 4096)
) -> Timing:
    """The masked layers of a MADE, and the gradients of its parameters."""
    subject = Upstream(batch, features, hidden, 32).to(PRECISIONS[precision][0])
    folded = masked.use_plain_layers(masked.sharing(subject.made), folded=True)
    multiplied = masked.use_plain_layers(masked.sharing(subject.made))
    return Timing(
        "masked_linear",
        {"batch": batch, "features": features, "hidden": hidden, "context": 32},
        subject.run,
        compare=partial(against_reference, subject, Upstream.run, precision),
        peers={
            "dense, masks folded": lambda: subject.run(folded),
            "mask * weight": lambda: subject.run(multiplied),
        },
        operations=made_operations(subject.made, batch, backward=True),
    )


def layer(
    precision: str, backward: bool, rows: int = 1024, inputs: int = 4096, outputs: int = 4096
) -> Timing:
    """One masked layer, or its gradients, beside plain PyTorch with the mask on the weight."""
    subject = Layer(rows, inputs, outputs).to(PRECISIONS[precision][0])
    run = Layer.backward if backward else Layer.forward
    return Timing(
        "masked_linear_backward" if backward else "masked_linear",
        {"rows": rows, "layer": [inputs, outputs]},
        lambda: run(subject),
        compare=partial(against_reference, subject, run, precision),
        peers={"mask * weight": lambda: on("reference", lambda: run(subject))},
        operations=(4.0 if backward else 2.0) * rows * subject.edges(),
    )


def linear_csm_loss(precision: str, batch: int = 128, dimensions: int = 784, units: int = 512) -> Timing:
    """The last layer of a MADE and the loss together, with all gradients, beside plain PyTorch."""
    subject = LinearHead(batch, dimensions, units).to(PRECISIONS[precision][0])
    few = LinearHead(min(batch, 8), dimensions, units)
    return Timing(
        "linear_csm_loss",
        {"batch": batch, "dimensions": dimensions, "units": units, "head": widths_of(subject)},
        lambda: losses(subject),
        compare=partial(against_reference, few, losses, precision),
        peers={"plain": lambda: on("reference", lambda: losses(subject))},
        memory=True,
    )


def langevin(precision: str, rows: int = 4096, steps: int = 200) -> Timing:
    head = Head(rows).to(PRECISIONS[precision][0])

    def loop() -> Tensor:
        return langevin_loop(head.rows, Stages([0.02], [1.0], [None], steps))

    def own(subject: Head) -> Tensors:
        return [fused(functional.langevin, subject.rows, step_sizes=[0.02], steps=steps, seed=3)]

    return Timing(
        "langevin",
        {"rows": rows, "steps": steps, "head": widths_of(head)},
        partial(own, head),
        compare=partial(against_reference, head, own, precision),
        peers={"loop": loop, "loop in a graph": loop},
        launched=("loop",),
    )


def langevin_draw(precision: str, case: Draw = DRAW) -> Timing:
    """512 samples of 784 variables, beside loops timed on a few of them.

    The graphed loop is one CUDA graph of the forward pass and all steps of a variable.
    """
    model = case.model().to(subjects.device()).to(PRECISIONS[precision][0])
    variables = [d for share in case.shares() for d in share]
    loop, steps = case.loop(model), case.levels * case.steps
    data = torch.randn(case.samples, case.features, device=subjects.device()).to(PRECISIONS[precision][0])

    def compare(backend: str) -> tuple[Tensors, Tensors, Tensors]:
        """Some variables, each given those before it, with the same noise."""
        with torch.device(subjects.device()):
            few = case.shares()[0]
            x = on(backend, lambda: model.sample(case.samples, "langevin", steps=case.steps))
            plain = loop.run(x, few, case.noise(x.dtype))
            return [x[:, few]], [plain], [loop.truth(x, few, case.noise(torch.float64))]

    return Timing(
        "langevin_draw",
        {
            "samples": case.samples,
            "features": case.features,
            "steps": steps,
            "head": [w.shape[1] for w in model.head.weights],
        },
        lambda: model.sample(case.samples, "langevin", steps=case.steps),
        compare=compare,
        peers={
            "loop": lambda: loop.run(data, variables),
            "step in a graph": lambda: loop.run(data, variables[:1]),
        },
        launched=("triton", "cuda", "loop"),
        scale={"loop": case.features / len(variables), "step in a graph": case.features},
        steps=case.features * steps,
    )


def log_prob(precision: str, rows: int = 512 * 784) -> Timing:
    """log q of the rows of 512 samples of 784 variables, beside panels that are the same for all rows."""
    panels = 4
    head = Conditional(rows).to(PRECISIONS[precision][0])
    quadrature = partial(eager_quadrature, sigma=SIGMA, panels=2 * panels, part=min(rows, 8192))
    return Timing(
        "conditional_density",
        {"rows": rows, "panels": panels, "head": widths_of(head)},
        lambda: head.density().log_density,
        compare=partial(against_reference, head.first(1024), lambda h: [h.density().log_density], precision),
        peers={"eager quadrature": partial(quadrature, head.rows)},
        memory=True,
    )


def flow(precision: str, rows: int = 512 * 784) -> Timing:
    """The flow of as many rows between two levels, beside equal steps of order 4 for all rows."""
    head = Conditional(rows).to(PRECISIONS[precision][0])
    steps = partial(flow_rk4, sigma_from=SIGMA, sigma_to=1.0, steps=8)
    return Timing(
        "probability_flow",
        {"rows": rows, "head": widths_of(head)},
        lambda: list(head.flow(SIGMA, 1.0)[:2]),
        peers={"Runge-Kutta, 8 steps": partial(steps, head.rows)},
    )


def preconditioned(precision: str, op: str, rows: int = 0, steps: int = 200) -> Timing:
    """An op with a preconditioned head, on as many rows as with a plain one, whose timing is beside."""
    rows = rows or (4096 if op == "langevin" else 512 * 784)
    head = Preconditioned(rows).to(PRECISIONS[precision][0])
    chain = {"step_sizes": [0.02], "stage_features": [0.0], "steps": steps, "seed": 3}
    runs: dict[str, Call] = {
        "langevin": lambda: fused(functional.langevin, head.rows, squash=head.squash, **chain),
        "conditional_density": lambda: head.density().log_density,
        "probability_flow": lambda: list(head.flow(SIGMA, 1.0)[:2]),
    }
    return Timing(op, {"rows": rows, "squash": head.squash}, runs[op])


#: Ops that are timed without autograd.
NO_GRADIENTS = ("langevin", "langevin_draw", "conditional_density", "probability_flow")
#: By op: the timing, and its sizes in a dry run.
MAKERS: dict[str, tuple[Callable[..., Timing], Result]] = {
    "csm_loss": (csm_loss, {"rows": 5, "hidden": (9, 5)}),
    "masked_linear": (layer, {"rows": 3, "inputs": 5, "outputs": 4}),
    "masked_linear_backward": (layer, {"rows": 3, "inputs": 5, "outputs": 4}),
    "MADE": (made, {"batch": 3, "features": 5, "hidden": (8, 8)}),
    "linear_csm_loss": (linear_csm_loss, {"batch": 2, "dimensions": 3, "units": 4}),
    "langevin": (langevin, {"rows": 3, "steps": 2}),
    "langevin_draw": (langevin_draw, {"case": Draw(hidden=(8, 8)).quick().warm()}),
    "conditional_density": (log_prob, {"rows": 2}),
    "probability_flow": (flow, {"rows": 2}),
    "preconditioned": (preconditioned, {"rows": 2, "steps": 2}),
}


def make(name: str) -> tuple[Timing, str]:
    """The timing of a name in verbs.TIMINGS, and its precision, which is in force from here on."""
    case, _, detail = name.partition(", ")
    op, precision = case.split()
    set_precision(precision)
    maker, dry = MAKERS[detail if detail in MAKERS else op]
    options = dict(dry) if subjects.DRY else {}
    if maker is preconditioned:
        options["op"] = op
    if detail.endswith("frequencies"):
        options["frequencies"] = int(detail.split()[0])
    elif maker is layer:
        options["backward"] = op.endswith("backward")
        options |= {} if subjects.DRY else {"rows": int(detail.split()[0])}
    return maker(precision, **options), precision
