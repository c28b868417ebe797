"""``pytest bench/micro/<op>.py``: the op's contenders at the sizes of --quick, under pytest-benchmark."""

from types import ModuleType

import pytest

from fastcsm.bench.micro.registry import CASES, right_contenders


def pytest_pycollect_makemodule(module_path, parent):
    op = module_path.stem
    if op not in CASES:
        return None
    contenders = right_contenders(op)

    @pytest.mark.parametrize("name", contenders, ids=list(contenders))
    def test(benchmark, name):
        benchmark(contenders[name].call)

    module = pytest.Module.from_parent(parent, path=module_path)
    module.obj = ModuleType(op)
    setattr(module.obj, f"test_{op}", test)
    return module
