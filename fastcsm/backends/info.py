"""What ``fastcsm info`` prints."""

import os
import platform
from typing import Any

import torch

from . import registry
from .libraries import Library
from .registry import Request

__version__ = "0.1.0"  # fastcsm.__version__, which pyproject.toml reads here

ENVIRONMENT = {
    "FASTCSM_BUILD": "read at installation: auto (the default), cpu, cuda, or python for no library"
}


class Info(dict):
    """A dict of plain values whose str() is a table; see :func:`info`."""

    def __str__(self) -> str:
        lines = [f"{name:<12}{value}" for name, value in self["versions"].items()]
        lines += ["", "libraries"]
        lines += [f"  {name:<10}{value}" for name, value in self["libraries"].items()]
        lines += ["", f"{'op':<20}{'device':<8}{'backend':<12}not used"]
        for op, devices in self["ops"].items():
            for device, entry in devices.items():
                reasons = [f"{name}: {'; '.join(why)}" for name, why in entry["not"].items()] or ["-"]
                lines.append(f"{op:<20}{device:<8}{entry['backend']:<12}{reasons[0]}")
                lines += [" " * 40 + reason for reason in reasons[1:]]
        lines += ["", "environment variables"]
        for name, entry in self["environment"].items():
            value = "unset" if entry["value"] is None else repr(entry["value"])
            lines.append(f"  {name} ({value}): {entry['meaning']}")
        return "\n".join(lines)


def info() -> Info:
    """What was found on this machine, what is used for each op and device, and why not the others.

    Returns:
        A dict (its str() is the table that ``fastcsm info`` prints) with the entries "versions", "libraries",
        "ops" and "environment". ``info()["ops"][op][device]`` has "backend", the backend chosen for float32
        under "auto", and "not", the reasons of each backend that was passed over.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return Info(
        versions={
            "fastcsm": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
            + "".join(f", {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())),
        },
        libraries={name: _describe(registry.known[name]) for name in ("cpu", "cuda")},
        ops={op: {device: _choice(op, device) for device in devices} for op in registry.OPS},
        environment={
            name: {"value": os.environ.get(name), "meaning": meaning} for name, meaning in ENVIRONMENT.items()
        },
    )


def _choice(op: str, device: str) -> dict[str, Any]:
    """The backend that runs a float32 call of the op on a device, and why not those before it."""
    passed = {}
    for candidate in registry.order():
        reasons = registry.why_not(candidate, op, Request(device, torch.float32, (128, 128, 1), 65))
        if not reasons:
            break
        passed[candidate.name] = reasons
    return {"backend": candidate.name, "not": passed}


def _describe(backend: registry.Backend) -> str:
    if isinstance(backend, Library):
        return backend.describe()
    return "; ".join(backend.missing()) or "available"
