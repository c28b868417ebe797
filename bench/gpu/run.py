"""Processes, one a check, timing or test file, and the document of what they found.

Needs no more than Python: on a bare machine it is what starts the others.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from . import bars

ROOT = Path(__file__).resolve().parents[2]
#: What runs a check or a timing, told in JSON which.
WORK = ("-m", "fastcsm.bench.gpu.work")
Result = dict[str, Any]


class Job(NamedTuple):
    """One process.

    Attributes:
        section, name: where its result is in the document.
        arguments: of Python.
        seconds: the longest it may take.
        backends: those it runs.
        before: a tool that runs it, and the tool's options.
        environment: further variables.
    """

    section: str
    name: str
    arguments: tuple[str, ...]
    seconds: float
    backends: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def strict(value: Any) -> Any:
    """The value with words for numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: strict(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, document: Result) -> None:
    """Replaces the file at once, so that whoever reads it finds a whole one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(strict(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def package(folder: Path) -> Path:
    """A folder from which fastcsm is imported whole, as an installation has it."""
    target = folder / "fastcsm"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for entry in (ROOT / "fastcsm").iterdir():
        if entry.name not in ("__pycache__", "kernels", "bench"):
            (target / entry.name).symlink_to(entry)
    for name in ("kernels", "bench"):
        (target / name).symlink_to(ROOT / name)
    return folder


def environment(scratch: Path, cache: Path, dry: bool, workers: int) -> dict[str, str]:
    """Of every process: the tree's code found without an installation, and all caches in one folder."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("FASTCSM_")}
    variables.pop("TRITON_INTERPRET", None)
    given = filter(None, [variables.get("PYTHONPATH")])
    paths = package(scratch / "site"), ROOT / "tests" / "ops", *given
    torch = importlib.util.find_spec("torch")
    # Nothing is written beside the sources; where torch is not compiled, that is done once, elsewhere.
    compiled = torch and Path(importlib.util.cache_from_source(torch.origin or "")).exists()
    bytecode = "PYTHONDONTWRITEBYTECODE" if compiled else "PYTHONPYCACHEPREFIX"
    return {
        **variables,
        bytecode: "1" if compiled else str(cache / "pycache"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "XDG_CACHE_HOME": str(cache / "other"),
        "TMPDIR": str(scratch / "tmp"),
        "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // workers, 1)),
        **({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if dry else {}),
    }


class Run:
    """Processes, and the document of what they found."""

    def __init__(self, verb: str, options: argparse.Namespace):
        self.start, self.options, self.verb = time.monotonic(), options, verb
        self.out = options.out.resolve()
        self.scratch = self.out / "scratch" / verb
        for name in ("logs", "results", "tmp"):
            (self.scratch / name).mkdir(parents=True, exist_ok=True)
        cache = (options.cache or self.out / "scratch" / "cache").resolve()
        self.environment = environment(self.scratch, cache, options.dry_run, options.workers)
        self.document: Result = {"schema": bars.SCHEMA, "verb": verb, "dry": options.dry_run}
        self.lock, self.running = threading.Lock(), set[subprocess.Popen]()
        (self.out / f"{verb}.log").write_text("", encoding="utf-8")

    def worker(self, section: str, kind: str, name: str, *backends: str, **changes: Any) -> Job:
        """A job of work.py's; ``changes`` are of the job, or its label, or the rounds."""
        label = " ".join([name, *backends]) if kind != "time" else name
        plan = {"kind": kind, "name": name, "backends": backends, "dry": self.options.dry_run}
        plan["rounds"] = changes.pop("rounds", self.options.rounds)
        arguments = (*WORK, json.dumps(plan))
        return Job(section, changes.pop("label", label), arguments, backends=backends, **changes)

    def left(self) -> float:
        return 60 * self.options.minutes - (time.monotonic() - self.start)

    def expect(self, jobs: Iterable[Job]) -> list[Job]:
        """Name the jobs in the document; those that are to run."""
        wanted, missing = [], self.document.get("missing", {})
        for job in jobs:
            absent = [f"{name}: {'; '.join(missing[name])}" for name in job.backends if missing.get(name)]
            entry = {"status": "not run", "reason": "the run was cut before it"}
            if not re.search(self.options.only, f"{job.section} {job.name}"):
                entry["reason"] = "left out by --only"
            elif not set(job.backends) <= set(self.options.backends):
                entry["reason"] = "left out by --backends"
            elif absent:
                entry = {"status": "refused", "reason": " ".join(absent)}
            else:
                wanted.append(job)
            self.document.setdefault(job.section, {})[job.name] = entry
        self.write()
        return wanted

    def write(self) -> None:
        seconds = round(time.monotonic() - self.start, 1)
        write_json(self.out / f"{self.verb}.json", self.document | {"seconds": seconds})

    def side_by_side(self, jobs: Sequence[Job], workers: int | None = None) -> None:
        with ThreadPoolExecutor(workers or self.options.workers) as pool:
            for future in [pool.submit(self.run, job) for job in jobs]:
                future.result()

    def run(self, job: Job) -> Result:
        begin = time.monotonic()
        stem = re.sub(r"[^\w.-]+", "-", f"{job.section} {job.name}")
        log, found = self.scratch / "logs" / f"{stem}.log", self.scratch / "results" / f"{stem}.json"
        found.unlink(missing_ok=True)
        seconds = min(job.seconds, self.left())
        if seconds < 2:
            result: Result = {"status": "not run", "reason": "the time was over"}
        else:
            status = self.process(job, log, found, seconds)
            kept = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
            result = {**kept, **status} if status else kept
            result["seconds"] = round(time.monotonic() - begin, 1)
            if job.section == "profiles":
                result["figures"] = bars.figures(log.read_text(encoding="utf-8", errors="replace"))
        with self.lock:
            self.document[job.section][job.name] = result
            self.write()
            if log.exists():
                head = f"\n==== {job.section}: {job.name}: {result['status']}\n"
                with open(self.out / f"{self.verb}.log", "a", encoding="utf-8") as whole:
                    whole.write(head + log.read_text(encoding="utf-8", errors="replace")[-60_000:])
            print(bars.line(job.section, job.name, result), flush=True)
        return result

    def process(self, job: Job, log: Path, found: Path, seconds: float) -> Result:
        """Runs it; what is to be said where the process has not said it in its result."""
        works = job.arguments[:2] == WORK
        command = [*job.before, sys.executable, *job.arguments, *([str(found)] if works else [])]
        variables = self.environment | dict(job.environment)
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=self.scratch, env=variables, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self.running.add(process)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                if seconds < job.seconds:
                    reason = f"the time was over, {seconds:.0f} s after it began"
                    return {"status": "not run", "reason": reason}
                return {"status": "timeout", "reason": f"took over {seconds:.0f} s"}
            finally:
                self.running.discard(process)
                end(process)
        if code < 0 and self.left() <= 0:
            return {"status": "not run", "reason": "the run was ended while it ran"}
        if code == 0 and (found.exists() or not works):
            return {} if found.exists() else {"status": "passed"}
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line]
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"status": "crashed" if code < 0 else "failed", "reason": f"{why}: {' | '.join(lines[-3:])}"}

    def stop(self, *_: Any) -> None:
        """Ends what runs and begins nothing more."""
        self.options.minutes = 0.0
        for process in list(self.running):
            end(process)

    def begin(self) -> bool:
        """The machine and its ceilings; whether there is one to run on."""
        asked = re.search(self.options.only, "ceilings all") is not None
        job = self.worker("ceilings", "ceilings", "all", rounds=self.options.rounds * asked, seconds=90.0)
        self.document["ceilings"] = {}
        result = self.run(job)
        self.document |= {name: result.pop(name) for name in ("machine", "missing") if name in result}
        self.write()
        return "machine" in self.document


def end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
