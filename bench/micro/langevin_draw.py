"""Whole draws against a loop.

python bench/micro/langevin_draw.py [options]   as fastcsm bench --op langevin_draw
pytest bench/micro/langevin_draw.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("langevin_draw")


@pytest.mark.parametrize("name", CONTENDERS)
def test_langevin_draw(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "langevin_draw", *sys.argv[1:]]))
