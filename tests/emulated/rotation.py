"""Part of what every shape in every precision takes: a pytest plugin for emulated_*.py.

Of a test of several shapes in all precisions it leaves each shape in one of them, in turn: bfloat16 or tf32,
and the first shape in float32, whose products are three of tf32 and take the longest; other tests stay.
"""

from collections import defaultdict


def turn(shape, precision):
    """Whether a shape, by its number, is run in this precision."""
    if shape == 0:
        return precision == "float32"
    return precision == ("bfloat16", "tf32")[shape % 2]


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
        for precision, same in precisions.items()
        for n, item in enumerate(same)
        if not turn(n, precision)
    }
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
