"""The timings of bench/gpu.py: parts that check one op at its size and, if that passed, time it.

A part is a function of a :class:`~gpu_checks.Plan` that returns plain values.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from gpu_checks import (
    BACKENDS,
    CHECKS,
    DEVICE,
    PRECISIONS,
    SIGMA,
    Calls,
    Conditional,
    Head,
    Layer,
    LinearHead,
    Plan,
    Result,
    checked,
    compared,
    deviation,
    losses,
    on,
    with_gradients,
    within_estimate,
)
from torch import Tensor

from fastcsm import nn
from fastcsm.benchmark import baselines, cases, draw, measure, peers
from fastcsm.benchmark.densities import eager_quadrature

#: The calls of the backends whose check passed, by their names.
Own = Callable[[Callable[[], Any]], Calls]
DRAW = draw.Draw(samples=512, hidden=(1024, 1024))


def seconds(calls: Calls, rounds: int, warmup: int = 3) -> dict[str, dict[str, float]]:
    """Median and quartiles of every call, rounds interleaved, by events on the device."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    torch.cuda.synchronize()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            found[name].append(begin.elapsed_time(end) / 1e3)
    return {name: measure.quartiles(values) for name, values in found.items()}


def extra_memory(call: Callable[[], list[Tensor]]) -> int:
    """Bytes allocated at the peak of a call beyond what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    peak = torch.cuda.max_memory_allocated() - before
    return peak - sum(t.numel() * t.element_size() for t in result)


def rate(dtype: torch.dtype, m: int, k: int, n: int) -> tuple[float, Callable[[], Tensor]]:
    a, b = (torch.randn(s, device=DEVICE, dtype=dtype) for s in ((m, k), (k, n)))
    return 2.0 * m * k * n, lambda: a @ b


def fastest(times: Mapping[str, dict[str, float]]) -> float:
    """The median of the faster of the package's backends."""
    return min(times[name]["median"] for name in BACKENDS if name in times)


def rows_of(times: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """The times and how many times longer than the faster of the package's backends each took."""
    own = fastest(times)
    return {name: {**spread, "over_fastcsm": spread["median"] / own} for name, spread in times.items()}


def graphed(call: Callable[[], Tensor]) -> Callable[[], None]:
    """A CUDA graph of a call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def timed(
    op: str,
    precision: str,
    config: Result,
    check: Callable[[], Result],
    measure_rows: Callable[[Own], Result],
    plan: Plan,
) -> Result:
    """The result of one timing: what ``check`` finds of each backend and what ``measure_rows`` does.

    ``measure_rows`` is given what names the calls of the backends whose check passed; it is not called if
    there are none, or no rounds.
    """
    checks = {name: checked(name, check) for name in plan.backends}
    names = [name for name, found in checks.items() if found.get("passed") and found["deterministic"]]

    def own(call: Callable[[], Any]) -> Calls:
        return {name: partial(on, name, call) for name in names}

    found = {"op": op, "precision": precision, "config": config, "checks": checks, "rows": {}}
    return found | measure_rows(own) if names and plan.rounds else found


def sizes(weights: Any) -> list[int]:
    """The inputs of a head's layers, by which bench/dispatch.py knows it."""
    return [weight.shape[1] for weight in weights]


def time_csm_loss(precision: str, frequencies: int, plan: Plan, rows: int = 401408) -> Result:
    """The loss and all its gradients, beside what a user would write.

    ``share_of_rate`` is the time torch.mm takes, in the better of two shapes, for as many operations, over
    the time taken. ``share_with_exponentials`` adds that of the fewest exponentials and reciprocals, two for
    each hidden unit and row, at 16 a clock and multiprocessor.
    """
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    context, hidden = 32, (128, 128)
    head = Head(rows, context, hidden, frequencies, "silu" if frequencies else "softplus").to(dtype)
    leaves = head.leaves()
    compiled = torch.compile(baselines.csm_tangent)

    def run(function: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: with_gradients(function(), leaves)

    def measured(own: Own) -> Result:
        calls: Calls = {
            **own(run(lambda: head.loss(leaves))),
            "double_backward": run(lambda: head.baseline(baselines.csm_double_backward, leaves)),
            "jvp": run(lambda: head.baseline(baselines.csm_jvp, leaves)),
            "tangent": run(lambda: head.baseline(baselines.csm_tangent, leaves)),
            "tangent_compiled": run(lambda: head.baseline(compiled, leaves)),
        }
        memory = {name: extra_memory(call) for name, call in calls.items()}
        square, square_call = rate(dtype, 8192, 8192, 8192)
        tall, tall_call = rate(dtype, rows, hidden[0], hidden[1])
        times = seconds({**calls, "mm_square": square_call, "mm_tall": tall_call}, plan.rounds)
        best = max(square / times["mm_square"]["median"], tall / times["mm_tall"]["median"])
        floor = rows * cases.loss_operations(context, hidden, frequencies) / best
        found = {"matrix_rate": best, "share_of_rate": floor / fastest(times)}
        clock = getattr(torch.cuda.get_device_properties(0), "clock_rate", 0) * 1e3
        if clock:
            units = torch.cuda.get_device_properties(0).multi_processor_count
            both = floor + 2 * rows * sum(hidden) / (16 * units * clock)
            found["share_with_exponentials"] = both / fastest(times)
        return {"rows": rows_of(times), "extra_memory": memory, **found}

    config = {"rows": rows, "context": context, "hidden": hidden, "frequencies": frequencies}
    config["head"] = sizes(head.weights)
    return timed("csm_loss", precision, config, lambda: compared(losses, head, dtype), measured, plan)


class Upstream:
    """A network and a gradient of its contexts."""

    def __init__(self, batch, features, hidden, context):
        torch.manual_seed(0)
        self.made = nn.MADE(features, hidden, context).to(DEVICE)
        self.x = torch.randn(batch, features, device=DEVICE)
        self.upstream = torch.randn(batch, features, context, device=DEVICE)

    def to(self, dtype):
        other = copy.copy(self)
        other.made = copy.deepcopy(self.made).to(dtype)
        other.x, other.upstream = self.x.to(dtype), self.upstream.to(dtype)
        return other

    def run(self, network=None):
        y = (network or self.made)(self.x)
        return list(torch.autograd.grad(y, list(self.made.parameters()), self.upstream))


def time_made(
    plan: Plan, batch: int = 1024, features: int = 784, hidden: tuple[int, ...] = (4096, 4096)
) -> Result:
    config = {"batch": batch, "features": features, "hidden": hidden, "context": 32}
    subject = Upstream(batch, features, hidden, 32).to(torch.bfloat16)
    made = subject.made
    folded = peers.use_plain_layers(peers.sharing(made), folded=True)
    multiplied = peers.use_plain_layers(peers.sharing(made))

    def measured(own: Own) -> Result:
        calls: Calls = {
            **own(subject.run),
            "folded": lambda: subject.run(folded),
            "mask_times_weight": lambda: subject.run(multiplied),
        }
        return {"rows": rows_of(seconds(calls, plan.rounds))}

    def check() -> Result:
        return compared(Upstream.run, subject, torch.bfloat16)

    return timed("masked_linear", "bfloat16", config, check, measured, plan)


def time_layer(
    precision: str, backward: bool, plan: Plan, rows: int = 1024, inputs: int = 4096, outputs: int = 4096
) -> Result:
    """One masked layer, or its gradients, beside plain PyTorch with the mask on the weight.

    ``share_of_rate`` as for csm_loss, of the operations that edges need.
    """
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    subject = Layer(rows, inputs, outputs).to(dtype)
    run = Layer.backward if backward else Layer.forward

    def measured(own: Own) -> Result:
        square, square_call = rate(dtype, 8192, 8192, 8192)
        calls: Calls = {
            **own(partial(run, subject)),
            "plain": lambda: on("reference", partial(run, subject)),
            "mm_square": square_call,
        }
        times = seconds(calls, plan.rounds)
        floor = (4 if backward else 2) * rows * subject.edges() * times["mm_square"]["median"] / square
        return {"rows": rows_of(times), "share_of_rate": floor / fastest(times)}

    config = {"rows": rows, "layer": [inputs, outputs]}
    op = "masked_linear_backward" if backward else "masked_linear"
    return timed(op, precision, config, lambda: compared(run, subject, dtype), measured, plan)


def time_linear_csm_loss(
    precision: str, plan: Plan, batch: int = 128, dimensions: int = 784, units: int = 512
) -> Result:
    """The last layer of a MADE and the loss together, with all gradients, beside plain PyTorch."""
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    subject = LinearHead(batch, dimensions, units).to(dtype)
    run = partial(losses, subject)

    def measured(own: Own) -> Result:
        calls: Calls = {**own(run), "plain": partial(on, "reference", run)}
        memory = {name: extra_memory(call) for name, call in calls.items()}
        return {"rows": rows_of(seconds(calls, plan.rounds)), "extra_memory": memory}

    config = {"batch": batch, "dimensions": dimensions, "units": units, "head": sizes(subject.weights)}
    return timed(
        "linear_csm_loss", precision, config, lambda: compared(losses, subject, dtype), measured, plan
    )


def time_langevin(precision: str, plan: Plan, rows: int = 4096, steps: int = 200) -> Result:
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    head = Head(rows).to(dtype)

    def loop() -> Tensor:
        layers = head.weights, head.biases, head.frequencies, head.activation
        return baselines.langevin_loop(head.context, head.x, *layers, [0.02], [1.0], [None], steps)

    def measured(own: Own) -> Result:
        calls = own(lambda: head.langevin([0.02], steps))
        graphs = {f"{name}_graphed": graphed(call) for name, call in calls.items()}
        times = seconds({**calls, **graphs, "loop": loop, "loop_graphed": graphed(loop)}, plan.rounds)
        return {"rows": rows_of(times)}

    def check() -> Result:
        return compared(lambda h: [h.langevin([0.02], steps)], head, dtype)

    config = {"rows": rows, "steps": steps, "head": sizes(head.weights)}
    return timed("langevin", precision, config, check, measured, plan)


def time_draw(precision: str, plan: Plan, case: draw.Draw = DRAW) -> Result:
    """512 samples of 784 variables, beside loops timed on 40 of them and taken 784 / 40 times.

    ``loop_graphed`` replays one CUDA graph of the forward pass and all steps of a variable. The check takes
    some variables, each given those before it, with the same noise.
    """
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    model = case.model().to(DEVICE).to(dtype)
    shares, steps = case.shares(), case.levels * case.steps
    variables = [d for share in shares for d in share]

    def drawn() -> Tensor:
        return model.sample(case.samples, seed=0, steps=case.steps)

    with torch.device(DEVICE), torch.no_grad():
        peer = draw.Loop(model)
        numbers = torch.arange(case.samples)

        def check() -> Result:
            x, again = drawn(), drawn()
            plain = peer.run(x, shares[0], case.steps, lambda d: draw._philox(numbers, d, dtype))
            found = deviation([x[:, shares[0]]], [plain], [peer.truth(x, shares[0], case.steps)])
            return {**found, "deterministic": torch.equal(x, again)}

        data = torch.randn(case.samples, case.features, dtype=dtype)

        def measured(own: Own) -> Result:
            replay = graphed(lambda: peer.run(data, variables[:1], case.steps))
            calls: Calls = {
                **own(drawn),
                "loop": lambda: peer.run(data, variables, case.steps),
                "loop_graphed": lambda: [replay() for _ in variables],
            }
            times = seconds(calls, min(plan.rounds, 3), warmup=1)
            for name in ("loop", "loop_graphed"):
                scale = case.features / len(variables)
                times[name] = {key: scale * value for key, value in times[name].items()}
            per_step = {name: times[name]["median"] / (case.features * steps) for name in own(drawn)}
            return {"rows": rows_of(times), "seconds_per_step": per_step}

        config = {"samples": case.samples, "features": case.features, "hidden": case.hidden, "steps": steps}
        config["head"] = sizes(model.head.weights)
        return timed("langevin_draw", precision, config, check, measured, plan)


def time_log_prob(precision: str, plan: Plan, rows: int = 512 * 784) -> Result:
    """log q of the rows of 512 samples of 784 variables, beside panels that are the same for all rows."""
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    panels = 4
    head = Conditional(rows).to(dtype)

    def eager() -> list[Tensor]:
        return [eager_quadrature(*head.arguments(), panels=2 * panels, part=8192)]

    @torch.no_grad()
    def measured(own: Own) -> Result:
        calls = {**own(lambda: [head.density().log_density]), "eager": eager}
        memory = {name: extra_memory(call) for name, call in calls.items()}
        return {"rows": rows_of(seconds(calls, plan.rounds)), "extra_memory": memory}

    config = {"rows": rows, "panels": panels, "panels_eager": 2 * panels, "head": sizes(head.weights)}
    first = head.first(4096)
    return timed(
        "conditional_density", precision, config, lambda: within_estimate(first, dtype), measured, plan
    )


def time_flow(precision: str, plan: Plan, rows: int = 512 * 784) -> Result:
    """The flow of as many rows between two levels, beside equal steps of order 4 for all rows."""
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    steps = 8
    head = Conditional(rows).to(dtype)
    levels = {"sigma_from": SIGMA, "sigma_to": 1.0}

    def eager() -> Any:
        return baselines.flow_rk4(*head.arguments(), **levels, steps=steps)

    @torch.no_grad()
    def measured(own: Own) -> Result:
        calls = {**own(lambda: head.flow(**levels)), "eager": eager}
        return {"rows": rows_of(seconds(calls, plan.rounds))}

    def check() -> Result:
        return compared(lambda h: [*h.flow(SIGMA, 1.0)[:2]], head.first(4096), dtype)

    config = {"rows": rows, "steps_eager": steps, "head": sizes(head.weights)}
    return timed("probability_flow", precision, config, check, measured, plan)


#: What has a bar comes first.
TIMINGS: dict[str, Callable[[Plan], Result]] = {
    "csm_loss tf32": partial(time_csm_loss, "tf32", 0),
    "csm_loss bfloat16": partial(time_csm_loss, "bfloat16", 0),
    "masked_linear bfloat16": time_made,
    "langevin tf32": partial(time_langevin, "tf32"),
    "langevin bfloat16": partial(time_langevin, "bfloat16"),
    "langevin_draw tf32": partial(time_draw, "tf32"),
    "langevin_draw bfloat16": partial(time_draw, "bfloat16"),
    "conditional_density tf32": partial(time_log_prob, "tf32"),
    "conditional_density float32": partial(time_log_prob, "float32"),
    "probability_flow float32": partial(time_flow, "float32"),
    "csm_loss float32": partial(time_csm_loss, "float32", 0),
    "csm_loss tf32, 16 frequencies": partial(time_csm_loss, "tf32", 16),
    "csm_loss bfloat16, 16 frequencies": partial(time_csm_loss, "bfloat16", 16),
    "probability_flow tf32": partial(time_flow, "tf32"),
    "conditional_density bfloat16": partial(time_log_prob, "bfloat16"),
    "probability_flow bfloat16": partial(time_flow, "bfloat16"),
}
TIMINGS |= {
    f"linear_csm_loss {precision}": partial(time_linear_csm_loss, precision)
    for precision in ("tf32", "bfloat16")
}
TIMINGS |= {
    f"{op} {precision}, {rows} rows": partial(time_layer, precision, op != "masked_linear", rows=rows)
    for op in ("masked_linear", "masked_linear_backward")
    for rows, precision in (
        *((rows, precision) for rows in (64, 1024) for precision in ("bfloat16", "tf32")),
        (1024, "float32"),
    )
}
PARTS = CHECKS | TIMINGS
