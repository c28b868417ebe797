import errno
import fcntl
import os
from pathlib import Path

import pytest

from fastcsm import atomic
from fastcsm.training import Config, TrainingError, folder

CONFIG = Config()


def _save(path):
    (path / "checkpoint.safetensors").write_bytes(b"weights")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF, errno.ENOSYS, errno.EIO, None])
def test_a_folder_that_cannot_be_locked_is_trained_in(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.setattr(folder, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(atomic, "_warned", set())
    with pytest.warns(UserWarning, match="has no flock") as said, folder.lock(tmp_path):
        pass
    with folder.lock(tmp_path):
        pass
    assert len(said) == 1


def test_only_another_process_is_named_as_one(tmp_path):
    with folder.lock(tmp_path):
        with pytest.raises(TrainingError, match="being trained by another process"), folder.lock(tmp_path):
            pass
        with pytest.raises(TypeError, match="inside"), folder.lock(_other(tmp_path)):
            raise TypeError("inside")


def _other(path):
    (path / "other").mkdir()
    return path / "other"


@pytest.mark.parametrize("kind", ["mounted", "below a read-only folder", "a link"])
def test_an_empty_folder_that_cannot_be_replaced_is_filled(tmp_path, monkeypatch, kind):
    run = tmp_path / "run"
    (tmp_path / "real").mkdir()
    if kind == "a link":
        run.symlink_to("real")
    else:
        run.mkdir()
        name, number = ("rename", errno.EBUSY) if kind == "mounted" else ("mkdir", errno.EROFS)

        def refuse(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, name, refuse)
    folder.create(run, CONFIG, _save)
    assert {path.name for path in run.iterdir()} == {"checkpoint.safetensors", "config.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "real"}


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    for run in (tmp_path / "new", tmp_path / "empty"):
        if run.name == "empty":
            run.mkdir()
        with pytest.raises(OSError, match="No space"):
            folder.create(run, CONFIG, full)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not any((tmp_path / "empty").iterdir())


def test_a_full_disk_is_named_by_the_log(tmp_path):
    log = folder.RunLog(tmp_path / "log.csv", 0)
    log._file.close()
    log._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match="No space") as error:
        log.add(dict.fromkeys(folder.LOG_FIELDS, 1))
    assert error.value.filename == str(tmp_path / "log.csv")
