"""Advisory locks that tell a live run from a dead one: the system releases them when their process ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


def take(path: Path) -> int | None:
    """Locks the file or directory at `path`, also under a later name, until what it returns is released.

    Returns None where there are no locks. Raises BlockingIOError if another run holds it, FileNotFoundError if it is
    gone.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return None  # of another user
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
    """Gives a lock back."""
    if lock is not None:
        os.close(lock)
