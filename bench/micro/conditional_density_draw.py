"""Draws by quantiles: ``python bench/micro/conditional_density_draw.py [options of fastcsm bench]``.

Under pytest-benchmark, ``pytest bench/micro/conditional_density_draw.py`` times a small draw, the loop on 8
variables.
"""

import sys

import pytest

from fastcsm.benchmark import ExactDraw, main

CASE = ExactDraw(features=64, hidden=(128, 128), samples=16, measured=32)
CONTENDERS = CASE.contenders(["highest"], compiled=False)


@pytest.mark.parametrize("name", CONTENDERS)
def test_conditional_density_draw(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "conditional_density_draw", *sys.argv[1:]]))
