"""What can run the ops on this machine, what each backend supports, and why not the others.

A backend is an object with the members of :class:`Backend`. :func:`register` makes it known by its name;
:func:`select` answers, for one call of one op, which implementation runs it. Nothing else in the package
knows that backends exist but ``ops/``, which calls :func:`select` when an op runs, in compiled code too.
"""

from .info import Info, info
from .libraries import CPU, CUDA
from .reference import Reference
from .registry import OPS, Backend, Request, backend, chosen, compose, register, select
from .triton import Triton

__all__ = [
    "CPU",
    "CUDA",
    "OPS",
    "Backend",
    "Info",
    "Reference",
    "Request",
    "Triton",
    "backend",
    "chosen",
    "compose",
    "info",
    "register",
    "select",
]

for _backend in (Reference(), CPU(), Triton(), CUDA()):
    register(_backend)
