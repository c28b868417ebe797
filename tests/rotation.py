"""A third of what every shape in every precision takes: a pytest plugin for tests/emulated_*.py.

Of a test of several shapes in all precisions it leaves each shape in one of them, in turn; other tests stay.
"""

from collections import defaultdict


def pytest_collection_modifyitems(config, items):
    tests = defaultdict(lambda: defaultdict(list))
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if len(parameters) > 1 and "precision" in parameters:
            tests[item.path, item.originalname][parameters["precision"]].append(item)
    left_out = {
        item
        for precisions in tests.values()
        if len(precisions) == 3 and len(set(map(len, precisions.values()))) == 1
        for p, same in enumerate(precisions.values())
        for n, item in enumerate(same)
        if (n + p) % 3
    }
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
