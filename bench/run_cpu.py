"""All committed CPU measurements in one command: ``python bench/run_cpu.py``.

Writes bench/results/<processor>-<threads>-threads.json and brings docs/results.md and README.md up to date
with it; with --out FILE it writes only that file.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastcsm import nn
from fastcsm.bench import publish
from fastcsm.bench.harness.case import Case
from fastcsm.bench.harness.measure import machine_slug
from fastcsm.bench.harness.report import format_header, format_table
from fastcsm.bench.harness.runner import document, memory_by_rows, run_case
from fastcsm.bench.micro import registry as micro
from fastcsm.bench.micro.training_step import step_table

ROOT = Path(__file__).resolve().parents[1]


def digits_model() -> nn.ARCSM:
    """The model of `make demo` without training: 8 x 8 digits, MADE 2 x 512, the default head."""
    made = nn.MADE(64, (512, 512), 32, activation="silu", dropout=0.3)
    return nn.ARCSM(made, nn.ScoreHead(33), noise=nn.NoiseSchedule(1.0, 0.06))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=25)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=Path, help="default: bench/results/<processor>-<threads>-threads.json")
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rounds, results = arguments.rounds, []

    def keep(result: dict) -> None:
        results.append(result)
        print(f"{format_table(result)}\n", flush=True)

    def measure(*cases: Case, precisions: Sequence[str] = ("highest", "medium")) -> None:
        for case in cases:
            keep(run_case(case, precisions=precisions, rounds=rounds))

    for case in micro.CsmLoss().variants():
        growth = memory_by_rows(case, (case.rows // 4, case.rows * 4))
        keep(run_case(case, rounds=rounds) | {"extra_bytes_by_rows": growth})
    measure(*micro.ScoresOfRows().variants())
    rows = micro.Langevin(rows=64), micro.Langevin(rows=4096), micro.LogDensity(), micro.FlowOfRows()
    measure(*rows, precisions=["highest"])
    measure(*micro.MaskedLayers().variants(), *micro.TrainingStep().variants())
    keep(step_table(model=digits_model(), batch=128, rounds=rounds))
    measure(*micro.Draw().variants(), micro.ExactDraw(), precisions=["highest"])

    measured = document(results, rounds)
    print(format_header(measured))
    out = arguments.out or ROOT / "bench" / "results" / f"{machine_slug()}.json"
    out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if arguments.out is None:
        publish.main()
    return int(any(row["status"] == "failed" for result in results for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
