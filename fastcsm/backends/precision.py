"""How narrow torch lets the operands of float32 products be: its settings are read here, at every call."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Each holds ``fp32_precision``; where that is not set, torch answers with what its general settings say.
_PRODUCTS = {"cpu": torch.backends.mkldnn.matmul, "cuda": torch.backends.cuda.matmul}  # type: ignore[attr-defined]
#: What each device has units for; every other answer means full float32.
_NARROWER = {"cpu": "bf16", "cuda": "tf32"}


def of_products(device: str) -> str:
    """Operands of float32 products on a device type: "bf16" on processors, "tf32" on GPUs, or "float32".

    ``torch.set_float32_matmul_precision`` is one way to say so: "medium" means bf16 on processors and, as
    "high" does, tf32 on GPUs. ``torch.backends.mkldnn.matmul.fp32_precision`` and
    ``torch.backends.cuda.matmul.fp32_precision`` are the others. Reading the first one again raises once the
    others disagree with it; these never do.
    """
    setting = _PRODUCTS.get(device)
    if setting is None or setting.fp32_precision != _NARROWER[device]:
        return "float32"
    return _NARROWER[device]


@contextmanager
def matmul_precision(word: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision(word)`` for a while; then all settings are as they were."""
    before = {device: setting.fp32_precision for device, setting in _PRODUCTS.items()}
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the settings of the devices are not those of any one word
        old = "highest"
    torch.set_float32_matmul_precision(word)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(old)
        for device, setting in _PRODUCTS.items():
            setting.fp32_precision = before[device]
