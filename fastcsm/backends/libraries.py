"""The backends "cpu" and "cuda": the C++ libraries that are built from ``csrc/``."""

import ctypes
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..activations import ACTIVATIONS
from .measured import why_not_cuda
from .precision import of_products
from .registry import FULL_PRECISION, Implementation, Request, chosen, device_missing, mismatches, module_of

PACKAGE = Path(__file__).parents[1]  # where a build puts the libraries, and the record of what it built


class Library:
    """What backends share that live in a library, which is named for the backend."""

    name: str
    device: str
    units: str  # the device type whose setting for products of float32 counts
    ops: tuple[str, ...]
    composed: tuple[str, ...] = ("conditional_density_backward",)
    dtypes: tuple[torch.dtype, ...]

    @cache  # noqa: B019 (one instance lives as long as the module)
    def missing(self) -> list[str]:
        path = self.path()
        if path is None:
            return [f"the {self.name} library is not built: {self._why_not_built()}"]
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            return [f"{path.name} does not load: {error}"]
        return []

    def path(self) -> Path | None:
        """The library file, or None."""
        suffix = ".pyd" if sys.platform == "win32" else ".so"
        return next(iter(sorted(PACKAGE.glob(f"_{self.name}*{suffix}"))), None)

    def _why_not_built(self) -> str:
        record = PACKAGE / "_build.json"
        reasons = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        return reasons.get(self.name) or "install the package with a compiler for it and FASTCSM_BUILD unset"

    def describe(self) -> str:
        """Where the library is, or why it cannot run."""
        return "; ".join(self.missing()) or str(self.path())

    def refuses(self, op: str, request: Request) -> list[str]:
        if module_of(op) not in self.ops or op in self.composed:
            return [f"it has no {op}"]
        return mismatches(request, self.device, self.dtypes)

    def implementation(self, op: str) -> Implementation:
        """The kernel; where a handler of a signal ends it, what that one raised is raised."""
        kernel = getattr(self.kernels(), op).default
        full = op in FULL_PRECISION
        arguments = kernel._schema.arguments
        first = next(k for k, argument in enumerate(arguments) if str(argument.type) == "Tensor")
        words = [k for k, a in enumerate(arguments) if a.name.endswith("activation") and str(a.type) == "int"]
        narrow = {kind for kind in self.dtypes if self.reduced(kind) and not (full and kind is torch.float32)}

        def run(*args: Any) -> Any:
            values = [*args, args[first].dtype in narrow]
            for k in words:
                values[k] = _CODES[values[k]]
            try:
                return kernel(*values)
            except RuntimeError:
                self.raise_interruption()
                raise

        run.any_shape = True  # type: ignore[attr-defined]
        return run

    def raise_interruption(self) -> None:
        """Raise what a signal's handler raised inside the last call, if that is what ended it."""

    def kernels(self) -> Any:
        """The library's ops."""
        return getattr(torch.ops, f"fastcsm_{self.name}")

    def reduced(self, dtype: torch.dtype) -> bool:
        """Whether products may use narrower units, by torch's setting for float32 products."""
        return dtype is torch.float32 and of_products(self.units) != "float32"


class CPU(Library):
    """Fused C++ kernels for processors."""

    name = device = units = "cpu"
    ops = ("score_head", "csm_loss", "langevin", "masked_linear", "conditional_density", "probability_flow")
    dtypes = (torch.float32, torch.float64, torch.bfloat16)

    def describe(self) -> str:
        found = super().describe()
        return found if self.missing() else f"{found}, instruction set {self.kernels().isa()}"

    def raise_interruption(self) -> None:
        ctypes.PyDLL(str(self.path())).fastcsm_raise_interruption()

    def reduced(self, dtype: torch.dtype) -> bool:
        return dtype is torch.bfloat16 or super().reduced(dtype)


class CUDA(Library):
    """CUDA C++ kernels, in ``csrc/cuda/``; "auto" takes those that ``measured.json`` has as faster."""

    name = device = units = "cuda"
    ops = (*CPU.ops, "rescale")
    composed = ("conditional_density_backward", "conditional_density_draw")
    dtypes = (torch.float32, torch.bfloat16)
    max_width = 128

    @cache  # noqa: B019
    def missing(self) -> list[str]:
        return device_missing() or super().missing()

    def refuses(self, op: str, request: Request) -> list[str]:
        reasons = super().refuses(op, request)
        layer = module_of(op) == "masked_linear"
        if not reasons and not layer and request.widths:
            reasons = self._too_large(op, request)
        if chosen() == "auto" and not reasons:
            # A layer that is asked for a head is a part of a composition; nodes cost what their density does.
            measured = "linear_csm_loss" if layer and not request.rows else op.removesuffix("_nodes")
            reasons = [why_not_cuda(measured, request.dtype, request.inputs, request.widths, request.rows)]
        return [reason for reason in reasons if reason]

    def _too_large(self, op: str, request: Request) -> list[str]:
        """Why the kernels of a head do not run one of these sizes."""
        widest = max(request.widths[:-1], default=0)
        if widest > self.max_width:
            return [f"a hidden layer of {widest} units is wider than {self.max_width}: see triton"]
        half = request.dtype is torch.bfloat16
        need, most = self.kernels().shared_bytes(op, half, request.inputs, len(request.widths) - 1)
        if need > most:
            return [f"it needs {need >> 10} KiB of shared memory, a block has {most >> 10}"]
        return []


_CODES = {"identity": -1} | {name: activation.code for name, activation in ACTIVATIONS.items()}
