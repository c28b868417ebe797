"""Which calls go to CUDA C++ rather than Triton: ``python bench/gpu/measured.py bench/results/<gpu>.json``.

Reads what bench/gpu measured of both on a GPU and writes the table of the backends: a row for every op,
precision and head or masked layer that was checked and timed on both, the faster one and by how much. A row
speaks for heads, or layers and batches, no larger than the measured one; no row, no use of the CUDA kernel
but by name.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastcsm.backends import measured

TABLE = Path(measured.__file__).with_suffix(".json")


def row(result: dict[str, Any], file: str) -> measured.Row | None:
    """The row that one of the timings makes, or None if not both were right and timed."""
    rows, config = result.get("rows", {}), result.get("config", {})
    if "triton" not in rows or "cuda" not in rows or not {"head", "layer"} & config.keys():
        return None
    times = {name: rows[name].get("median") for name in ("triton", "cuda")}
    if None in times.values() or result["inaccurate"]:
        return None
    faster = min(times, key=lambda name: times[name])
    inputs, *widths = config.get("head") or config["layer"]
    return measured.Row(
        op=result["op"],
        precision=result["precision"],
        layers=len(widths),
        inputs=inputs,
        width=max(widths),
        rows=config["rows"] if "layer" in config else 0,
        backend=faster,
        ratio=round(max(times.values()) / min(times.values()), 2),
        file=file,
    )


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("file", type=Path, help="what bench/gpu time or report wrote")
    p.add_argument("--out", type=Path, default=TABLE)
    arguments = p.parse_args()
    document = json.loads(arguments.file.read_text(encoding="utf-8"))
    if document["dry"]:
        p.exit(1, f"{arguments.file} is of a dry run, which measures nothing.\n")
    results = document["timings"]
    found = [row(result, f"bench/results/{arguments.file.name}") for result in results.values()]
    rows = [entry._asdict() for entry in found if entry is not None]
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} of {len(results)} timings measured both backends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
