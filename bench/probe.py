"""Peak extra memory of contenders: a JSON request a line on stdin, an answer a line on stdout."""

import contextlib
import json
import sys

import torch

from .harness.case import Case, from_config
from .harness.measure import at_precision, peak_extra
from .micro.registry import CASES


def probe(request: dict) -> int:
    """Bytes; the request has the entries op, config, contender and threads."""
    torch.set_num_threads(request["threads"])
    case: Case = from_config(CASES[request["op"]], request["config"])
    name = request["contender"]

    def build(sizes: Case):
        found = sizes.contenders(["highest", "medium"], compiled=name.startswith("compile"))[name]
        return found, at_precision(found.precision, found.memory or found.call)

    contender, call = build(case)
    if contender.compiled:
        return peak_extra(call, warm=call)
    return peak_extra(call, warm=build(case.warm())[1])


if __name__ == "__main__":
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            found = probe(json.loads(line))
        print(json.dumps({"extra_bytes": found}), flush=True)
