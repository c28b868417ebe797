"""The folder of a run: made at once, held by one process, with a log that agrees with the checkpoint."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..atomic import atomic_file, optional, sync, umask
from .config import RunConfig

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOG_FIELDS = ("step", "epoch", "stage", "lr", "loss", "grad_norm", "held_out", "seconds")


class TrainingError(ValueError):
    """A run that cannot start or go on."""


def is_new(run: Path) -> bool:
    """Whether a run can be made at ``run``: nothing is there, or an empty folder."""
    return not run.exists() or (run.is_dir() and not any(run.iterdir()))


def create(run: Path, config: RunConfig, save: Callable[[Path], None]) -> None:
    """Make a run folder with what ``save`` writes into it: it appears whole or not at all.

    Raises:
        TrainingError: there is something at ``run``.
    """
    if not is_new(run):
        raise TrainingError(
            f"out '{run}' exists: give another folder, or --resume to go on with the run in it"
        )
    run.parent.mkdir(parents=True, exist_ok=True)
    temporary: Path | None = None
    try:
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{run.name[:40]}.", dir=run.parent))
            with optional("chmod"):
                temporary.chmod(0o777 & ~umask())
            _fill(temporary, config, save)
            os.rename(temporary, run)
        except OSError:
            # An empty folder may be there that cannot be replaced: mounted, a link, or below a read-only one.
            if not (run.is_dir() and is_new(run)):
                raise
            _fill(run, config, save)
            _remove(temporary)
    except BaseException:
        _remove(temporary)
        raise


def _fill(folder: Path, config: RunConfig, save: Callable[[Path], None]) -> None:
    """The checkpoint first: with it a run can be resumed."""
    save(folder)
    write_config(folder, config)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.json, for people to read; the checkpoint holds what a resumed run uses."""
    with atomic_file(run / "config.json") as file:
        file.write((json.dumps(config.to_dict(), indent=1) + "\n").encode())


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold the run folder against other processes; the system lets go of it when this process ends.

    Where the file system has no locks there is a warning, and no hold.

    Raises:
        TrainingError: another process holds it.
    """
    handle: int | None = None
    try:
        with optional("flock", whatever=True):
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            handle = os.open(run, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # EWOULDBLOCK, which alone means another process
                raise TrainingError(f"out '{run}' is being trained by another process") from None
        yield
    finally:
        if handle is not None:
            os.close(handle)


class RunLog:
    """log.csv: appended while training, cut back to the checkpoint's step on resume."""

    def __init__(self, path: Path, step: int):
        self.path = path
        rows = [row for row in read_log(path) if row["step"] <= step] if path.exists() else []
        with atomic_file(path) as file:
            file.write("".join([",".join(LOG_FIELDS) + "\n", *map(_line, rows)]).encode())
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    def sync(self) -> None:
        sync(self._file)

    def close(self) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    """A line of log.csv, whose numbers are read back as they were."""
    return ",".join("" if row[name] is None else repr(row[name]) for name in LOG_FIELDS) + "\n"


def _number(name: str, cell: str) -> float | int | None:
    if not cell:
        return None
    return int(cell) if name in ("step", "stage") else float(cell)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a log.csv as dictionaries of numbers; an empty cell is None."""
    rows = []
    with Path(path).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if tuple(row) != LOG_FIELDS or None in row.values():
                continue
            with suppress(ValueError):
                rows.append({name: _number(name, cell) for name, cell in row.items()})
    return rows
