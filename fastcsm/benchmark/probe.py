"""Peak extra memory of one contender in a process of its own: JSON request on stdin, answer on stdout."""

import json
import sys
from dataclasses import replace

import torch

from .cases import CASES, Case
from .measure import at_precision, peak_extra

WARM_ROWS = 64


def probe(request: dict) -> int:
    """Bytes; the request has the entries op, config, contender and threads."""
    torch.set_num_threads(request["threads"])
    config = dict(request["config"])
    case: Case = CASES[request["op"]](**{**config, "hidden": tuple(config["hidden"])})
    name = request["contender"]
    precisions = ["highest", "medium"]

    def build(sizes: Case):
        contender = sizes.contenders(precisions, compiled=name.startswith("compile"))[name]
        return contender, at_precision(contender.precision, contender.call)

    contender, call = build(case)
    if contender.compiled:
        return peak_extra(call, warm=call)
    return peak_extra(call, warm=build(replace(case, rows=WARM_ROWS))[1])


if __name__ == "__main__":
    print(json.dumps({"extra_bytes": probe(json.load(sys.stdin))}))
