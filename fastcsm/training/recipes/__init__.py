"""What belongs to one kind of model: its options, its presets and how it is built, by the model's name."""

from typing import Any

from ..config import RunConfig
from .arcsm import ARCSMConfig

RECIPES: dict[str, type[RunConfig]] = {kind.model: kind for kind in (ARCSMConfig,)}


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The configuration that was saved as ``values``; one that names no model is an AR-CSM's.

    Raises:
        ValueError: the model or a field is not known, or a value is out of range.
    """
    name = values.get("model", ARCSMConfig.model)
    if name not in RECIPES:
        raise ValueError(f"config has the model '{name}', expected one of {', '.join(RECIPES)}")
    return RECIPES[name].from_dict(values)
