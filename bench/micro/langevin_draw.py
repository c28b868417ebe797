"""Whole draws against a loop: ``python bench/micro/langevin_draw.py [options of fastcsm bench]``.

Under pytest-benchmark, ``pytest bench/micro/langevin_draw.py`` times a small draw, the loop on 8 variables.
"""

import sys

import pytest

from fastcsm.benchmark import Draw, main

CONTENDERS = Draw(features=64, hidden=(128, 128), samples=16, measured=32).contenders(
    ["highest"], compiled=False
)


@pytest.mark.parametrize("name", CONTENDERS)
def test_langevin_draw(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "langevin_draw", *sys.argv[1:]]))
