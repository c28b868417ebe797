"""Copies of modules."""

import copy
from types import FunctionType
from typing import Any

from torch import Tensor, nn


def copied(module: nn.Module) -> nn.Module:
    """A copy that shares nothing; tensors that hooks computed are copied as they are."""
    memo: dict[int, Any] = {}
    for name, child in module.named_modules():
        if isinstance(child.__dict__.get("forward"), FunctionType):
            raise ValueError(
                f"a stage keeps copies of its modules, and that of {name or type(child).__name__} would run"
                " the function put in place of its forward on the original: expected a bound method or a hook"
            )
        memo |= {id(v): v.detach() for v in vars(child).values() if isinstance(v, Tensor) and not v.is_leaf}
    return copy.deepcopy(module, memo)
