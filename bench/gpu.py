"""Every Triton and CUDA C++ kernel checked, then timed, on one device: ``python bench/gpu.py``.

Every part (``gpu_checks.py``, ``gpu_timings.py``) runs in a process of its own for each backend, so that one
that fails loses no other. All run once side by side, which checks each op against the reference in float64
and fills the compilers' caches; then the timings run one after the other, of those backends together whose
check passed. Speeds are ratios to baselines in the same process (``fastcsm.benchmark.baselines``) and shares
of the rate of torch.mm in the same rounds. The results are written to bench/results/<gpu>.json as they come;
nothing runs after 8 minutes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from fastcsm.benchmark import measure

RESULTS = Path(__file__).parent / "results"
#: Names of parts begin with this where they check and time nothing.
CHECK = "check "
Result = dict[str, Any]
#: A part and a backend.
Job = tuple[str, str]


def machine() -> Result:
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


def in_a_process(part: str, backends: Sequence[str], rounds: int, seconds: float) -> Result:
    """What a part returns of some backends, or {"error": why it returned nothing}."""
    if seconds < 1:
        return {"error": "not run: the time was over"}
    options = ["--part", part, "--backends", ",".join(backends), "--rounds", str(rounds)]
    command = [sys.executable, __file__, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took over {seconds:.0f} s"}
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def failed_checks(part: str, result: Result) -> list[str]:
    """The checks of a part that did not pass, and the error that kept it from checking."""
    if "error" in result:
        return [f"{part}: {result['error']}"]
    return [
        f"{part} {name}"
        for name, entry in result["checks"].items()
        if "refused" not in entry and not (entry["passed"] and entry["deterministic"])
    ]


def side_by_side(
    jobs: Sequence[Job], workers: int, run: Callable[[Job], Result]
) -> Iterator[tuple[Job, Result]]:
    """Jobs and their results, as they end."""
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()


def collect(
    checks: Sequence[str],
    timings: Sequence[str],
    backends: Sequence[str],
    run: Callable[[str, Sequence[str], bool], Result],
    workers: int,
    write: Callable[[Result], None],
) -> Result:
    """The document of all parts: ``run(part, backends, final)`` runs one, and times it where ``final``.

    ``write`` is given the document whenever it has grown.
    """
    document: Result = {"checks": {}, "results": {}, "failed": []}
    passed: dict[str, list[str]] = {part: [] for part in timings}
    jobs = [(part, backend) for backend in backends for part in (*timings, *checks)]
    for (part, backend), result in side_by_side(jobs, workers, lambda job: run(job[0], [job[1]], False)):
        bad = failed_checks(part, result)
        document["failed"] += bad
        if part.startswith(CHECK):
            found = result.get("checks") or {f"{backend} all": result}
            document["checks"].setdefault(part, {}).update(found)
        elif not bad:
            passed[part].append(backend)
        print(f"{part}, {backend}: " + (", ".join(bad) or "passed"), flush=True)
        write(document)
    for part in (part for part in timings if passed[part]):
        document["results"][part] = result = run(part, sorted(passed[part], key=backends.index), True)
        document["failed"] += failed_checks(part, result)
        print(part, result.get("error", ""), result.get("share_of_rate", ""), flush=True)
        for name, row in result.get("rows", {}).items():
            print(f"  {name:<20}{1e3 * row['median']:10.3f} ms {row['over_fastcsm']:8.2f} x", flush=True)
        write(document)
    return document


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--check", action="store_true", help="check the kernels and time nothing")
    p.add_argument("--only", default="", metavar="TEXT", help="only parts whose name contains TEXT")
    p.add_argument("--minutes", type=float, default=8.0, help="no part starts, or runs, after that")
    p.add_argument("--out", type=Path, help="default: bench/results/<gpu>.json")
    p.add_argument("--backends", default="triton,cuda", metavar="NAMES", help="default: triton,cuda")
    p.add_argument("--part", help=argparse.SUPPRESS)
    arguments = p.parse_args()
    if not torch.cuda.is_available():
        p.exit(1, "bench/gpu.py needs a CUDA device, and torch finds none.\n")
    from gpu_timings import BACKENDS, CHECKS, PARTS, TIMINGS, Plan

    backends = arguments.backends.split(",")
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](Plan(tuple(backends), arguments.rounds))))
        return 0
    for name, why in [(name, BACKENDS[name].missing()) for name in backends]:
        if why:
            print(f"without {name}: {'; '.join(why)}", flush=True)
            backends.remove(name)
    start = time.monotonic()
    head = {"machine": machine()}
    slug = re.sub(r"[^a-z0-9]+", "-", head["machine"]["gpu"].lower()).strip("-")
    out = arguments.out or RESULTS / f"{slug}.json"

    def write(document: Result) -> None:
        text = json.dumps({**head, "seconds": time.monotonic() - start, **document}, indent=1)
        out.write_text(text + "\n", encoding="utf-8")

    def run(part: str, names: Sequence[str], final: bool) -> Result:
        left = 60 * arguments.minutes - (time.monotonic() - start)
        # Once with Triton fills the caches of what is compiled, baselines among it.
        return in_a_process(part, names, arguments.rounds if final else int("triton" in names), left)

    checks, timings = ([part for part in kind if arguments.only in part] for kind in (CHECKS, TIMINGS))
    workers = max((os.cpu_count() or 2) - 2, 1)
    document = collect(checks, [] if arguments.check else timings, backends, run, workers, write)
    print("\n".join(document["failed"]))
    return int(bool(document["failed"]))


if __name__ == "__main__":
    sys.exit(main())
