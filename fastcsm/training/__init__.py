"""Training a model into a run folder."""

from .checkpoint import Checkpoint, CheckpointError, load
from .folder import TrainingError, read_log
from .loop import Interrupted, train
from .recipes.arcsm import ARCSMConfig as Config

PRESETS = Config.presets

__all__ = [
    "PRESETS",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "Interrupted",
    "TrainingError",
    "load",
    "read_log",
    "train",
]
