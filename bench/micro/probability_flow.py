"""The probability flow of rows against an eager Runge-Kutta loop.

python bench/micro/probability_flow.py [options]   as fastcsm bench --op probability_flow
pytest bench/micro/probability_flow.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("probability_flow")


@pytest.mark.parametrize("name", CONTENDERS)
def test_probability_flow(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "probability_flow", *sys.argv[1:]]))
