"""A MADE against its peers: ``python bench/micro/masked_linear.py [options of fastcsm bench]``.

Under pytest-benchmark, ``pytest bench/micro/masked_linear.py`` times every contender at 2 x 256 hidden units.
"""

import sys

import pytest

from fastcsm.benchmark import MaskedLayers, main

CONTENDERS = {
    f"{name}-{'backward' if case.backward else 'forward'}": contender
    for case in MaskedLayers(hidden=(256, 256)).variants()
    for name, contender in case.contenders(["highest"], compiled=False).items()
}


@pytest.mark.parametrize("name", CONTENDERS)
def test_masked_linear(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "masked_linear", *sys.argv[1:]]))
