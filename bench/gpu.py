"""Every GPU kernel checked, timed and tested on a bare machine: ``python bench/gpu.py check --out DIR``.

A copy of the tree needs the built libraries beside the tracked files, and Python torch, triton and pytest:
nothing is installed, and nothing is written but in DIR. ``check`` compares every op, precision and backend
with the reference in float64 and runs NVIDIA's checkers; ``time`` times them beside plain PyTorch; ``tests``
runs ``pytest -m gpu`` and the tests of the CUDA kernels on the device; ``report FILE...`` puts what the
others wrote into bench/results/<gpu>.json and README.md.

Each check, timing and test file is a process of its own, the most valuable first. DIR/<verb>.json holds all
of them from the start and is replaced whenever one ends, so that a run that is cut loses nothing;
DIR/<verb>.log has everything that they printed.
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
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # nothing is written beside the sources

import gpu_report

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("triton", "cuda")
#: The most valuable first.
OPS = (
    "csm_loss",
    "langevin_draw",
    "masked_linear",
    "langevin",
    "conditional_density",
    "probability_flow",
    "linear_csm_loss",
    "score_head",
)
PRECISIONS = ("bfloat16", "tf32", "float32", "float16")
#: Rounds of timings: what has a bar, then the rest. Of the names before the comma the first two words are an
#: op and a precision.
TIMINGS = (
    ("csm_loss bfloat16", "csm_loss tf32", "langevin_draw bfloat16", "langevin_draw tf32"),
    (
        "masked_linear bfloat16, MADE",
        "langevin tf32",
        "langevin bfloat16",
        "conditional_density tf32",
        "conditional_density float32",
    ),
    (
        "csm_loss float32",
        "probability_flow float32",
        "linear_csm_loss bfloat16",
        "linear_csm_loss tf32",
        "csm_loss tf32, 16 frequencies",
        "csm_loss bfloat16, 16 frequencies",
        *(
            f"{op} {precision}, {rows} rows"
            for rows in (1024, 64)
            for precision in ("bfloat16", "tf32")
            for op in ("masked_linear", "masked_linear_backward")
        ),
        "conditional_density bfloat16",
        "probability_flow bfloat16",
    ),
)
SANITIZED = (
    "csm_loss bfloat16 triton",
    "csm_loss bfloat16 cuda",
    "langevin_draw tf32 triton",
    "langevin_draw tf32 cuda",
    "masked_linear bfloat16 triton",
    "masked_linear tf32 cuda",
    "conditional_density float32 cuda",
    "probability_flow float32 triton",
)
PROFILED = ("csm_loss bfloat16", "langevin_draw bfloat16")
FILES = ("kernels", "langevin", "masked_linear", "density", "flow")
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
    """A folder from which fastcsm is imported whole, its kernels included, as an installation has it."""
    target = folder / "fastcsm"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for entry in (ROOT / "fastcsm").iterdir():
        if entry.name not in ("__pycache__", "kernels"):
            (target / entry.name).symlink_to(entry)
    (target / "kernels").symlink_to(ROOT / "kernels")
    return folder


def environment(scratch: Path, cache: Path, dry: bool, workers: int) -> dict[str, str]:
    """Of every process: the tree's code found without an installation, and all caches in one folder."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("FASTCSM_")}
    variables.pop("TRITON_INTERPRET", None)
    given = filter(None, [variables.get("PYTHONPATH")])
    paths = package(scratch / "site"), ROOT / "bench", ROOT / "tests" / "ops", ROOT / "tests", *given
    torch = importlib.util.find_spec("torch")
    # Nothing is written beside the sources; where torch is not compiled, that is done once, elsewhere.
    compiled = torch and Path(importlib.util.cache_from_source(torch.origin)).exists()
    bytecode = (
        {"PYTHONDONTWRITEBYTECODE": "1"} if compiled else {"PYTHONPYCACHEPREFIX": str(cache / "pycache")}
    )
    return (
        variables
        | bytecode
        | {
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
    )


def tool(name: str) -> str | None:
    """One of CUDA's programs, also where it is not on the path."""
    return shutil.which(name) or max(glob(f"/usr/local/cuda*/bin/{name}"), default=None)


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
        self.document: Result = {"schema": gpu_report.SCHEMA, "verb": verb, "dry": options.dry_run}
        self.lock, self.running = threading.Lock(), set[subprocess.Popen]()
        (self.out / f"{verb}.log").write_text("", encoding="utf-8")

    def worker(self, section: str, kind: str, name: str, *backends: str, **changes: Any) -> Job:
        """A job that calls ``work`` below."""
        label = " ".join([name, *backends]) if kind != "time" else name
        rounds = changes.pop("rounds", self.options.rounds)
        arguments = (__file__, "work", kind, name, f"--rounds={rounds}", f"--backends={','.join(backends)}")
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
                result["figures"] = gpu_report.figures(log.read_text(encoding="utf-8", errors="replace"))
        with self.lock:
            self.document[job.section][job.name] = result
            self.write()
            if log.exists():
                head = f"\n==== {job.section}: {job.name}: {result['status']}\n"
                with open(self.out / f"{self.verb}.log", "a", encoding="utf-8") as whole:
                    whole.write(head + log.read_text(encoding="utf-8", errors="replace")[-60_000:])
            print(gpu_report.line(job.section, job.name, result), flush=True)
        return result

    def process(self, job: Job, log: Path, found: Path, seconds: float) -> Result:
        """Runs it; what is to be said where the process has not said it in its result."""
        command = [*job.before, sys.executable, *job.arguments]
        if job.arguments[0] == __file__:
            command += [f"--result={found}", *(["--dry-run"] if self.options.dry_run else [])]
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
                    return {
                        "status": "not run",
                        "reason": f"the time was over, {seconds:.0f} s after it began",
                    }
                return {"status": "timeout", "reason": f"took over {seconds:.0f} s"}
            finally:
                self.running.discard(process)
                end(process)
        if code < 0 and self.left() <= 0:
            return {"status": "not run", "reason": "the run was ended while it ran"}
        if code == 0 and (found.exists() or job.arguments[0] != __file__):
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


def check(run: Run) -> None:
    def checks(kind: str) -> Iterator[Job]:
        for precisions in (PRECISIONS[:-1], PRECISIONS[-1:]):  # CUDA C++ refuses the last
            for name in (f"{op} {precision}" for op in OPS for precision in precisions):
                for backend in BACKENDS:
                    label = f"{name} {backend}" + ", edges" * (kind == "edges")
                    yield run.worker("checks", kind, name, backend, label=label, seconds=120.0)

    def sanitizer() -> Iterator[Job]:
        program = tool("compute-sanitizer")
        options = "--target-processes", "application-only", "--error-exitcode", "9", "--print-limit", "20"
        for name in SANITIZED:
            case, _, backend = name.rpartition(" ")
            for checker in ("memcheck", "racecheck"):
                yield run.worker(
                    "sanitizer", "launch", case, backend, seconds=100.0, label=f"{checker} {name}",
                    before=(program or "", "--tool", checker, *options) if program else (),
                    environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
                )  # fmt: skip

    first, tools, edges = run.expect(checks("check")), run.expect(sanitizer()), run.expect(checks("edges"))
    if not run.options.dry_run and not all(job.before for job in tools):
        without(run, tools, "compute-sanitizer")
        tools = []
    run.side_by_side([*first, *tools, *edges])


def without(run: Run, jobs: Iterable[Job], name: str) -> None:
    for job in jobs:
        run.document[job.section][job.name]["reason"] = f"{name} was not found"


def measure(run: Run) -> None:
    """Rounds of timings: what each compiles side by side, then one timing after the other, alone."""

    def parts(name: str) -> Iterator[Job]:
        for backend in BACKENDS:
            yield run.worker("warmed", "warm", name, backend, seconds=120.0)
        if name.startswith("csm_loss"):  # one of its baselines is compiled
            yield run.worker("warmed", "warm", name, label=f"{name} baselines", seconds=100.0)

    def profile(name: str, backend: str) -> Job:
        program = tool("ncu")
        options = f"--set full --clock-control none -k regex:{name.split()[0]} -c 1".split()
        before = (program, *options) if program else ()
        return run.worker("profiles", "profile", name, backend, seconds=60.0, before=before)

    order = [[(name, run.expect(parts(name))) for name in names] for names in TIMINGS]
    timed = {
        name: bool(run.expect([run.worker("timings", "time", name, seconds=90.0)]))
        for names in TIMINGS
        for name in names
    }
    profiles = run.expect(profile(name, backend) for name in PROFILED for backend in BACKENDS)
    if not run.options.dry_run and not all(job.before for job in profiles):
        without(run, profiles, "ncu")
        profiles = []
    for number, names in enumerate(order):
        chosen = [(name, jobs) for name, jobs in names if timed[name]]
        run.side_by_side([job for _, jobs in chosen for job in jobs])
        for name, jobs in chosen:
            states = {job.backends[0]: status(run, job) for job in jobs if job.backends}
            backends = [one for one, state in states.items() if state in ("passed", "inaccurate")]
            if backends:
                result = run.run(run.worker("timings", "time", name, *backends, seconds=90.0))
                result["inaccurate"] = [one for one in backends if states[one] == "inaccurate"]
            else:
                run.document["timings"][name]["reason"] = "no backend ran it"
        if number == 1:
            run.side_by_side(profiles, workers=1)


def status(run: Run, job: Job) -> str:
    return run.document[job.section][job.name]["status"]


def tests(run: Run) -> None:
    """Of the device: ``pytest -m gpu``, and the tests of the CUDA kernels that elsewhere are emulated."""
    options = ("-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", f"--rootdir={ROOT}")
    blocking = (("CUDA_LAUNCH_BLOCKING", "1"),)

    def jobs() -> Iterator[Job]:
        for part in ("test_gpu.py", "ops"):
            yield Job(
                "tests", f"pytest -m gpu tests/{part}", (*options, "-m", "gpu", f"{ROOT}/tests/{part}"), 240.0
            )
        for name in FILES:
            file = f"{ROOT}/tests/emulated_{name}.py"
            yield Job("tests", f"emulated_{name}.py", (*options, file), 240.0, ("cuda",), (), blocking)

    wanted = run.expect(jobs())
    if run.options.dry_run:
        without(run, [job for job in wanted if job.backends], "a device")
        wanted = [
            job._replace(arguments=(*job.arguments, "--collect-only")) for job in wanted if not job.backends
        ]
    run.side_by_side(wanted)


VERBS = {"check": check, "time": measure, "tests": tests}


def work(arguments: argparse.Namespace) -> int:
    """What a process of :class:`Run` does."""
    import gpu_checks
    import gpu_subjects
    import gpu_timings

    gpu_subjects.DRY = arguments.dry_run
    kinds = {**gpu_checks.KINDS, **gpu_timings.KINDS}
    plan = gpu_subjects.Plan(tuple(filter(None, arguments.backends)), arguments.rounds)
    found: Result = {}

    def keep(result: Result) -> None:
        found.update(result)
        write_json(arguments.result, {"status": "crashed", "reason": "it ended before its end", **found})

    try:
        keep(kinds[arguments.kind](arguments.name, plan, keep))
        found.setdefault("status", "passed")
    except Exception as error:
        traceback.print_exc()
        refused = isinstance(error, RuntimeError) and " cannot run " in str(error)
        kind = "" if refused else f"{type(error).__name__}: "
        found |= {"status": "refused" if refused else "failed", "reason": kind + str(error)[:2000]}
    write_json(arguments.result, found)
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = p.add_subparsers(dest="verb", required=True, metavar="check | time | tests | report")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--backends", default=list(BACKENDS), type=lambda text: text.split(","))
    common.add_argument("--rounds", type=int, default=20, help="of timing; default: 20")
    common.add_argument("--dry-run", action="store_true", help="tiny sizes, without a GPU: no figure counts")
    for name, function in VERBS.items():
        v = verbs.add_parser(name, parents=[common], help=(function.__doc__ or "").split(":")[0])
        v.add_argument("--out", type=Path, required=True, metavar="DIR", help="all that is written is there")
        v.add_argument("--cache", type=Path, metavar="DIR", help="of compilers, instead; it may be kept")
        v.add_argument("--only", default="", metavar="REGEX", help="of 'section name' in the JSON")
        v.add_argument("--minutes", type=float, default=4.5, help="nothing runs after that; default: 4.5")
        v.add_argument("--workers", type=int, default=6, help="processes at once; default: 6")
    r = verbs.add_parser("report", help="JSON files of one GPU into bench/results/ and the READMEs")
    r.add_argument("files", type=Path, nargs="+", metavar="FILE")
    w = verbs.add_parser("work", parents=[common])
    w.add_argument("kind")
    w.add_argument("name")
    w.add_argument("--result", type=Path, required=True)
    return p


def main() -> int:
    p = parser()
    arguments = p.parse_args()
    if arguments.verb == "report":
        return gpu_report.main(arguments.files)
    if arguments.verb == "work":
        return work(arguments)
    run = Run(arguments.verb, arguments)
    signal.signal(signal.SIGTERM, run.stop)
    try:
        if not run.begin():
            p.exit(1, f"{run.document['ceilings']['all']['reason']}\n")
        VERBS[arguments.verb](run)
    finally:
        run.stop()
        run.write()
    print("\n".join(gpu_report.summary(run.document)))
    return int(bool(gpu_report.failures(run.document)))


if __name__ == "__main__":
    sys.exit(main())
