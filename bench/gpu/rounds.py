"""How a process times an op on the backends, beside plain PyTorch and what the GPU can do.

A call is captured in a CUDA graph, several times over where it is short, and the graph is replayed between
two events while the GPU is kept busy before the first: the host's time does not count. What cannot be
captured is queued in the same way, and loops that a user would run from Python are launched from Python; each
row says which. Every round runs every call once, so that ratios are of the same rounds.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from support import shares
from torch import Tensor

from fastcsm import backends

from ..harness import measure
from . import peaks, subjects
from .checks import kernels
from .subjects import Keep, Plan, Result, on, set_precision, synchronize
from .timings import NO_GRADIENTS, Call, Tensors, Timing, make


class Replay(NamedTuple):
    """A call made ready: how it is run, how often the call is in it, and in which way."""

    run: Call
    repeats: int
    way: str


def graph_of(call: Call) -> Call:
    """The replay of a CUDA graph of the call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def ready(call: Call, launched: bool) -> Replay:
    """The call compiled, warm, and captured if it can be."""
    for _ in range(1 if subjects.DRY else 3):
        call()
    synchronize()
    if subjects.DRY or launched:
        return Replay(call, 1, "dry" if subjects.DRY else "launched")
    short = elapsed(Replay(call, 1, "queued"))
    repeats = min(max(round(1e-3 / short), 1), 20)

    def several() -> None:
        for _ in range(repeats):
            call()

    try:
        return Replay(graph_of(several), repeats, "graph")
    except Exception as error:
        print(f"not captured: {type(error).__name__}: {error}", flush=True)
        torch.cuda.synchronize()
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


def warm(name: str, plan: Plan, keep: Keep) -> Result:
    """A timing's calls once: of a backend, which must be right, or of what it is compared with."""
    timing, precision = make(name)
    if not plan.backends:
        for peer, call in timing.peers.items():
            call()
            print("ran", peer, flush=True)
        return {}
    (backend,) = plan.backends
    with torch.set_grad_enabled(timing.op not in NO_GRADIENTS):
        share = error(timing, backend)
        whole = finite(on(backend, timing.own))
    found: Result = {"kernels": kernels(timing.op, precision, backend)}
    found |= {} if share is None else {"share": share}
    if not whole:
        return {**found, "status": "inaccurate", "reason": "not all of its results are finite"}
    if share is not None and not share <= 1:
        return {**found, "status": "inaccurate", "reason": f"its error is {share:.3g} times what is allowed"}
    return found


def profile(name: str, plan: Plan, keep: Keep) -> Result:
    """A timing's call once, for a profiler to watch."""
    timing, _ = make(name)
    on(plan.backends[0], timing.own)
    synchronize()
    return {}


def timed(name: str, plan: Plan, keep: Keep) -> Result:
    """A timing's calls, ready and in rounds."""
    timing, precision = make(name)
    found: Result = {"op": timing.op, "precision": precision, "config": timing.config, "rows": {}}
    if not subjects.DRY:
        found["gpu"] = torch.cuda.get_device_name(0)
    own: dict[str, Call] = {backend: partial(on, backend, timing.own) for backend in plan.backends}
    ceilings = dict(rates(timing, precision))
    calls: dict[str, Call] = {**own, **timing.peers, **{label: rate.call for label, rate in ceilings.items()}}
    with torch.set_grad_enabled(timing.op not in NO_GRADIENTS):
        if timing.memory:
            measured = {**own, **timing.peers}
            found["extra_memory"] = {label: extra_memory(call) for label, call in measured.items()}
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


def rates(timing: Timing, precision: str) -> Iterator[tuple[str, peaks.Rate]]:
    """What the GPU does at most, to be measured in the same rounds."""
    if not timing.operations:
        return
    yield "mm_square", peaks.square(precision)
    for shape in timing.mm:
        yield f"mm_{'x'.join(map(str, shape))}", peaks.product(precision, *shape)
    if precision in ("bfloat16", "tf32") and not subjects.DRY:
        yield "mma_loop", peaks.mma_loop(precision)


def summary(
    timing: Timing,
    seconds: dict[str, list[float]],
    replays: dict[str, Replay],
    ceilings: dict[str, peaks.Rate],
    lost: Mapping[str, str],
) -> Result:
    """Rows, with ratios to each backend as medians over the rounds, and shares."""
    own = [label for label in seconds if label in ("triton", "cuda")]
    rows: Result = {label: {"error": reason} for label, reason in lost.items()}
    for label, values in seconds.items():
        pairs = {name: zip(values, seconds[name], strict=True) for name in own}
        over = {name: statistics.median(a / b for a, b in each) for name, each in pairs.items()}
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


def ceilings(name: str, plan: Plan, keep: Keep) -> Result:
    """The machine, why a backend is missing on it, and with rounds what it does at most."""
    if not subjects.DRY and not torch.cuda.is_available():
        raise RuntimeError("bench/gpu cannot run here: torch finds no CUDA device; --dry-run needs none")
    known = {label: backends.registry.known[subjects.stand_in(label)] for label in ("triton", "cuda")}
    missing = {label: backend.missing() for label, backend in known.items()}
    found: Result = {"machine": machine(), "missing": missing}
    keep(found)
    makers: dict[str, tuple[str, Callable[[], peaks.Rate]]] = {
        "copy": ("bfloat16", peaks.copy),
        **{f"mm {p}": (p, partial(peaks.square, p)) for p in ("bfloat16", "tf32", "float32")},
        **{f"mma loop {p}": (p, partial(peaks.mma_loop, p)) for p in ("bfloat16", "tf32")},
        **{f"dot loop {p}": (p, partial(peaks.dot_loop, p)) for p in ("bfloat16", "tf32")},
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
