"""The backend "reference": the specification itself, in plain PyTorch; it runs every op everywhere."""

import importlib
from typing import Any

from .registry import Implementation, Request, module_of


class Reference:
    """Plain PyTorch, in ``reference/``."""

    name = "reference"

    def missing(self) -> list[str]:
        return []

    def refuses(self, op: str, request: Request) -> list[str]:
        return [] if hasattr(self._module(op), op) else [f"it has no {op}"]

    def implementation(self, op: str) -> Implementation:
        return getattr(self._module(op), op)

    @staticmethod
    def _module(op: str) -> Any:
        return importlib.import_module(f"fastcsm.reference.{module_of(op)}")
