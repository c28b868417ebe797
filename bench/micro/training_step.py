"""A training step against eager PyTorch: ``python bench/micro/training_step.py [options of fastcsm bench]``.

Under pytest-benchmark, ``pytest bench/micro/training_step.py`` times every contender on a small model.
"""

import sys

import pytest

from fastcsm.benchmark import TrainingStep, main

CONTENDERS = TrainingStep().quick().contenders(["highest"], compiled=False)


@pytest.mark.parametrize("name", CONTENDERS)
def test_training_step(benchmark, name):
    benchmark(CONTENDERS[name].call)


if __name__ == "__main__":
    sys.exit(main(["--op", "training_step", *sys.argv[1:]]))
