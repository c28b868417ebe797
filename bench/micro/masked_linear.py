"""A MADE against its peers.

python bench/micro/masked_linear.py [options]   as fastcsm bench --op masked_linear
pytest bench/micro/masked_linear.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("masked_linear")


@pytest.mark.parametrize("name", CONTENDERS)
def test_masked_linear(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "masked_linear", *sys.argv[1:]]))
