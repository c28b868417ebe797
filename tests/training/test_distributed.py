import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcsm import training
from fastcsm.training import checkpoint
from fastcsm.training.distributed import Group, SlicedDropout, slice_dropout

pytest.importorskip("safetensors")

ARGUMENTS = [
    "train",
    "--data",
    "moons",
    "--hidden",
    "16",
    "16",
    "--context-features",
    "4",
    "--head-hidden",
    "16",
    "--frequencies",
    "4",
    "--dropout",
    "0.2",
    "--batch-size",
    "64",
    "--steps",
    "30",
    "--log-every",
    "3",
    "--eval-every",
    "10",
    "--lr",
    "0.003",
    "--quiet",
]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _run(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240
    )
    return done


def test_two_processes_follow_the_curve_of_one(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    one = _run("-m", "fastcsm", *ARGUMENTS, "--out", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    two = _run(*LAUNCHER, "-m", "fastcsm", *ARGUMENTS, "--out", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    a, b = (training.read_log(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert len(a) == len(b) == 10
    for first, second in zip(a, b, strict=True):
        assert first["step"] == second["step"]
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4, abs=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
        assert (first["held_out"] is None) == (second["held_out"] is None)
        if first["held_out"] is not None:
            assert second["held_out"] == pytest.approx(first["held_out"], rel=1e-4, abs=1e-5)
    weights = [checkpoint.read(tmp_path / name).tensors for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()


class _Part(Group):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def test_sliced_dropout_is_the_dropout_of_the_global_batch():
    x = torch.randn(8, 5)
    torch.manual_seed(3)
    whole = F.dropout(x, 0.4)
    parts = []
    for rank in range(2):
        net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.4))
        slice_dropout(net, _Part(rank, 2))
        assert isinstance(net[1], SlicedDropout)
        torch.manual_seed(3)
        parts.append(net[1](x[4 * rank : 4 * rank + 4]))
        assert net.eval()[1](x) is x
    torch.testing.assert_close(torch.cat(parts), whole)


def test_one_process_needs_no_group():
    group = Group(torch.device("cpu"))
    assert (group.rank, group.size, group.slice(6)) == (0, 1, slice(0, 6))
    assert group.sum([1.0, torch.tensor(2.0)]) == [1.0, 2.0]
    group.barrier()
    group.close()
