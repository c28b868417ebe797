"""Timing, memory and checking: how a number comes to be, whatever is measured."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy
import torch
from torch import Tensor

import fastcsm

#: The folder that Python finds the package in.
ROOT = Path(fastcsm.__file__).resolve().parents[1]


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every call in every round.

    Each round runs every call once, starting one further along each time, so that drift of the machine and
    effects of the neighbour fall on all alike. ``warmup`` calls each are made before the first round.
    """
    names = list(calls)
    for name in names:
        for _ in range(warmup):
            calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            result = calls[name]()
            seconds[name].append(time.perf_counter() - start)
            del result
    return seconds


def quartiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles as {"median", "q1", "q3"}."""
    if len(seconds) == 1:
        return dict.fromkeys(("q1", "median", "q3"), seconds[0])
    q1, median, q3 = quantiles(seconds, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3}


def at_precision(precision: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call under torch.set_float32_matmul_precision(precision), which is put back afterwards."""

    def run() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return call()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def errors(
    outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor], scales: Mapping[str, float]
) -> dict[str, float]:
    """Norm of the difference over the norm of the reference, or over ``scales[name]`` where given.

    NaN for an output that is missing or has another shape.
    """
    result = {}
    for name, truth in reference.items():
        if name not in outputs or outputs[name].shape != truth.shape:
            result[name] = float("nan")
            continue
        scale = scales.get(name) or truth.norm().item() or 1.0
        result[name] = (outputs[name].double() - truth).norm().item() / scale
    return result


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_extra(call: Callable[[], Mapping[str, Tensor]], warm: Callable[[], object]) -> int:
    """Bytes by which the resident set peaks during ``call``, less the bytes of the tensors it returns.

    ``warm`` runs first, to load code and start threads. Linux only (OSError elsewhere). The process must have
    been started by :func:`extra_memory`, whose allocator settings give freed memory back at once.
    """
    warm()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    outputs = call()
    peak = _status("VmHWM")
    return max(0, peak - before - sum(tensor.nbytes for tensor in outputs.values()))


class Probe:
    """A process that measures the :func:`peak_extra` of contenders, one after the other; Linux only.

    Its allocator gives freed memory back at once. A context manager.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def extra_memory(self, request: dict[str, Any]) -> int | None:
        """Bytes, or None where they cannot be measured; :mod:`.probe` tells what a request holds."""
        if self._process is None:
            self._process = self._start()
        pipes = self._process.stdin, self._process.stdout
        try:
            print(json.dumps(request), file=pipes[0], flush=True)
            return json.loads(pipes[1].readline())["extra_bytes"]
        except (OSError, ValueError):
            self.__exit__()
            return None

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        return subprocess.Popen(
            [sys.executable, "-m", "fastcsm.bench.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )


def extra_memory(request: dict[str, Any]) -> int | None:
    """:meth:`Probe.extra_memory` of one contender in a process of its own."""
    with Probe() as probe:
        return probe.extra_memory(request)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def machine_slug() -> str:
    """<processor>-<threads>-threads, for the names of files."""
    name = re.sub(r"[^a-z0-9]+", "-", _processor().lower()).strip("-")
    return f"{name}-{torch.get_num_threads()}-threads"


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "fastcsm/__init__.py") == "":
            return None
        dirty = git("status", "--porcelain", "--", "fastcsm", "kernels", "csrc", "setup.py")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of what ran, and the commit of a source checkout (None outside one)."""
    return {
        "fastcsm": fastcsm.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
