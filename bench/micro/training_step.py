"""A training step against eager PyTorch.

python bench/micro/training_step.py [options]   as fastcsm bench --op training_step
pytest bench/micro/training_step.py             at the sizes of --quick, under pytest-benchmark
"""

import sys

import pytest

from fastcsm.benchmark import main, right_contenders

CONTENDERS = right_contenders("training_step")


@pytest.mark.parametrize("name", CONTENDERS)
def test_training_step(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "training_step", *sys.argv[1:]]))
