"""Every Triton kernel checked, then timed, on one CUDA device: ``python bench/gpu.py``.

Each op is compared with the reference in float64 first; if one fails, nothing is timed. Speeds are ratios to
baselines in the same process (``fastcsm.benchmark.baselines``) and shares of the rate of torch.mm in the same
rounds. Writes bench/results/<gpu>.json; takes less than 8 minutes.
"""

import argparse
import copy
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastcsm
from fastcsm import functional, nn
from fastcsm.benchmark import baselines, cases, measure, peers

RESULTS = Path(__file__).parent / "results"
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "high"),
    "float16": (torch.float16, "high"),
}
Calls = dict[str, Callable[[], Any]]


class Head:
    """Random rows and a head on the device, as the baselines and ``functional`` take them."""

    def __init__(self, rows, context=32, hidden=(128, 128), frequencies=0, activation="softplus"):
        torch.manual_seed(0)
        sizes = [context + 1 + 2 * frequencies, *hidden, 1]
        self.context = torch.randn(rows, context, device="cuda")
        self.x = torch.randn(rows, device="cuda")
        self.weights = [torch.randn(o, i, device="cuda") / i**0.5 for i, o in pairwise(sizes)]
        self.biases = [0.3 * torch.randn(o, device="cuda") for o in sizes[1:]]
        self.frequencies = 3 * torch.randn(frequencies, device="cuda")
        self.activation, self.hidden = activation, hidden

    def to(self, dtype):
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.to(dtype))
            elif isinstance(value, list):
                setattr(other, name, [item.to(dtype) for item in value])
        return other

    def leaves(self):
        return [t.detach().requires_grad_() for t in (self.context, *self.weights, *self.biases)]

    def split(self, leaves):
        layers = len(self.weights)
        return leaves[0], self.x, leaves[1 : 1 + layers], leaves[1 + layers :]

    def loss(self, leaves):
        """The fused loss."""
        return functional.csm_loss(
            *self.split(leaves), activation=self.activation, frequencies=self.frequencies
        )

    def baseline(self, function, leaves):
        return function(*self.split(leaves), self.frequencies, self.activation, 1.0, 1.0)

    def scores(self, leaves):
        s, ds = functional.score_head(
            *self.split(leaves), activation=self.activation, frequencies=self.frequencies
        )
        return (s * 0.7 + ds * 0.3).float().sum()

    def langevin(self, sizes, steps, seed=3):
        return functional.langevin(
            self.context,
            self.x,
            self.weights,
            self.biases,
            activation=self.activation,
            frequencies=self.frequencies,
            step_sizes=sizes,
            steps=steps,
            seed=seed,
        )


def with_gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def on(backend: str, call: Callable[[], Any]) -> Any:
    with fastcsm.backend(backend):
        return call()


def deviation(got: list[Tensor], plain: list[Tensor], exact: list[Tensor]) -> dict[str, Any]:
    """Errors relative to each norm, pooled, as a few elements of plain PyTorch may be right by chance.

    At most twice those of plain PyTorch in the same dtype, and 4 units of rounding, are allowed.
    """
    error = allowed = units = 0.0
    for g, p, e in zip(got, plain, exact, strict=True):
        size = e.norm().item() or 1.0
        error += ((g.double() - e).norm().item() / size) ** 2
        allowed += ((p.double() - e).norm().item() / size) ** 2
        units += torch.finfo(g.dtype).eps ** 2
    ratio = error**0.5 / (2 * allowed**0.5 + 4 * units**0.5)
    return {"error_over_allowed": ratio, "passed": ratio <= 1.0}


def checks(precision: str) -> dict[str, Any]:
    """Every op against the reference in float64, at sizes about the edges of tiles."""
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    found = {}

    def compare(name: str, run: Callable[[Any], list[Tensor]], subject: Any) -> None:
        low = subject.to(dtype)
        exact = on("reference", lambda: run(subject.to(dtype).to(torch.float64)))
        plain, got = on("reference", lambda: run(low)), on("triton", lambda: run(low))
        again = on("triton", lambda: run(low))
        found[name] = deviation(got, plain, exact)
        found[name]["deterministic"] = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))

    for rows, hidden, frequencies, activation in (
        (4097, (128, 128), 0, "softplus"),
        (1000, (128, 128), 16, "silu"),
        (65, (17, 9), 3, "tanh"),
        (129, (130, 257), 0, "gelu"),
        (300, (32, 48, 64, 16), 2, "elu"),
    ):
        head = Head(rows, 32, hidden, frequencies, activation)
        title = f"{rows} x {hidden} E={frequencies} {activation}"

        def losses(h):
            leaves = h.leaves()
            return with_gradients(h.loss(leaves), leaves)

        def scores(h):
            leaves = h.leaves()
            return with_gradients(h.scores(leaves), leaves)

        compare(f"csm_loss {title}", losses, head)
        compare(f"score_head {title}", scores, head)
        compare(f"langevin {title}", lambda h: [h.langevin([0.02], 5)], head)
    for batch, features, outputs in ((1024, 784, 512), (65, 300, 129), (1, 1, 1)):
        compare(f"masked_linear {batch} x {features} x {outputs}", Layer.run, Layer(batch, features, outputs))
    return found


class Layer:
    """A masked layer with sorted degrees and an upstream gradient."""

    def __init__(self, batch, features, outputs):
        torch.manual_seed(0)
        shapes = (batch, features), (outputs, features), (outputs,)
        self.tensors = [torch.randn(shape, device="cuda") for shape in shapes]
        self.tensors[1] /= features**0.5
        self.degrees = [torch.randint(0, 99, (n,), device="cuda").sort().values for n in (features, outputs)]

    def to(self, dtype):
        other = copy.copy(self)
        other.tensors = [t.to(dtype) for t in self.tensors]
        return other

    def run(self):
        leaves = [t.detach().requires_grad_() for t in self.tensors]
        y = functional.masked_linear(*leaves, *self.degrees, activation="silu")
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def seconds(calls: Calls, rounds: int) -> dict[str, dict[str, float]]:
    """Median and quartiles of every call, rounds interleaved, by events on the device."""
    for call in calls.values():
        for _ in range(3):
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
    a, b = (torch.randn(s, device="cuda", dtype=dtype) for s in ((m, k), (k, n)))
    return 2.0 * m * k * n, lambda: a @ b


def rows_of(times: Mapping[str, dict[str, float]], own: str) -> dict[str, Any]:
    """The times and, for every baseline, how many times longer than ``own`` it took."""
    return {
        name: {**spread, "over_fastcsm": spread["median"] / times[own]["median"]}
        for name, spread in times.items()
    }


def time_csm_loss(precision: str, frequencies: int, rounds: int) -> dict[str, Any]:
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    rows, context, hidden = 401408, 32, (128, 128)
    head = Head(rows, context, hidden, frequencies, "silu" if frequencies else "softplus").to(dtype)
    leaves = head.leaves()
    compiled = torch.compile(baselines.csm_tangent)

    def run(function: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: with_gradients(function(), leaves)

    calls: Calls = {
        "fastcsm": run(lambda: head.loss(leaves)),
        "double_backward": run(lambda: head.baseline(baselines.csm_double_backward, leaves)),
        "jvp": run(lambda: head.baseline(baselines.csm_jvp, leaves)),
        "tangent": run(lambda: head.baseline(baselines.csm_tangent, leaves)),
        "tangent_compiled": run(lambda: head.baseline(compiled, leaves)),
    }
    memory = {name: extra_memory(call) for name, call in calls.items()}
    square, square_call = rate(dtype, 8192, 8192, 8192)
    tall, tall_call = rate(dtype, rows, hidden[0], hidden[1])
    times = seconds({**calls, "mm_square": square_call, "mm_tall": tall_call}, rounds)
    best = max(square / times["mm_square"]["median"], tall / times["mm_tall"]["median"])
    operations = rows * cases.loss_operations(context, hidden, frequencies)
    return {
        "op": "csm_loss",
        "config": {"rows": rows, "context": context, "hidden": hidden, "frequencies": frequencies},
        "precision": precision,
        "rows": rows_of(times, "fastcsm"),
        "extra_memory": memory,
        "matrix_rate": best,
        "share_of_rate": operations / times["fastcsm"]["median"] / best,
    }


def time_made(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    batch, features, hidden, context = 1024, 784, (4096, 4096), 32
    made = nn.MADE(features, hidden, context).cuda().bfloat16()
    x = torch.randn(batch, features, device="cuda", dtype=torch.bfloat16)
    models = {
        "fastcsm": made,
        "folded": peers.use_plain_layers(peers.sharing(made), folded=True),
        "mask_times_weight": peers.use_plain_layers(peers.sharing(made)),
    }
    upstream = torch.randn_like(made(x))

    def run(model: torch.nn.Module) -> Callable[[], list[Tensor]]:
        return lambda: list(torch.autograd.grad(model(x), list(made.parameters()), upstream))

    calls: Calls = {name: run(model) for name, model in models.items()}
    return {
        "op": "masked_linear",
        "config": {"batch": batch, "features": features, "hidden": hidden, "context": context},
        "precision": "bfloat16",
        "rows": rows_of(seconds(calls, rounds), "fastcsm"),
    }


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


def time_langevin(precision: str, rounds: int) -> dict[str, Any]:
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    rows, steps = 4096, 200
    head = Head(rows).to(dtype)

    def loop() -> Tensor:
        layers = head.weights, head.biases, head.frequencies, head.activation
        return baselines.langevin_loop(head.context, head.x, *layers, [0.02], [1.0], [None], steps)

    calls: Calls = {
        "fastcsm": lambda: head.langevin([0.02], steps),
        "fastcsm_graphed": graphed(lambda: head.langevin([0.02], steps)),
        "loop": loop,
        "loop_graphed": graphed(loop),
    }
    return {
        "op": "langevin",
        "config": {"rows": rows, "steps": steps},
        "precision": precision,
        "rows": rows_of(seconds(calls, rounds), "fastcsm"),
    }


def machine() -> dict[str, Any]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        **measure.versions(),
    }


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--check", action="store_true", help="check the kernels and time nothing")
    p.add_argument("--out", type=Path, help="default: bench/results/<gpu>.json")
    arguments = p.parse_args()
    if not torch.cuda.is_available():
        p.exit(1, "bench/gpu.py needs a CUDA device, and torch finds none.\n")
    start = time.perf_counter()
    document: dict[str, Any] = {"machine": machine(), "checks": {}, "results": []}
    failed = []
    for precision in PRECISIONS:
        document["checks"][precision] = found = checks(precision)
        bad = [name for name, entry in found.items() if not (entry["passed"] and entry["deterministic"])]
        failed += [f"{precision}: {name}" for name in bad]
        print(f"{precision}: {len(found) - len(bad)} of {len(found)} checks passed", flush=True)
    print("\n".join(failed))
    if not arguments.check:
        measurements: list[Callable[[], dict[str, Any]]] = [
            *(
                lambda precision=precision, frequencies=frequencies: time_csm_loss(
                    precision, frequencies, arguments.rounds
                )
                for precision in ("tf32", "bfloat16", "float32")
                for frequencies in (0, 16)
            ),
            lambda: time_made(arguments.rounds),
            lambda: time_langevin("tf32", arguments.rounds),
            lambda: time_langevin("bfloat16", arguments.rounds),
        ]
        for run in [] if failed else measurements:
            result = on("auto", run)
            document["results"].append(result)
            print(result["op"], result["precision"], result["config"], result.get("share_of_rate", ""))
            for name, row in result["rows"].items():
                print(f"  {name:<20}{1e3 * row['median']:10.3f} ms {row['over_fastcsm']:8.2f} x", flush=True)
    document["seconds"] = time.perf_counter() - start
    slug = re.sub(r"[^a-z0-9]+", "-", document["machine"]["gpu"].lower()).strip("-")
    out = arguments.out or RESULTS / f"{slug}.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
