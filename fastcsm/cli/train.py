"""``fastcsm train``: train a model into a run folder."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from .. import data, training
from ..evaluation import plots
from ..progress import Bar, tell
from ..training import checkpoint, folder
from ..training.config import RunConfig, annotation_of, kind_of
from ..training.recipes import RECIPES
from .options import Help, UsageError, add_device, device_of, picture, text_of

_RESUMABLE = (
    "epochs",
    "steps",
    "max_minutes",
    "patience",
    "finetune_steps",
    "log_every",
    "eval_every",
    "checkpoint_seconds",
)


def add(commands: Any, model: str) -> None:
    """The command's arguments; the options are those of a recipe, given by its model's name."""
    recipe = RECIPES[model]
    train = commands.add_parser(
        "train",
        help="train a model into a run folder",
        usage="fastcsm train --data NAME --out DIR [options]",
        description="Train an AR-CSM into a run folder: checkpoint.safetensors, config.json, log.csv, "
        "loss.png.\n"
        "Defaults marked [paper] are the paper's values for MNIST (appendix C).",
        formatter_class=Help,
    )
    run = train.add_argument_group("run")
    run.add_argument("--out", "--run", dest="out", metavar="DIR", required=True, help="run folder to create")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, bit-identically; with --data, start it if it is new",
    )
    run.add_argument("--model", choices=list(RECIPES), default=model, help="kind of model (default: arcsm)")
    names = list(recipe.presets)
    run.add_argument("--preset", choices=names, default=names[0], help=_preset_help(recipe))
    run.add_argument("--quiet", action="store_true", help="no progress")
    add_device(run)
    groups: dict[str, Any] = {"run": run}
    for item in _in_order(recipe):
        name = item.metadata["group"]
        if name not in groups:
            groups[name] = train.add_argument_group(name)
        _add_option(groups[name], item)


def _in_order(recipe: type[RunConfig]) -> list[dataclasses.Field]:
    """The data's options, the model's own, and those of any run."""
    common = {item.name for item in dataclasses.fields(RunConfig)}
    data_first = {"data": 0}
    own = dataclasses.fields(recipe)
    return sorted(own, key=lambda item: data_first.get(item.metadata["group"], 1 + (item.name in common)))


def _preset_help(recipe: type[RunConfig]) -> str:
    parts = []
    for name, values in recipe.presets.items():
        settings = ", ".join(f"{k} {text_of(v)}" for k, v in values.items())
        parts.append(f"{name}: {settings or 'the defaults'}")
    return f"settings to start from, which options override; {'; '.join(parts)} (default: %(default)s)"


def _add_option(group: Any, item: dataclasses.Field) -> None:
    kind, _ = kind_of(item)
    flag, meta = "--" + item.name.replace("_", "-"), item.metadata
    text = meta["help"].replace("%", "%%")
    if item.default is not None and kind is not bool and item.name != "data":
        text += f" (default: {text_of(item.default)})"
    text += " [paper]" if meta["paper"] else ""
    options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = kind
        options["metavar"] = {"int": "N", "float": "X", "str": "NAME"}[kind.__name__]
        if meta["choices"]:
            options["choices"], options["metavar"] = meta["choices"], None
        if annotation_of(item).startswith("tuple"):
            options["nargs"] = "+"
    group.add_argument(flag, **options)


def run(given: argparse.Namespace) -> int:
    """Train, and draw the loss curve."""
    recipe = RECIPES[given.model]
    run, device = Path(given.out), device_of(given.device)
    fields = [item.name for item in dataclasses.fields(recipe)]
    explicit = {name: getattr(given, name) for name in fields if hasattr(given, name)}
    resume = given.resume
    if "data" in explicit:
        explicit["data"] = _found(explicit["data"])
    if resume and "data" in explicit and folder.is_new(run):
        tell(f"fastcsm: nothing to resume in '{run}', starting it")
        resume = False
    if resume:
        config = _resumed(checkpoint.read(run, tensors=()).config, explicit)
    else:
        if not folder.is_new(run):
            raise UsageError(
                f"out '{run}' exists: give another folder, or --resume to go on with the run in it"
            )
        if "data" not in explicit:
            raise UsageError("data is not given, expected --data with a name or a file")
        config = recipe(**(recipe.presets[given.preset] | explicit))
    with Bar(f"reading '{config.data}'", quiet=given.quiet):
        loaded = _load(config, resume)
    summary = training.train(config, loaded, run, device=device, resume=resume, quiet=given.quiet)
    if summary["run"]:
        path = run / "loss.png"
        picture(path, lambda _: plots.loss_curve(training.read_log(run / "log.csv"), path), given.quiet)
    if summary["run"] and not given.quiet:
        losses = f"loss {summary['loss']:.4f}" if summary["loss"] is not None else "no step to do"
        if summary["held_out"] is not None:
            losses += f", held out {summary['held_out']:.4f} per dimension"
        print(f"{run}: {summary['steps']} steps in {summary['seconds']:.1f} s, {losses}")
    return 0


def _found(name: str) -> str:
    """A data set's name, or where its file is, so that the run can be resumed from another folder."""
    return name if name in data.names() or not Path(name).is_file() else os.path.abspath(name)


def _load(config: RunConfig, resume: bool) -> data.Dataset:
    names = ("grey_levels", "logit_alpha", "dequantize", "validation")
    try:
        return data.load(config.data, **{name: getattr(config, name) for name in names})
    except FileNotFoundError as error:
        if not resume:
            raise
        raise FileNotFoundError(f"{error}, on which the run was trained: say by --data where it is") from None


def _resumed(config: RunConfig, explicit: dict[str, Any]) -> RunConfig:
    """The run's configuration with another budget; anything else must be as it was.

    Of the data the fingerprint is compared, not where they are.
    """
    for name, value in explicit.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in (*_RESUMABLE, "data") and value != getattr(config, name):
            raise UsageError(
                f"{name} is {text_of(value)} but the run was started with {text_of(getattr(config, name))}: "
                f"expected only {', '.join(_RESUMABLE)} to differ when resuming"
            )
    return dataclasses.replace(config, **{k: v for k, v in explicit.items() if k in (*_RESUMABLE, "data")})
