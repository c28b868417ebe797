"""``fastcsm demo``: an AR-CSM of the digits in at most three minutes, its samples, the time of a step."""

import argparse
import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .. import backends, data
from ..atomic import atomic_file
from ..evaluation import evaluate, plots
from ..models.model import Model
from ..progress import Bar, tell
from ..training import Config, checkpoint, read_log, train
from ..training.config import RunConfig
from ..training.folder import is_new
from . import bench
from .options import Help, add_device, device_of, picture

SETTINGS = Config.presets["digits"] | {"data": "digits", "steps": 4000, "max_minutes": 2.5, "eval_every": 250}
_PICTURE = 100
_SEED = 0


def add(commands: Any) -> None:
    """The command's arguments."""
    demo = commands.add_parser(
        "demo",
        help="train on the digits for up to three minutes, draw samples, time a step",
        description="Train on scikit-learn's 8x8 digits for up to three minutes, draw samples, "
        "and time a training step by four ways to the derivative. A second call reuses the trained model.",
        formatter_class=Help,
    )
    demo.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder of the demo (default: %(default)s)"
    )
    add_device(demo)


def run(given: argparse.Namespace) -> int:
    """Train (or reuse the trained model), sample, time a step.

    Writes samples.png, loss.png, summary.json and table.txt into the demo's folder. A folder left by an
    interrupted demo is continued. One that holds a run with other settings is kept under another name, and
    the demo starts afresh.
    """
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)
    run, device = Path(given.out), device_of(given.device)
    config = Config(**SETTINGS)
    resume = _prepare(run, config)
    with Bar("reading 'digits'"):
        digits = data.load("digits")
    trained = train(config, digits, run, device=device, resume=resume)
    picture(run / "loss.png", lambda _: plots.loss_curve(read_log(run / "log.csv"), run / "loss.png"))
    print(f"trained {trained['steps']} steps in {trained['seconds']:.0f} s")

    model, started = checkpoint.load(run, device=device), time.monotonic()
    with Bar("sampling", unit="dimension") as bar:
        options = config.sample_options("langevin") | {"denoise": True, "progress": bar.to}
        x = model.sample(_PICTURE, "langevin", seed=_SEED, **options)
    seconds = time.monotonic() - started
    drawn, shown = digits.transform.decode(x), digits.transform.decode(digits.held_out("test", 0, _PICTURE))
    path = run / "samples.png"
    picture(path, lambda _: plots.samples(drawn, digits.transform, path, data=shown))
    print(f"drew {_PICTURE} samples in {seconds:.1f} s")

    held_out = digits.held_out("test", 0).to(next(model.parameters()))
    with Bar("losses"):
        levels = evaluate(model, held_out, seed=1)
    table, rows = _table(model, config)
    print(table)
    summary = {
        "training": trained,
        "sampling": {"samples": _PICTURE, "seconds": round(seconds, 2), "seed": _SEED},
        "held_out": levels,
        "step_table": rows,
        "info": json.loads(json.dumps(backends.info(), default=str)),
        "config": config.to_dict(),
    }
    for name, text in (("summary.json", json.dumps(summary, indent=1)), ("table.txt", table)):
        with atomic_file(run / name) as file:
            file.write((text + "\n").encode())
    print(f"see {path} (data beside samples) and {run / 'loss.png'}")
    return 0


def _prepare(run: Path, config: RunConfig) -> bool:
    """Whether ``run`` holds this demo's checkpoint; anything else there is moved aside."""
    if is_new(run):
        return False
    try:
        if checkpoint.read(run, tensors=()).config == config:
            print(f"going on with the model in {run}; remove that folder to train afresh")
            return True
        reason = "a run with other settings"
    except checkpoint.CheckpointError:
        reason = "something else than a demo"
    number = 1
    while (aside := run.with_name(f"{run.name}.{number}")).exists():
        number += 1
    shutil.move(run, aside)
    tell(f"{run} held {reason}, which is kept as {aside}")
    return False


def _table(model: Model, config: RunConfig) -> tuple[str, dict[str, Any]]:
    tell("timing a training step by each way to the derivative")
    with Bar("timing"):
        rows = bench.load("micro.training_step").step_table(model=model, batch=config.batch_size)
    return bench.load("harness.report").format_table(rows), rows
