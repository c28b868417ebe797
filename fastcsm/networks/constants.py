"""State of a module that is not learned: saved and moved with it, and left alone by what averages buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Constants(nn.Module):
    """A module with constant tensors and settings.

    Constants are integers that its construction determines. They are in the state_dict under their own names,
    go where the module goes, and are no buffers: ``torch.optim.swa_utils.AveragedModel(use_buffers=True)``
    averages those, and the average of equal integers, a sum of products cut off, is another integer.

    Settings are values the weights were trained for, as :meth:`settings` returns them. They travel in the
    metadata of a state_dict; where a state has others, load_state_dict refuses it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: list[str] = []

    def constant(self, name: str, value: Tensor) -> None:
        """Make a tensor the constant ``name``, an attribute."""
        self._constants.append(name)
        setattr(self, name, value)

    def settings(self) -> dict[str, Any]:
        """What a state must agree with, by name: strings and numbers."""
        return {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name in self._constants:
            setattr(self, name, fn(getattr(self, name)))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Copies: an average that is written into the values of a state would cut integers off here too.
        destination |= {prefix + name: getattr(self, name).clone() for name in self._constants}
        settings = self.settings()
        if settings and hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["settings"] = settings

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = [prefix + name for name in self._constants]
        found = {key: state_dict.pop(key) for key in keys if key in state_dict}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        state_dict |= found
        for name, key in zip(self._constants, keys, strict=True):
            own, value = getattr(self, name), found.get(key)
            if value is None:
                missing_keys += [key] * strict
            elif value.shape != own.shape:
                error_msgs.append(
                    f"size mismatch for {key}: it has shape {tuple(value.shape)}, expected {tuple(own.shape)}"
                )
            elif local_metadata.get("assign_to_params_buffers") or own.is_meta:
                setattr(self, name, value)
            else:
                own.copy_(value.round() if value.is_floating_point() else value)
        saved = local_metadata.get("settings", {})
        error_msgs += [
            f"{prefix}{name} of the state is {saved[name]!r}, expected {value!r} like the module's"
            for name, value in self.settings().items()
            if name in saved and saved[name] != value
        ]
