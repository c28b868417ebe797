"""Every GPU kernel checked, timed and tested on a bare machine: ``python bench/gpu check --out DIR``.

A copy of the tree needs the built libraries beside the tracked files, and Python torch and triton (``tests``:
pytest and hypothesis): nothing is installed, and we write nothing but in DIR. ``check`` compares every op,
precision and backend with the reference in float64 and runs NVIDIA's checkers; ``time`` times them beside
plain PyTorch; ``tests`` runs ``pytest -m gpu`` and the tests of the CUDA kernels on the device; ``report
FILE...`` puts what the others wrote into bench/results/<gpu>.json.

Each check, timing and test file is a process of its own, the most valuable first. DIR/<verb>.json holds all
of them from the start and is replaced whenever one ends, so that a run that is cut loses nothing;
DIR/<verb>.log has everything that they printed.
"""

import argparse
import shutil
import signal
from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path

from . import bars
from .run import ROOT, Job, Run

BACKENDS = ("triton", "cuda")
#: The most valuable first.
OPS = (
    *("csm_loss", "langevin_draw", "masked_linear", "langevin", "conditional_density"),
    *("probability_flow", "linear_csm_loss", "score_head"),
)
PRECISIONS = ("bfloat16", "tf32", "float32", "float16")
#: Rounds of timings: what has a bar, then the rest. Of the names before the comma the first two words are an
#: op and a precision.
TIMINGS = (
    ("csm_loss bfloat16", "csm_loss tf32", "langevin_draw bfloat16", "langevin_draw tf32"),
    (
        "masked_linear bfloat16, MADE",
        *("langevin tf32", "langevin bfloat16", "conditional_density tf32", "conditional_density float32"),
    ),
    (
        *("csm_loss float32", "probability_flow float32", "linear_csm_loss bfloat16", "linear_csm_loss tf32"),
        *("csm_loss tf32, 16 frequencies", "csm_loss bfloat16, 16 frequencies"),
        *(
            f"{op} {precision}, {rows} rows"
            for rows in (1024, 64)
            for precision in ("bfloat16", "tf32")
            for op in ("masked_linear", "masked_linear_backward")
        ),
        *("conditional_density bfloat16", "probability_flow bfloat16"),
        *(
            f"{op}, preconditioned"
            for op in ("langevin tf32", "conditional_density float32", "probability_flow float32")
        ),
    ),
)
SANITIZED = (
    *(f"{case} {backend}" for case in ("csm_loss bfloat16", "langevin_draw tf32") for backend in BACKENDS),
    *("masked_linear bfloat16 triton", "masked_linear tf32 cuda"),
    *("conditional_density float32 cuda", "probability_flow float32 triton"),
)
PROFILED = ("csm_loss bfloat16", "langevin_draw bfloat16")
FILES = ("kernels", "langevin", "masked_linear", "density", "flow")


def tool(name: str) -> str | None:
    """One of CUDA's programs, also where it is not on the path."""
    return shutil.which(name) or max(glob(f"/usr/local/cuda*/bin/{name}"), default=None)


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
    run.side_by_side([*first, *with_tool(run, tools, "compute-sanitizer"), *edges])


def with_tool(run: Run, jobs: list[Job], name: str) -> list[Job]:
    """The jobs, or none where the tool that is to run them was not found."""
    if run.options.dry_run or all(job.before for job in jobs):
        return jobs
    without(run, jobs, name)
    return []


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
    wanted = run.expect(profile(name, backend) for name in PROFILED for backend in BACKENDS)
    profiles = with_tool(run, wanted, "ncu")
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
        for part in ("kernels/test_gpu.py", "ops"):
            command = *options, "-m", "gpu", f"{ROOT}/tests/{part}"
            yield Job("tests", f"pytest -m gpu tests/{part}", command, 240.0)
        for name in FILES:
            file = f"{ROOT}/tests/emulated/emulated_{name}.py"
            yield Job("tests", f"emulated_{name}.py", (*options, file), 240.0, ("cuda",), (), blocking)

    wanted = run.expect(jobs())
    if run.options.dry_run:
        without(run, [job for job in wanted if job.backends], "a device")
        here = [job for job in wanted if not job.backends]
        wanted = [job._replace(arguments=(*job.arguments, "--collect-only")) for job in here]
    run.side_by_side(wanted)


VERBS = {"check": check, "time": measure, "tests": tests}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="bench/gpu", description=__doc__.splitlines()[0])
    verbs = p.add_subparsers(dest="verb", required=True, metavar="check | time | tests | report")
    for name, function in VERBS.items():
        v = verbs.add_parser(name, help=(function.__doc__ or "").split(":")[0])
        v.add_argument("--backends", default=list(BACKENDS), type=lambda text: text.split(","))
        v.add_argument("--rounds", type=int, default=20, help="of timing; default: 20")
        v.add_argument("--dry-run", action="store_true", help="tiny sizes, without a GPU: no figure counts")
        v.add_argument("--out", type=Path, required=True, metavar="DIR", help="all that is written is there")
        v.add_argument("--cache", type=Path, metavar="DIR", help="of compilers, instead; it may be kept")
        v.add_argument("--only", default="", metavar="REGEX", help="of 'section name' in the JSON")
        v.add_argument("--minutes", type=float, default=4.5, help="nothing runs after that; default: 4.5")
        v.add_argument("--workers", type=int, default=6, help="processes at once; default: 6")
    r = verbs.add_parser("report", help="JSON files of one GPU into bench/results/")
    r.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return p


def main() -> int:
    p = parser()
    arguments = p.parse_args()
    if arguments.verb == "report":
        return bars.main(arguments.files)
    run = Run(arguments.verb, arguments)
    signal.signal(signal.SIGTERM, run.stop)
    try:
        if not run.begin():
            p.exit(1, f"{run.document['ceilings']['all']['reason']}\n")
        VERBS[arguments.verb](run)
    finally:
        run.stop()
        run.write()
    print("\n".join(bars.summary(run.document)))
    return int(bool(bars.failures(run.document)))
