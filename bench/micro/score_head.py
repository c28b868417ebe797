"""score_head against its autograd baselines.

python bench/micro/score_head.py [options]   as fastcsm bench --op score_head
pytest bench/micro/score_head.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("score_head")


@pytest.mark.parametrize("name", CONTENDERS)
def test_score_head(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "score_head", *sys.argv[1:]]))
