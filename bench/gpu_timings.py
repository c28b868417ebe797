"""What a process of bench/gpu.py times: one op on the backends, beside plain PyTorch and what the GPU can do.

A call is captured in a CUDA graph, several times over where it is short, and the graph is replayed between
two events while the GPU is kept busy before the first: the host's time does not count. What cannot be
captured is queued in the same way, and loops that a user would run from Python are launched from Python; each
row says which. Every round runs every call once, so that ratios are of the same rounds.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import comparisons
import gpu_checks
import gpu_peaks
import gpu_subjects as subjects
import torch
from gpu_subjects import (
    PRECISIONS,
    SIGMA,
    Conditional,
    Head,
    Layer,
    LinearHead,
    Plan,
    Result,
    on,
    set_precision,
    synchronize,
    with_gradients,
)
from support import shares
from torch import Tensor

from fastcsm import backends, nn
from fastcsm.benchmark import baselines, cases, draw, measure, peers
from fastcsm.benchmark.densities import eager_quadrature

Call = Callable[[], Any]
Tensors = list[Tensor]
DRAW = draw.Draw(samples=512, hidden=(1024, 1024))


class Timing(NamedTuple):
    """What is timed.

    Attributes:
        op, config: by which bench/dispatch.py knows it.
        own: the call on the backend in force; a tensor or several.
        compare: of a backend, (its results, plain PyTorch's, the truth), on few rows where enough; None
            where gpu_checks.py alone compares.
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


class Replay(NamedTuple):
    """A call made ready: how it is run, how often the call is in it, and in which way."""

    run: Call
    repeats: int
    way: str


def graph_of(call: Call, repeats: int) -> Call:
    """The replay of a CUDA graph that holds the call ``repeats`` times."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def ready(call: Call, launched: bool) -> Replay:
    """The call compiled, warm, and captured if it can be."""
    for _ in range(1 if subjects.DRY else 3):
        call()
    synchronize()
    if subjects.DRY:
        return Replay(call, 1, "dry")
    if launched:
        return Replay(call, 1, "launched")
    short = elapsed(Replay(call, 1, "queued"))
    repeats = min(max(round(1e-3 / short), 1), 20)
    try:
        return Replay(graph_of(call, repeats), repeats, "graph")
    except Exception as error:
        print(f"not captured: {type(error).__name__}: {error}", flush=True)
        torch.cuda.synchronize()

    def several() -> None:
        for _ in range(repeats):
            call()

    return Replay(several, repeats, "queued")


def elapsed(replay: Replay) -> float:
    """Seconds of one call."""
    if subjects.DRY:
        start = time.perf_counter()
        replay.run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if replay.way != "launched":
        torch.cuda._sleep(10_000_000 if replay.way == "graph" else 40_000_000)  # some 5 and 20 ms
    begin.record()
    replay.run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / replay.repeats


def extra_memory(call: Callable[[], Any]) -> int:
    """Bytes allocated at the peak of a call beyond what it returns."""
    call()
    if subjects.DRY:
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    peak = torch.cuda.max_memory_allocated() - before
    tensors = [result] if isinstance(result, Tensor) else result
    return peak - sum(t.numel() * t.element_size() for t in tensors)


def against_reference(
    subject: Any, run: Callable[[Any], Tensors], precision: str, backend: str
) -> tuple[Tensors, Tensors, Tensors]:
    """``run`` of a subject on a backend, by plain PyTorch in the same precision, and in float64."""
    low = subject.to(PRECISIONS[precision][0])
    got = on(backend, lambda: run(low))
    truth = on("reference", lambda: run(low.to(torch.float64)))
    with comparisons.plain_precision(precision, gpu_checks.narrow(backend)):
        return got, on("reference", lambda: run(low)), truth


def error(timing: Timing, backend: str) -> float | None:
    """Over what is allowed, all results together: none of a few elements counts for itself."""
    if timing.compare is None:
        return None
    results = timing.compare(backend)
    sizes = [value.norm().item() or 1.0 for value in results[2]]

    def together(values: Tensors) -> dict[str, Tensor]:
        return {"all": torch.cat([v.flatten() / n for v, n in zip(values, sizes, strict=True)])}

    return shares([together(values) for values in results])["all"]


def finite(values: Any) -> bool:
    return all(bool(value.isfinite().all()) for value in ([values] if isinstance(values, Tensor) else values))


def warm(name: str, plan: Plan, keep: gpu_checks.Keep) -> Result:
    """A timing's calls once: of a backend, which must be right, or of what it is compared with."""
    timing, precision = make(name)
    if not plan.backends:
        for peer, call in timing.peers.items():
            call()
            print("ran", peer, flush=True)
        return {}
    (backend,) = plan.backends
    with torch.no_grad() if timing.op in NO_GRADIENTS else torch.enable_grad():
        share = error(timing, backend)
        whole = finite(on(backend, timing.own))
    found: Result = {"kernels": gpu_checks.kernels(timing.op, precision, backend)}
    found |= {} if share is None else {"share": share}
    if not whole:
        return {**found, "status": "inaccurate", "reason": "not all of its results are finite"}
    if share is not None and not share <= 1:
        return {**found, "status": "inaccurate", "reason": f"its error is {share:.3g} times what is allowed"}
    return found


def profile(name: str, plan: Plan, keep: gpu_checks.Keep) -> Result:
    """A timing's call once, for a profiler to watch."""
    timing, _ = make(name)
    on(plan.backends[0], timing.own)
    synchronize()
    return {}


def timed(name: str, plan: Plan, keep: gpu_checks.Keep) -> Result:
    """A timing's calls, ready and in rounds."""
    timing, precision = make(name)
    found: Result = {"op": timing.op, "precision": precision, "config": timing.config, "rows": {}}
    if not subjects.DRY:
        found["gpu"] = torch.cuda.get_device_name(0)
    own = {backend: partial(on, backend, timing.own) for backend in plan.backends}
    ceilings = dict(rates(timing, precision))
    calls = {**own, **timing.peers, **{label: rate.call for label, rate in ceilings.items()}}
    with torch.no_grad() if timing.op in NO_GRADIENTS else torch.enable_grad():
        if timing.memory:
            found["extra_memory"] = {
                label: extra_memory(call) for label, call in {**own, **timing.peers}.items()
            }
        if timing.twice is not None:
            twice = timing.twice()
            found["extra_memory_twice"] = {label: extra_memory(partial(on, label, twice)) for label in own}
        replays, lost = {}, {}
        for label, call in calls.items():
            try:
                replays[label] = ready(call, label in timing.launched)
            except Exception as problem:
                lost[label] = f"{type(problem).__name__}: {problem}"[:500]
                print(label, lost[label], flush=True)
        seconds: dict[str, list[float]] = {label: [] for label in replays}
        rounds = plan.rounds if timing.op != "langevin_draw" else min(plan.rounds, 3)
        for turn in range(rounds):
            order = list(replays)
            for label in order[turn % len(order) :] + order[: turn % len(order)]:
                scale = timing.scale.get(label, 1.0)
                seconds[label].append(scale * elapsed(replays[label]))
            found["rounds"] = turn + 1
            found |= summary(timing, seconds, replays, ceilings, lost)
            keep(found)
    if timing.steps:
        try:
            found["launches"] = launches(own)
        except Exception as problem:
            print(f"launches not counted: {type(problem).__name__}: {problem}", flush=True)
    if lost.keys() - ceilings.keys():
        why = "; ".join(f"{label}: {reason}" for label, reason in lost.items())
        found |= {"status": "failed", "reason": why}
    return found


def rates(timing: Timing, precision: str) -> Iterator[tuple[str, gpu_peaks.Rate]]:
    """What the GPU does at most, to be measured in the same rounds."""
    if not timing.operations:
        return
    yield "mm_square", gpu_peaks.square(precision)
    for shape in timing.mm:
        yield f"mm_{'x'.join(map(str, shape))}", gpu_peaks.product(precision, *shape)
    if precision in ("bfloat16", "tf32") and not subjects.DRY:
        yield "mma_loop", gpu_peaks.mma_loop(precision)


def summary(
    timing: Timing,
    seconds: dict[str, list[float]],
    replays: dict[str, Replay],
    ceilings: dict[str, gpu_peaks.Rate],
    lost: Mapping[str, str],
) -> Result:
    """Rows, with ratios to each backend as medians over the rounds, and shares."""
    own = [label for label in seconds if label in ("triton", "cuda")]
    rows: Result = {label: {"error": reason} for label, reason in lost.items()}
    for label, values in seconds.items():
        over = {
            name: statistics.median(a / b for a, b in zip(values, seconds[name], strict=True)) for name in own
        }
        rows[label] = {**measure.quartiles(values), "way": replays[label].way, "over": over}
    found: Result = {"rows": rows}
    speed = {label: ceilings[label].work / rows[label]["median"] for label in ceilings if label in seconds}
    products = [value for label, value in speed.items() if label.startswith("mm_")]
    found |= {"rates": speed} if speed else {}
    for backend in own:
        row, least = rows[backend], timing.operations
        if products:
            row["share_of_mm"] = least / row["median"] / max(products)
        if "mma_loop" in speed:
            row["share_of_mma_loop"] = least / row["median"] / speed["mma_loop"]
        if timing.steps:
            row["seconds_per_step"] = row["median"] / timing.steps
    return found


def launches(own: Mapping[str, Call]) -> dict[str, int | None]:
    """Kernels of a draw that a call of each backend launches."""
    if subjects.DRY:
        return dict.fromkeys(own)
    found: dict[str, int | None] = {}
    for label, call in own.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
            call()
            torch.cuda.synchronize()
        found[label] = sum("langevin_draw" in event.name for event in trace.events())
    return found


def ceilings(name: str, plan: Plan, keep: gpu_checks.Keep) -> Result:
    """The machine, why a backend is missing on it, and with rounds what it does at most."""
    if not subjects.DRY and not torch.cuda.is_available():
        raise RuntimeError("bench/gpu.py cannot run here: torch finds no CUDA device; --dry-run needs none")
    names = {
        label: backends.registry.known[subjects.stand_in(label)].missing() for label in ("triton", "cuda")
    }
    found: Result = {"machine": machine(), "missing": names}
    keep(found)
    makers: dict[str, tuple[str, Callable[[], gpu_peaks.Rate]]] = {
        "copy": ("bfloat16", gpu_peaks.copy),
        **{f"mm {p}": (p, partial(gpu_peaks.square, p)) for p in ("bfloat16", "tf32", "float32")},
        **{f"mma loop {p}": (p, partial(gpu_peaks.mma_loop, p)) for p in ("bfloat16", "tf32")},
        **{f"dot loop {p}": (p, partial(gpu_peaks.dot_loop, p)) for p in ("bfloat16", "tf32")},
    }
    rows: Result = {}
    for label, (precision, maker) in makers.items() if plan.rounds else ():
        set_precision(precision)
        try:
            rate = maker()
            replay = ready(rate.call, launched=False)
            spread = measure.quartiles([elapsed(replay) for _ in range(min(plan.rounds, 10))])
            rows[label] = {**spread, "way": replay.way, "rate": rate.work / spread["median"]}
        except Exception as problem:
            rows[label] = {"error": f"{type(problem).__name__}: {problem}"[:500]}
        print(label, rows[label], flush=True)
        keep({**found, "rows": rows})
    return {**found, "rows": rows}


def machine() -> Result:
    import triton

    found = {"triton": triton.__version__, **measure.versions()}
    if subjects.DRY:
        return {"gpu": None, **measure.machine(), **found}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "shared": getattr(properties, "shared_memory_per_block_optin", None),
        "cuda": torch.version.cuda,
        **found,
    }


def widths_of(weights: Any) -> list[int]:
    """The inputs of a head's layers, by which bench/dispatch.py knows it."""
    return [weight.shape[1] for weight in weights]


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
    compiled = baselines.csm_tangent if subjects.DRY else torch.compile(baselines.csm_tangent)

    def plain(function: Callable) -> Call:
        return lambda: with_gradients(head.baseline(function, leaves), leaves)

    def twice() -> Call:
        larger = Head(2 * rows, context, hidden, frequencies, activation).to(dtype)
        return lambda: losses(larger)

    return Timing(
        "csm_loss",
        {"rows": rows, "frequencies": frequencies, "head": widths_of(head.weights)},
        lambda: with_gradients(head.loss(leaves), leaves),
        compare=partial(against_reference, head.first(4096), losses, precision),
        peers={
            "eager double backward": plain(baselines.csm_double_backward),
            "jvp": plain(baselines.csm_jvp),
            "tangent": plain(baselines.csm_tangent),
            "compiled tangent": plain(compiled),
        },
        operations=rows * cases.loss_operations(context, hidden, frequencies),
        mm=((rows, *hidden),),
        memory=True,
        twice=twice,
    )


class Upstream:
    """A network and a gradient of its contexts."""

    def __init__(self, batch, features, hidden, context):
        torch.manual_seed(0)
        self.made = nn.MADE(features, hidden, context).to(subjects.device())
        self.x = torch.randn(batch, features, device=subjects.device())
        self.upstream = torch.randn(batch, features, context, device=subjects.device())

    def to(self, dtype):
        other = copy.copy(self)
        other.made = copy.deepcopy(self.made).to(dtype)
        other.x, other.upstream = self.x.to(dtype), self.upstream.to(dtype)
        return other

    def run(self, network=None):
        y = (network or self.made)(self.x)
        return list(torch.autograd.grad(y, list(self.made.parameters()), self.upstream))


def made(
    precision: str, batch: int = 1024, features: int = 784, hidden: tuple[int, ...] = (4096, 4096)
) -> Timing:
    """The masked layers of a MADE, and the gradients of its parameters."""
    subject = Upstream(batch, features, hidden, 32).to(PRECISIONS[precision][0])
    folded = peers.use_plain_layers(peers.sharing(subject.made), folded=True)
    multiplied = peers.use_plain_layers(peers.sharing(subject.made))
    return Timing(
        "masked_linear",
        {"batch": batch, "features": features, "hidden": hidden, "context": 32},
        subject.run,
        compare=partial(against_reference, subject, Upstream.run, precision),
        peers={
            "dense, masks folded": lambda: subject.run(folded),
            "mask * weight": lambda: subject.run(multiplied),
        },
        operations=peers.made_operations(subject.made, batch, backward=True),
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
        {"batch": batch, "dimensions": dimensions, "units": units, "head": widths_of(subject.weights)},
        lambda: losses(subject),
        compare=partial(against_reference, few, losses, precision),
        peers={"plain": lambda: on("reference", lambda: losses(subject))},
        memory=True,
    )


def langevin(precision: str, rows: int = 4096, steps: int = 200) -> Timing:
    head = Head(rows).to(PRECISIONS[precision][0])

    def loop() -> Tensor:
        layers = head.weights, head.biases, head.frequencies, head.activation
        return baselines.langevin_loop(head.context, head.x, *layers, [0.02], [1.0], [None], steps)

    return Timing(
        "langevin",
        {"rows": rows, "steps": steps, "head": widths_of(head.weights)},
        lambda: head.langevin([0.02], steps),
        compare=partial(against_reference, head, lambda h: [h.langevin([0.02], steps)], precision),
        peers={"loop": loop, "loop in a graph": loop},
        launched=("loop",),
    )


def langevin_draw(precision: str, case: draw.Draw = DRAW) -> Timing:
    """512 samples of 784 variables, beside loops timed on a few of them.

    The graphed loop is one CUDA graph of the forward pass and all steps of a variable.
    """
    model = case.model().to(subjects.device()).to(PRECISIONS[precision][0])
    variables = [d for share in case.shares() for d in share]
    loop, steps = draw.Loop(model), case.levels * case.steps
    data = torch.randn(case.samples, case.features, device=subjects.device()).to(PRECISIONS[precision][0])

    def compare(backend: str) -> tuple[Tensors, Tensors, Tensors]:
        """Some variables, each given those before it, with the same noise."""
        with torch.device(subjects.device()):
            few, numbers = case.shares()[0], torch.arange(case.samples)
            x = on(backend, lambda: model.sample(case.samples, seed=0, steps=case.steps))
            plain = loop.run(x, few, case.steps, lambda d: draw._philox(numbers, d, x.dtype))
            return [x[:, few]], [plain], [loop.truth(x, few, case.steps)]

    return Timing(
        "langevin_draw",
        {
            "samples": case.samples,
            "features": case.features,
            "steps": steps,
            "head": widths_of(model.head.weights),
        },
        lambda: model.sample(case.samples, seed=0, steps=case.steps),
        compare=compare,
        peers={
            "loop": lambda: loop.run(data, variables, case.steps),
            "step in a graph": lambda: loop.run(data, variables[:1], case.steps),
        },
        launched=("triton", "cuda", "loop"),
        scale={"loop": case.features / len(variables), "step in a graph": case.features},
        steps=case.features * steps,
    )


def log_prob(precision: str, rows: int = 512 * 784) -> Timing:
    """log q of the rows of 512 samples of 784 variables, beside panels that are the same for all rows."""
    panels = 4
    head = Conditional(rows).to(PRECISIONS[precision][0])
    part = min(rows, 8192)
    return Timing(
        "conditional_density",
        {"rows": rows, "panels": panels, "head": widths_of(head.weights)},
        lambda: head.density().log_density,
        compare=partial(against_reference, head.first(1024), lambda h: [h.density().log_density], precision),
        peers={
            "eager quadrature": lambda: eager_quadrature(*head.arguments(), panels=2 * panels, part=part),
        },
        memory=True,
    )


def flow(precision: str, rows: int = 512 * 784) -> Timing:
    """The flow of as many rows between two levels, beside equal steps of order 4 for all rows."""
    head = Conditional(rows).to(PRECISIONS[precision][0])
    levels = {"sigma_from": SIGMA, "sigma_to": 1.0}
    return Timing(
        "probability_flow",
        {"rows": rows, "head": widths_of(head.weights)},
        lambda: list(head.flow(**levels)[:2]),
        peers={"Runge-Kutta, 8 steps": lambda: baselines.flow_rk4(*head.arguments(), **levels, steps=8)},
    )


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
    "langevin_draw": (langevin_draw, {"case": draw.Draw(hidden=(8, 8)).quick().warm()}),
    "conditional_density": (log_prob, {"rows": 2}),
    "probability_flow": (flow, {"rows": 2}),
}


def make(name: str) -> tuple[Timing, str]:
    """The timing of a name in gpu.py's TIMINGS, and its precision, which is in force from here on."""
    case, _, detail = name.partition(", ")
    op, precision = case.split()
    set_precision(precision)
    maker, dry = MAKERS["MADE" if detail == "MADE" else op]
    options = dict(dry) if subjects.DRY else {}
    if detail.endswith("frequencies"):
        options["frequencies"] = int(detail.split()[0])
    elif maker is layer:
        options["backward"] = op.endswith("backward")
        options |= {} if subjects.DRY else {"rows": int(detail.split()[0])}
    return maker(precision, **options), precision


KINDS: dict[str, Callable[[str, Plan, gpu_checks.Keep], Result]] = {
    "warm": warm,
    "time": timed,
    "profile": profile,
    "ceilings": ceilings,
}
