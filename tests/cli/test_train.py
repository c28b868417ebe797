"""Runs whose data moved, and runs where something beside the training is refused."""

import errno
import io
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_robustness import SMALL

from fastcsm import atomic, cli, training
from fastcsm.training import checkpoint, folder

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

OPTIONS = [*SMALL[:-2], "--batch-size", "16", "--device", "cpu", "--quiet"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A run of four steps in one folder, by a relative path, and one of eight beside it."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    np.savez("t.npz", x=1.6e9 + 30 * np.random.default_rng(0).normal(size=(60, 2)))
    for steps, out in (("4", "run"), ("8", "whole")):
        given = ["train", "--data", "t.npz", "--out", f"../{out}", *OPTIONS, "--steps", steps]
        assert cli.main(given) == 0
    return tmp_path


def _warnings(capsys):
    """The warnings on standard error: a slow machine has lines of progress between them."""
    return [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]


def _resume(*options):
    return cli.main(["train", "--out", "../run", "--resume", "--steps", "8", "--quiet", *options])


@pytest.mark.parametrize(
    ("moved", "given"),
    [
        ("old/t.npz", []),
        ("old/t.npz", ["--data", "./t.npz"]),
        ("old/t.npz", ["--data", "../old/../old/t.npz"]),
        ("new/u.npz", ["--data", "u.npz"]),
    ],
)
def test_a_run_resumes_wherever_its_data_are(started, monkeypatch, moved, given):
    monkeypatch.chdir(started / ("old" if given[1:] == ["./t.npz"] else "new"))
    os.replace(started / "old" / "t.npz", started / moved)
    assert _resume(*given) == 0
    a, b = (checkpoint.read(started / name) for name in ("run", "whole"))
    assert a.state["step"] == 8
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)
    assert a.config.data == str(started / moved)
    assert cli.main(["evaluate", "../run", "--method", "none"]) == 0


def test_other_rows_under_the_same_name_are_refused(started, monkeypatch, capsys):
    monkeypatch.chdir(started / "new")
    (started / "old" / "t.npz").unlink()
    for command in (["train", "--out", "../run", "--resume"], ["evaluate", "../run"]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert f"no file '{started}/old/t.npz', on which the run was trained: say by --data" in said
    np.savez(started / "old" / "t.npz", x=np.zeros((60, 2)))
    for command in (["train", "--out", "../run", "--resume"], ["evaluate", "../run"]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert "t.npz' is not what the run was trained on, expected the same training rows" in said
        assert len(said.splitlines()) == 1
    assert cli.main(["evaluate", "../run", "--data", "../old/t.npz", "--method", "none"]) == 0
    assert cli.main(["sample", "../run", "--method", "langevin", "--out", "x.npz"]) == 0


def test_other_held_out_rows_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(40, 2))
    for change in (0, 1):
        np.savez("t.npz", train_x=rows, val_x=rows + change)
        code = cli.main(["train", "--data", "t.npz", "--out", "run", *OPTIONS, "--steps", "1", "--resume"])
        assert code == 2 * change
    assert "expected the same held-out rows" in capsys.readouterr().err


def _refuse(monkeypatch, module, name, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, refused)


def test_a_file_system_that_offers_little(tmp_path, monkeypatch, capsys):
    _refuse(monkeypatch, folder.fcntl, "flock", errno.ENOLCK)
    _refuse(monkeypatch, os, "chmod", errno.EPERM)
    _refuse(monkeypatch, os, "fsync", errno.EINVAL)
    monkeypatch.setattr(atomic, "_warned", set())
    options = [*OPTIONS, "--steps", "4", "--checkpoint-seconds", "0"]
    assert cli.main(["train", "--data", "moons", "--out", str(tmp_path / "run"), *options]) == 0
    lines = _warnings(capsys)
    assert len(lines) == 4
    for what in ("chmod", "fsync", "fsync of a folder", "flock"):
        assert [line for line in lines if f"this file system has no {what} (" in line] != []
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"loss.png", checkpoint.FILE_NAME}


@pytest.mark.parametrize("error", [AttributeError("numpy is too new"), OSError(30, "Read-only file system")])
def test_a_picture_never_fails_a_run(tmp_path, monkeypatch, capsys, error):
    def broken():
        raise error

    monkeypatch.setattr(sys.modules["fastcsm.evaluation.plots"], "_matplotlib", broken)
    run = str(tmp_path / "run")
    assert cli.main(["train", "--data", "moons", "--out", run, *OPTIONS, "--steps", "1"]) == 0
    assert cli.main(["evaluate", run, "--limit", "5"]) == 0
    lines = _warnings(capsys)
    assert len(lines) == 2
    for line, name in zip(lines, ("loss", "density"), strict=True):
        assert f"warning: no picture '{run}/{name}.png': pictures need matplotlib, which cannot" in line
        assert str(error).partition("] ")[2] in line
    assert cli.main(["sample", run, "--out", str(tmp_path / "x.png")]) == 2
    assert "pictures need matplotlib" in capsys.readouterr().err


def test_the_backend_of_a_notebook(tmp_path):
    code = "import sys; from fastcsm import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "--data", "moons", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *OPTIONS, "--steps", "1"],
        env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("fastcsm:")]
    if find_spec("matplotlib_inline") is None:
        assert "MPLBACKEND is 'module://matplotlib_inline.backend_inline'" in lines.pop()
    assert lines == []
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize("stream", [None, "closed", "text"])
def test_streams_that_are_not_there(tmp_path, monkeypatch, stream):
    for number, name in enumerate(("stdout", "stderr")):
        text = io.StringIO()
        if stream == "closed":
            text.close()
        monkeypatch.setattr(sys, name, None if stream is None else text)
        out = str(tmp_path / str(number))
        assert cli.main(["train", "--data", "moons", "--out", out, *OPTIONS[:-1], "--steps", "1"]) == 0
        assert cli.main(["train", "--data", "moon", "--out", out, *OPTIONS]) == 2
        assert (getattr(sys, name) is None) == (stream is None)
    assert training.read_log(tmp_path / "1" / "log.csv")[-1]["step"] == 1


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_characters_that_a_stream_does_not_have(tmp_path, monkeypatch, name):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    for code in (0, 2):
        arguments = ["train", "--data", "moons", "--out", str(tmp_path / "größe"), *OPTIONS[:-1]]
        assert cli.main([*arguments, "--steps", "1"]) == code
    getattr(sys, name).flush()
    assert rb"gr\xf6\xdfe" in raw.getvalue()


class Full(io.StringIO):
    """A buffered stream to a full disk."""

    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_standard_output_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "fastcsm: standard output: no space left on device\n"
    assert not isinstance(sys.stdout, Full)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE is 2 without MASTER_ADDR and MASTER_PORT, expected"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "WORLD_SIZE is 2 without RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a positive whole number"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK is '2', expected a whole number below WORLD_SIZE = 2",
        ),
    ],
)
def test_several_processes_by_hand(tmp_path, monkeypatch, capsys, environment, words):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "--data", "moons", "--out", str(tmp_path / "run"), *OPTIONS]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
