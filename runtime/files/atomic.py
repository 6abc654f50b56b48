"""Write files and directories atomically, whatever ends the process; and hash files."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import BinaryIO

from ..errors import SettingsError
from . import locks
from .bounded import open_file
from .outputs import Kind, check_directory, followed
from .unfinished import aside_of, beside, is_temporary, remove, sweep, undone_at_the_end, written_by_others

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # from Linux's fcntl.h and fs.h
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # the kernel or the file system cannot exchange names


@contextmanager
def atomic_file(path: Path, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that appears at `path` when the block ends, and never if it fails. Links are followed.

    With `replace=False`, a file that exists at `path` by then stays, and the new one is deleted.
    """
    path = followed(path)
    with _naming(path), beside(path, Path.touch) as made:
        with made.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            made.replace(path)
        else:
            _add(path, made)


@contextmanager
def atomic_directory(path: Path, kind: Kind, *sources: Path) -> Iterator[Path]:
    """Make an empty directory to fill. It becomes `path` when the block ends, and is deleted if the block fails.

    Files in an existing directory at `path` that `kind` does not own are kept. Links are followed. Raises SettingsError
    if `check_directory` does not allow `path` or if another run is writing it, OSError.
    """
    check_directory(path, kind, *sources)
    path = followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path), beside(path, Path.mkdir) as made:
        if written_by_others(path, made):
            raise SettingsError(f"{path}: another run is writing it; wait for it or give another directory")
        yield made
        if path.exists():
            _keep_others(path, made, kind)
        _sync(made)
        _replace(path, made)


@contextmanager
def scratch_directory(neighbour: Path) -> Iterator[Path]:
    """Make an empty directory that exists until the block ends.

    It is beside `neighbour`, on the same disk, or in the system's temporary folder if that place is not writable.
    """
    neighbour = followed(neighbour)
    parent = neighbour.parent if os.access(neighbour.parent, os.W_OK) else Path(gettempdir())
    sweep(parent)
    with _naming(parent), beside(parent / f"{neighbour.name}.scratch", Path.mkdir) as made:
        yield made


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file. Raises BundleError if it cannot be read."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add `path` to errors of the system that name no file, such as "No space left on device"."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def _add(path: Path, made: Path) -> None:
    """Give `made` the name `path`, unless a file with that name exists."""
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links; here two simultaneous runs can still replace each other's file
        made.replace(path)


def _keep_others(old: Path, new: Path, kind: Kind) -> None:
    """Link the files that `kind` does not own into `new`; the old directory stays unchanged. Raises SettingsError."""
    owned = kind.owned(old)
    for entry in old.iterdir():
        if is_temporary(entry.name) or (owned is not None and entry.name in owned):
            continue
        if owned is None:
            raise SettingsError(f"{old}: {entry.name} appeared in it meanwhile; give another directory")
        if os.path.lexists(new / entry.name):
            raise SettingsError(f"{entry}: a file of yours, which {kind.what} would overwrite; move it away")
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link, ignore=_temporaries)
        else:
            _link(entry, new / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    """Make a hard link, or a copy on a file system without hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _temporaries(_: str, names: list[str]) -> list[str]:
    return [name for name in names if is_temporary(name)]


def _sync(folder: Path) -> None:
    """Flush everything in `folder` to the disk, so that a power cut after the rename loses nothing."""
    for place, _, names in os.walk(folder):
        for path in (Path(place), *(Path(place, name) for name in names)):
            if path.is_dir() or (path.is_file() and not path.is_symlink()):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _replace(path: Path, made: Path) -> None:
    """Move the directory `made` to `path`. An old directory is afterwards at `made`, or deleted.

    If the process is killed, one of the two is at `path`, or `recover` puts it back.
    """
    if path.is_dir():
        shutil.copymode(path, made)
    try:
        made.rename(path)  # works if `path` does not exist or is an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(path, made):
            _replace_in_two_steps(path, made)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; return False if the system cannot do that. Raises OSError."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one))


def _replace_in_two_steps(path: Path, made: Path) -> None:
    """Replace `path` on systems that cannot exchange names.

    A kill between the two steps leaves the old directory under the name `aside_of(path)`; `recover` puts it back.
    """
    aside, lock = aside_of(path), locks.take(path)

    def put_back() -> None:
        if aside.exists() and not path.exists():
            aside.rename(path)
        remove(aside)

    try:
        with undone_at_the_end(put_back):
            path.rename(aside)
            made.rename(path)
    finally:
        locks.release(lock)
