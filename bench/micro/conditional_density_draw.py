"""Draws by quantiles against a loop.

python bench/micro/conditional_density_draw.py [options]   as fastcsm bench --op conditional_density_draw
pytest bench/micro/conditional_density_draw.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("conditional_density_draw")


@pytest.mark.parametrize("name", CONTENDERS)
def test_conditional_density_draw(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "conditional_density_draw", *sys.argv[1:]]))
