"""csm_loss against its autograd baselines.

python bench/micro/csm_loss.py [options]   as fastcsm bench --op csm_loss
pytest bench/micro/csm_loss.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("csm_loss")


@pytest.mark.parametrize("name", CONTENDERS)
def test_csm_loss(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "csm_loss", *sys.argv[1:]]))
