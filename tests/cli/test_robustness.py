"""Bad requests to the command line: exit code 2, one sentence, no traceback, and nothing changed on disk."""

import os
import pickle
import re

import numpy as np
import pytest
import torch

from fastcsm import cli, nn, objectives
from fastcsm.training import checkpoint

pytest.importorskip("safetensors")

SMALL = [
    "--hidden",
    "8",
    "--context-features",
    "2",
    "--head-hidden",
    "8",
    "--frequencies",
    "0",
    "--steps",
    "1",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robust")
    train = ["train", "--data", "moons", "--out", str(folder / "run"), *SMALL, "--device", "cpu", "--quiet"]
    assert cli.main(train) == 0
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a folder")
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("years of work")
    whole = (folder / "run" / checkpoint.FILE_NAME).read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "pickle": pickle.dumps({"model": 1}),
        "none": b"",
    }.items():
        (folder / name).mkdir()
        (folder / name / checkpoint.FILE_NAME).write_bytes(content)
    (folder / "foreign").mkdir()
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, folder / "foreign" / checkpoint.FILE_NAME)
    np.save(folder / "nan.npy", np.array([[1.0, np.nan], [2.0, 3.0]]))
    np.save(folder / "empty.npy", np.empty((0, 2)))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.save(folder / "object.npy", np.array([None, 1], dtype=object), allow_pickle=True)
    np.save(folder / "three.npy", np.random.default_rng(0).normal(size=(40, 3)))
    (folder / "words.csv").write_text("a,b\n1,two\n")
    (folder / "picture.png").write_bytes(b"old")
    return folder


def _snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


CASES = {
    "train on an unknown name": (["train", "--data", "mnits", "--out", "@/x"], "expected one of digits"),
    "train on a missing file": (["train", "--data", "@/no.npz", "--out", "@/x"], "no file"),
    "train on NaN": (["train", "--data", "@/nan.npy", "--out", "@/x"], "row 0, column 1 .* is nan"),
    "train on nothing": (["train", "--data", "@/empty.npy", "--out", "@/x"], "at least one row"),
    "train on text": (["train", "--data", "@/text.npy", "--out", "@/x"], "expected numbers"),
    "train on objects": (["train", "--data", "@/object.npy", "--out", "@/x"], "Python objects"),
    "train on words": (["train", "--data", "@/words.csv", "--out", "@/x"], "holds 'two'"),
    "train on logits of numbers": (
        ["train", "--data", "moons", "--out", "@/x", "--logit-alpha", "1e-6"],
        "logit_alpha is 1e-06 for 'moons', expected 0",
    ),
    "train on logits beyond the middle": (
        ["train", "--data", "digits", "--out", "@/x", "--logit-alpha", "0.6"],
        r"logit_alpha is 0.6, expected a number in \[0, 0.5\)",
    ),
    "train on a grid that is none": (
        ["train", "--data", "@/three.npy", "--out", "@/x", "--dequantize", "0,2"],
        "dequantize names column 0, whose 36 values .* are on no grid",
    ),
    "train on columns in words": (
        ["train", "--data", "@/three.npy", "--out", "@/x", "--dequantize", "first"],
        "dequantize is 'first', expected 'none', 'auto' or numbers of columns",
    ),
    "train on a folder": (["train", "--data", "@/empty", "--out", "@/x"], "expected one of digits"),
    "train without data": (["train", "--out", "@/x"], "data is not given"),
    "train into a run": (["train", "--data", "moons", "--out", "@/run"], "out .* exists: .*--resume"),
    "train into a full folder": (["train", "--data", "moons", "--out", "@/mine"], "out .* exists"),
    "train into a file": (["train", "--data", "moons", "--out", "@/file", *SMALL], "out .* exists"),
    "train below a file": (
        ["train", "--data", "moons", "--out", "@/file/x", *SMALL],
        "(?i)not a directory|exists",
    ),
    "train where nothing can be made": (["train", "--data", "moons", "--out", "/proc/x/y", *SMALL], "/proc"),
    "train with a negative rate": (
        ["train", "--data", "moons", "--out", "@/x", "--lr", "-1"],
        "lr is -1.0, expected",
    ),
    "train with bad levels": (
        ["train", "--data", "moons", "--out", "@/x", "--sigma-min", "3"],
        "sigma_min is 3.0",
    ),
    "train with no width": (["train", "--data", "moons", "--out", "@/x", "--hidden", "0"], "hidden is"),
    "train with a huge seed": (["train", "--data", "moons", "--out", "@/x", "--seed", str(2**70)], "seed is"),
    "train on a missing device": (
        ["train", "--data", "moons", "--out", "@/x", "--device", "cuda:99"],
        "device is 'cuda:99'",
    ),
    "train on a strange device": (
        ["train", "--data", "moons", "--out", "@/x", "--device", "tpu"],
        "device is 'tpu'",
    ),
    "train on another strange device": (
        ["train", "--data", "moons", "--out", "@/x", "--device", "meta"],
        "device is",
    ),
    "train with an unknown backend": (
        ["train", "--data", "moons", "--out", "@/x", "--backend", "fast"],
        "fast",
    ),
    "train with a missing backend": (
        ["train", "--data", "moons", "--out", "@/x", *SMALL, "--backend", "cuda"],
        "cuda",
    ),
    "resume nothing": (["train", "--out", "@/x", "--resume"], "no checkpoint"),
    "resume a folder of another kind": (
        ["train", "--data", "moons", "--out", "@/mine", "--resume"],
        "no checkpoint",
    ),
    "resume a truncated run": (["train", "--out", "@/cut", "--resume"], "not a whole safetensors file"),
    "resume with another rate": (
        ["train", "--out", "@/run", "--resume", "--lr", "0.5"],
        "lr is 0.5 but the run",
    ),
    "sample from nothing": (["sample", "@/x", "--out", "@/s.png"], "no checkpoint"),
    "sample from a truncated run": (["sample", "@/cut", "--out", "@/s.png"], "not a whole safetensors file"),
    "sample from a pickle": (["sample", "@/pickle", "--out", "@/s.png"], "not a whole safetensors file"),
    "sample from an empty file": (["sample", "@/none", "--out", "@/s.png"], "not a whole safetensors file"),
    "sample from a foreign file": (["sample", "@/foreign", "--out", "@/s.png"], "not written by fastcsm"),
    "sample over a file": (["sample", "@/run", "--out", "@/picture.png"], "exists: give another file"),
    "sample into no folder": (["sample", "@/run", "--out", "@/x/s.png"], "existing folder"),
    "sample into a strange file": (["sample", "@/run", "--out", "@/s.jpg"], "ends in .png or .npz"),
    "sample none": (["sample", "@/run", "--out", "@/s.png", "--n", "0"], "n is 0"),
    "sample with negative steps": (["sample", "@/run", "--out", "@/s.png", "--steps", "-3"], "steps must be"),
    "sample with no steps": (["sample", "@/run", "--out", "@/s.png", "--steps", "0"], "steps must be"),
    "sample with a bad step size": (
        ["sample", "@/run", "--out", "@/s.png", "--step-size", "nan"],
        "step_size must be",
    ),
    "sample with a bad seed": (["sample", "@/run", "--out", "@/s.png", "--seed", "-1"], "seed is -1"),
    "evaluate nothing": (["evaluate", "@/x"], "no checkpoint"),
    "evaluate other features": (["evaluate", "@/run", "--data", "@/three.npy"], "has 3 features, expected 2"),
    "evaluate a bad level": (["evaluate", "@/run", "--sigmas", "-1"], "sigmas is"),
    "evaluate no rows": (["evaluate", "@/run", "--limit", "0"], "limit is 0"),
    "describe nothing": (["info", "@/x"], "no checkpoint"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_one_sentence(case, place, capsys):
    arguments, words = CASES[case]
    before = _snapshot(place)
    code = cli.main([a.replace("@", str(place)) for a in arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("fastcsm: ")
    assert re.search(words, lines[0]), lines[0]
    assert _snapshot(place) == before


def test_argparse_mistakes_exit_2(capsys):
    for arguments in (
        [],
        ["trian"],
        ["train"],
        ["train", "--out", "x", "--objective", "mle"],
        ["train", "--out", "x", "--lr", "fast"],
        ["train", "--out", "x", "--steps", "1.5"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert "error:" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(place, capsys):
    locked = place / "locked"
    locked.mkdir(mode=0o500)
    assert cli.main(["train", "--data", "moons", "--out", str(locked / "run"), *SMALL]) == 2
    assert "permission denied" in capsys.readouterr().err
    assert cli.main(["sample", str(place / "run"), "--out", str(locked / "s.png")]) == 2
    assert "can be written to" in capsys.readouterr().err


def test_a_folder_that_refuses_writes(place, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system", str(place / "x"))

    monkeypatch.setattr("fastcsm.training.folder.tempfile.mkdtemp", refuse)
    assert cli.main(["train", "--data", "moons", "--out", str(place / "x"), *SMALL]) == 2
    assert capsys.readouterr().err.strip() == f"fastcsm: read-only file system: '{place / 'x'}'"


def test_a_full_disk_keeps_the_run(place, capsys, monkeypatch):
    before = _snapshot(place / "run")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastcsm.atomic.os.replace", full)
    assert cli.main(["train", "--out", str(place / "run"), "--resume", "--steps", "3", "--quiet"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert _snapshot(place / "run") == before


def test_transforms_are_refused_not_ignored():
    head = nn.ScoreHead(2, (4,), frequencies=1)
    context, x = torch.randn(3, 2), torch.randn(3)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"do not run inside torch\.func transforms"):
        torch.func.jvp(lambda x: head(context, x), (x,), (torch.ones(3),))
    made = nn.MADE(2, (4,), 2)
    for loss in (lambda x: objectives.csm_loss(head, context, x), lambda x: head(context, x).sum(), made):
        with pytest.raises(RuntimeError, match=r"do not run inside torch\.func transforms"):
            torch.func.vjp(loss, x if loss is not made else torch.randn(3, 2))
