"""Checkpoints: one safetensors file with the run's configuration and state as JSON in its header.

Reading one never executes code. Writing one is atomic: the file is completed and flushed under a temporary
name in the same folder and then renamed, so a crash at any moment leaves the previous checkpoint whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import atomic_file
from ..data import Transform
from ..models.model import Model
from . import recipes
from .config import RunConfig
from .seeds import own_defaults

FILE_NAME = "checkpoint.safetensors"
FORMAT = "fastcsm-checkpoint"
VERSION = 1
_PREFIXES = ("model", "ema", "best", "optimizer")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another program or of another version."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        config: the run's hyper-parameters.
        transform: between raw data and model space.
        fingerprint: of the training data.
        state: JSON-able training state (``step``, ``stage``, ``elapsed`` in seconds, ...).
        tensors: by name, under the prefixes ``model.``, ``ema.``, ``best.`` and ``optimizer.``.
    """

    config: RunConfig
    transform: Transform
    fingerprint: str
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix.``, without it."""
        start = prefix + "."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def path_of(run: str | Path) -> Path:
    """The checkpoint file of a run folder; the path of a file is returned as it is."""
    run = Path(run)
    return run if run.suffix == ".safetensors" else run / FILE_NAME


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a file or into a run folder, atomically."""
    to_bytes = _safetensors().torch.save
    tensors = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in checkpoint.tensors.items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(checkpoint.config.to_dict()),
        "transform": json.dumps(checkpoint.transform.to_dict()),
        "fingerprint": checkpoint.fingerprint,
        "state": json.dumps(checkpoint.state),
    }
    with atomic_file(path_of(path)) as file:
        file.write(to_bytes(tensors, metadata))


def read(run: str | Path, *, tensors: tuple[str, ...] = _PREFIXES) -> Checkpoint:
    """Read the checkpoint of a run folder (or a checkpoint file), with the tensors under the given prefixes.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or of another version.
    """
    path = path_of(run)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint '{path}': expected a run folder made by fastcsm train")
    metadata, values = _content(path, tensors)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' was not written by fastcsm")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"'{path}' has checkpoint version {metadata.get('version')}, expected {VERSION}"
        )
    try:
        return Checkpoint(
            recipes.from_dict(json.loads(metadata["config"])),
            Transform.from_dict(json.loads(metadata["transform"])),
            metadata["fingerprint"],
            dict(json.loads(metadata["state"])),
            values,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{path}' has a damaged header ({error})") from None


def _content(path: Path, prefixes: tuple[str, ...]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata of a file, and its tensors under the given prefixes."""
    safetensors = _safetensors()
    try:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.split(".", 1)[0] in prefixes]  # noqa: SIM118
                return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
        except OSError:  # no memory maps on this file system
            content = path.read_bytes()
            values = safetensors.torch.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            found = {name: value for name, value in values.items() if name.split(".", 1)[0] in prefixes}
            return header.get("__metadata__", {}), found
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"'{path}' is not a whole safetensors file ({error})") from None


def load(run: str | Path, *, ema: bool = True, device: str | torch.device = "cpu") -> Model:
    """The trained model of a run, in evaluation mode, ready for ``score``, ``loss`` and ``sample``.

    Args:
        run: run folder or checkpoint file.
        ema: take the averaged weights, where the run kept them: the last, or those of the lowest held-out
            loss where the run keeps the best. False takes the last weights, not averaged.
        device: where to put the model.

    Raises:
        CheckpointError: as :func:`read`.
    """
    checkpoint = read(run, tensors=("model", "ema", "best"))
    wanted = ("best", "ema", "model") if ema else ("model",)
    prefix = next((name for name in wanted if checkpoint.under(name)), "model")
    return restore(checkpoint, prefix, path_of(run)).to(device).eval()


@own_defaults()
def restore(checkpoint: Checkpoint, prefix: str, path: str | Path) -> Model:
    """The model of a checkpoint with the weights under ``prefix``; ``path`` is named in errors."""
    model = checkpoint.config.build(checkpoint.transform.features)
    model.data_range = checkpoint.transform.data_range
    model.to_stage(checkpoint.state.get("stage", 0))
    weights, expected = checkpoint.under(prefix), model.state_dict()
    for name in sorted(set(weights) ^ set(expected)):
        raise CheckpointError(f"'{path}' does not fit its own configuration: tensor '{prefix}.{name}'")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"'{path}': tensor '{prefix}.{name}' has shape {tuple(weights[name].shape)}, "
                f"expected {tuple(value.shape)}"
            )
    model.load_state_dict(weights)
    return model


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError(
            "checkpoints need safetensors, which is not installed: pip install safetensors"
        ) from None
    return safetensors
