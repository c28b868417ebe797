"""csm_loss against its autograd baselines: ``python bench/micro/csm_loss.py [options of fastcsm bench]``.

Under pytest-benchmark, ``pytest bench/micro/csm_loss.py`` times every contender at 4096 rows.
"""

import sys

import pytest

from fastcsm.benchmark import CsmLoss, main

CONTENDERS = CsmLoss(rows=4096).contenders(["highest"], compiled=False)


@pytest.mark.parametrize("name", CONTENDERS)
def test_csm_loss(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "csm_loss", *sys.argv[1:]]))
