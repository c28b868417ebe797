"""Densities of rows: ``python bench/micro/conditional_density.py [options of fastcsm bench]``.

Under pytest-benchmark, ``pytest bench/micro/conditional_density.py`` times one sample of MNIST's size.
"""

import sys

import pytest

from fastcsm.benchmark import LogDensity, main

CONTENDERS = LogDensity(rows=784).contenders(["highest"], compiled=False)


@pytest.mark.parametrize("name", CONTENDERS)
def test_conditional_density(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "conditional_density", *sys.argv[1:]]))
