"""langevin against a Python loop.

python bench/micro/langevin.py [options]   as fastcsm bench --op langevin
pytest bench/micro/langevin.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("langevin")


@pytest.mark.parametrize("name", CONTENDERS)
def test_langevin(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "langevin", *sys.argv[1:]]))
