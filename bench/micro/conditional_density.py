"""Densities of rows against eager quadrature.

python bench/micro/conditional_density.py [options]   as fastcsm bench --op conditional_density
pytest bench/micro/conditional_density.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("conditional_density")


@pytest.mark.parametrize("name", CONTENDERS)
def test_conditional_density(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "conditional_density", *sys.argv[1:]]))
