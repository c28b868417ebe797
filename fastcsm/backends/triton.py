"""The backend "triton": fused Triton kernels for CUDA devices, in ``kernels/``, which are loaded by name."""

import importlib
import importlib.util
import os
from typing import Any

import torch

from .libraries import CUDA
from .registry import Implementation, Request, chosen, device_missing, mismatches, module_of

KERNELS = "fastcsm.kernels"


class Triton:
    """Fused Triton kernels for CUDA devices.

    With TRITON_INTERPRET=1 they run in Triton's interpreter on CPU tensors, for tests: slowly, and only where
    the backend is chosen by name.
    """

    name = "triton"
    ops = (*CUDA.ops, "langevin_draw")
    composed = ("conditional_density_backward",)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    interpreted_dtypes = (torch.float32, torch.float64)
    max_width = 512

    @staticmethod
    def interpreted() -> bool:
        return os.environ.get("TRITON_INTERPRET") == "1"

    def missing(self) -> list[str]:
        if importlib.util.find_spec("triton") is None:
            return ["the package triton is not installed: pip install 'fastcsm[triton]'"]
        if importlib.util.find_spec(KERNELS) is None:
            return ["its kernels are not importable: install fastcsm, or link fastcsm/kernels to kernels/"]
        return [] if self.interpreted() else device_missing()

    def refuses(self, op: str, request: Request) -> list[str]:
        if (op if op.endswith("_draw") else module_of(op)) not in self.ops or op in self.composed:
            return [f"it has no {op}"]
        interpreted = self.interpreted()
        reasons = []
        if interpreted and chosen() != self.name:
            reasons.append("Triton's interpreter is on (TRITON_INTERPRET=1), which is for tests")
        device, dtypes = ("cpu", self.interpreted_dtypes) if interpreted else ("cuda", self.dtypes)
        reasons += mismatches(request, device, dtypes)
        if module_of(op) != "masked_linear" and max(request.widths, default=0) > self.max_width:
            reasons.append(f"a hidden layer of {max(request.widths)} units is wider than {self.max_width}")
        if not reasons and not interpreted:
            need = _kernels("configurations").least_shared(op, request.dtype, request.widths[:-1])
            if need > (most := self.shared_bytes()):
                reasons.append(f"it needs {need >> 10} KiB of shared memory, a program has {most >> 10}")
        return reasons

    def shared_bytes(self) -> int:
        """Bytes of shared memory that a program may have on the current device."""
        return _kernels("configurations").shared_bytes()

    def implementation(self, op: str) -> Implementation:
        return getattr(_kernels(module_of(op)), op)


def _kernels(file: str) -> Any:
    return importlib.import_module(f"{KERNELS}.{file}")
