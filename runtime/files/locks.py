"""Advisory locks that show whether a run is alive: the system releases them when the process ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None  # type: ignore[assignment]


def take(path: Path) -> int | None:
    """Lock the file or directory at `path`, and return the lock for `release`. A rename keeps the lock.

    Returns None where locks do not exist. Raises BlockingIOError if another run holds the lock, FileNotFoundError if
    the file does not exist any more.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return None  # the file belongs to another user
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):  # replaced before it was locked
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise
        return None  # some network file systems
    return descriptor


def release(lock: int | None) -> None:
    """Release a lock of `take`."""
    if lock is not None:
        os.close(lock)
