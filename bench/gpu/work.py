"""A process that one check or timing has for itself: ``python -m fastcsm.bench.gpu.work PLAN RESULT``."""

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import checks, rounds, subjects
from .run import Result, write_json

KINDS: dict[str, Callable[[str, subjects.Plan, subjects.Keep], Result]] = {
    "check": partial(checks.run_checks, 0),
    "edges": partial(checks.run_checks, 1),
    "launch": checks.launch,
    "warm": rounds.warm,
    "time": rounds.timed,
    "profile": rounds.profile,
    "ceilings": rounds.ceilings,
}


def main(plan: str, path: Path) -> None:
    """What the JSON text ``plan`` asks for, in the file ``path``, which is whole whatever ends it."""
    asked = json.loads(plan)
    subjects.DRY = asked["dry"]
    found: Result = {}

    def keep(result: Result) -> None:
        found.update(result)
        write_json(path, {"status": "crashed", "reason": "it ended before its end", **found})

    try:
        given = subjects.Plan(tuple(asked["backends"]), asked["rounds"])
        keep(KINDS[asked["kind"]](asked["name"], given, keep))
        found.setdefault("status", "passed")
    except Exception as error:
        traceback.print_exc()
        refused = subjects.refused(error)
        kind = "" if refused else f"{type(error).__name__}: "
        found |= {"status": "refused" if refused else "failed", "reason": kind + str(error)[:2000]}
    write_json(path, found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
