"""langevin against a Python loop: ``python bench/micro/langevin.py [options of fastcsm bench]``.

Under pytest-benchmark, ``pytest bench/micro/langevin.py`` times every contender at 64 rows.
"""

import sys

import pytest

from fastcsm.benchmark import Langevin, main

CONTENDERS = Langevin(rows=64).contenders(["highest"], compiled=False)


@pytest.mark.parametrize("name", CONTENDERS)
def test_langevin(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "langevin", *sys.argv[1:]]))
