"""Files on file systems that do not offer everything."""

import errno
import os
import stat
import warnings

import pytest

from fastcsm import atomic


@pytest.fixture(autouse=True)
def _never_warned(monkeypatch):
    monkeypatch.setattr(atomic, "_warned", set())


def _refusing(monkeypatch, name, number, when=lambda *_: True):
    """os.<name> fails with that error where ``when`` says so."""
    plain = getattr(os, name)

    def refuse(first, *rest, **options):
        if when(first):
            raise OSError(number, os.strerror(number))
        return plain(first, *rest, **options)

    monkeypatch.setattr(atomic.os, name, refuse)


def _is_folder(handle):
    return stat.S_ISDIR(os.fstat(handle).st_mode)


@pytest.mark.parametrize(
    ("name", "number", "when", "what"),
    [
        ("chmod", errno.EPERM, lambda _: True, "chmod"),
        ("chmod", errno.ENOTSUP, lambda _: True, "chmod"),
        ("fsync", errno.EINVAL, _is_folder, "fsync of a folder"),
        ("fsync", errno.ENOSYS, lambda handle: not _is_folder(handle), "fsync"),
        ("open", errno.EACCES, os.path.isdir, "fsync of a folder"),
    ],
)
def test_what_a_file_system_does_not_offer_is_one_warning(tmp_path, monkeypatch, name, number, when, what):
    _refusing(monkeypatch, name, number, when)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for content in (b"one", b"two"):
            with atomic.atomic_file(tmp_path / "f") as file:
                file.write(content)
            assert (tmp_path / "f").read_bytes() == content
    (only,) = said
    assert f"has no {what} ({os.strerror(number).lower()})" in str(only.message)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("name", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_other_errors_name_the_file_and_leave_it(tmp_path, monkeypatch, name, number):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    _refusing(monkeypatch, name, number)
    with pytest.raises(OSError, match=os.strerror(number)) as error, atomic.atomic_file(path) as file:
        file.write(b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_links_stay_and_long_names_fit(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to("far/f")
    with atomic.atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "f").read_bytes() == b"new"
    with atomic.atomic_file(tmp_path / ("x" * 251 + ".npz")) as file:
        file.write(b"long")
