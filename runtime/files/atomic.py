"""Files and directories that appear whole or not at all, whatever ends the process; and fingerprints of files."""

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

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: fcntl.h, fs.h
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # what kernels and file systems without it answer


@contextmanager
def atomic_file(path: Path, replace: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends, and never if it fails. Links are followed.

    Without `replace` a file that is there by then stays, and this one is dropped.
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
    """An empty directory to fill, which becomes `path` when the block ends and vanishes if it fails.

    What `kind` does not own of the directory that it replaces is kept. Links are followed. Raises SettingsError if
    `path` is none of what `check_directory` allows, or if another run is writing it; OSError.
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
    """An empty directory on the disk of `neighbour`, if that can be written, until the block ends."""
    neighbour = followed(neighbour)
    parent = neighbour.parent if os.access(neighbour.parent, os.W_OK) else Path(gettempdir())
    sweep(parent)
    with _naming(parent), beside(parent / f"{neighbour.name}.scratch", Path.mkdir) as made:
        yield made


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content. Raises BundleError if it cannot be read."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives errors of the system the name of what was being written, where they lack it: "No space left on device"."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def _add(path: Path, made: Path) -> None:
    """Gives `made` the name `path` unless that is taken."""
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: here two that come at once still replace each other
        made.replace(path)


def _keep_others(old: Path, new: Path, kind: Kind) -> None:
    """Links the files that `kind` does not own into `new`; the old directory stays as it is. Raises SettingsError."""
    owned = kind.owned(old)
    for entry in old.iterdir():
        if is_temporary(entry.name) or (owned is not None and entry.name in owned):
            continue
        if owned is None:
            raise SettingsError(f"{old}: {entry.name} appeared there meanwhile; give another directory")
        if os.path.lexists(new / entry.name):
            raise SettingsError(f"{entry}: would be replaced by {kind.what}, which did not write it; move it away")
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link, ignore=_temporaries)
        else:
            _link(entry, new / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for the same file, or a copy where the file system knows no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _temporaries(_: str, names: list[str]) -> list[str]:
    return [name for name in names if is_temporary(name)]


def _sync(folder: Path) -> None:
    """Writes everything in `folder` to the disk, so that a power cut after its renaming loses nothing."""
    for place, _, names in os.walk(folder):
        for path in (Path(place), *(Path(place, name) for name in names)):
            if path.is_dir() or (path.is_file() and not path.is_symlink()):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _replace(path: Path, made: Path) -> None:
    """Puts `made` at `path`. What was there is at `made` afterwards, or gone; a kill finds one of them at `path`."""
    if path.is_dir():
        shutil.copymode(path, made)
    try:
        made.rename(path)  # nothing is there, or an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(path, made):
            _replace_in_two_steps(path, made)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system cannot. Raises OSError."""
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
    """For systems that cannot exchange. A kill between the steps leaves the old directory aside: see `recover`."""
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
