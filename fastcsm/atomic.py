"""Files that appear whole or not at all, on file systems that do not offer everything too."""

import errno
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

#: What a system answers where it does not offer what it is asked for; anything else is an error.
_NOT_OFFERED = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.ENOTTY,
    errno.EPERM,
    errno.EACCES,
    errno.EBADF,
    errno.EISDIR,
}
_warned: set[str] = set()


@contextmanager
def optional(what: str, whatever: bool = False) -> Iterator[None]:
    """A block that asks for what a file system may not offer: where it does not, one warning a process.

    Args:
        what: names what is done without.
        whatever: go on for any reason, not only where it is not offered.

    Raises:
        OSError: it failed for another reason, such as a full disk.
    """
    try:
        yield
    except OSError as error:
        if not whatever and error.errno not in _NOT_OFFERED:
            raise
        if what not in _warned:
            _warned.add(what)
            reason = (error.strerror or str(error)).lower()
            warnings.warn(f"this file system has no {what} ({reason}): going on without", stacklevel=4)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` whole when the block ends without an error, or not at all.

    Where ``path`` is a symbolic link, the file that it leads to is replaced.

    Raises:
        OSError: it could not be written; names the file.
    """
    path = Path(os.path.realpath(path))
    try:
        # 40 characters, so that the name is not too long where that of the file is not.
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent
        )
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                sync(file)
            with optional("chmod"):
                os.chmod(temporary, 0o666 & ~umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    with optional("fsync of a folder"):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync(file: IO[Any]) -> None:
    """Wait until what was flushed of a file is stored, where that can be asked for."""
    with optional("fsync"):
        os.fsync(file.fileno())


def umask() -> int:
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
