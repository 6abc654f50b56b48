"""Unfinished output: it is hidden beside its target and removed if the run fails.

If a run was killed, the next run removes what it left.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ..errors import SettingsError
from . import locks

# Names contain a random part, because process IDs repeat in containers, and a suffix that users do not give to files.
SUFFIX = ".var-edge"
NAME = re.compile(r"\.(.+)\.([0-9a-f]{8}|lock)\.var-edge", re.DOTALL)

_unfinished: list[Callable[[], None]] = []  # functions that undo the current writes, if the process must end at once


def remove_unfinished() -> None:
    """Remove all unfinished output. Only for a process that ends now."""
    while _unfinished:
        _unfinished.pop()()


@contextmanager
def undone_at_the_end(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` when the block ends, also after an error or a signal."""
    _unfinished.append(undo)
    try:
        yield
    finally:
        undo()
        with suppress(ValueError):  # remove_unfinished has called it already
            _unfinished.remove(undo)


@contextmanager
def beside(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Make a hidden file or directory beside `path` with `make`. It is removed at the end unless it was renamed."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")
    with undone_at_the_end(partial(remove, made)):
        lock = _made(made, make)
        try:
            yield made
        finally:
            locks.release(lock)


@contextmanager
def exclusive(path: Path, advice: str) -> Iterator[None]:
    """Keep other runs from writing `path` until the block ends.

    Raises SettingsError, which ends with `advice`, if another run is writing it already.
    """
    path = Path(os.path.realpath(path))
    file = path.with_name(f".{path.name}.lock{SUFFIX}")
    try:
        lock = _made(file, Path.touch, wait=False)
    except BlockingIOError:
        raise SettingsError(f"{path}: another run is writing it; {advice}") from None
    try:
        with undone_at_the_end(partial(remove, file)):
            yield
    finally:
        locks.release(lock)


def sweep(folder: Path) -> None:
    """Remove what killed runs left in `folder`, but not what a live run is writing."""
    for path in _temporaries(folder):
        with suppress(OSError):
            lock = locks.take(path)
            if lock is not None:
                remove(path)
                locks.release(lock)


def written_by_others(path: Path, mine: Path) -> bool:
    """Return whether an output other than `mine` is about to become `path`. Call `sweep` on its folder first."""
    targets = {found: NAME.fullmatch(found.name) for found in _temporaries(path.parent)}
    return any(found != mine and match and match[1] == path.name for found, match in targets.items())


def is_temporary(name: str) -> bool:
    """Return whether this is the name of unfinished output, which is renamed or removed later."""
    return name.startswith(".") and name.endswith(SUFFIX)


def aside_of(path: Path) -> Path:
    """Return where an old directory is kept while a new one takes its place, if the system cannot exchange names."""
    return path.with_name(f".{path.name}.aside{SUFFIX}")


def recover(path: Path) -> None:
    """Put back, or remove, the old directory of a run that was killed between its two renames. Links are followed."""
    with suppress(OSError, ValueError):  # ValueError: a name with NUL, or "/", which has no name
        path = Path(os.path.realpath(path))  # because "." has no name either
        aside = aside_of(path)
        lock = locks.take(aside)
        try:
            if not path.exists():
                aside.rename(path)
            remove(aside)
        finally:
            locks.release(lock)


def remove(path: Path) -> None:
    """Remove a file, a link or a directory. A missing path, or a directory that cannot be emptied, is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _made(path: Path, make: Callable[[Path], object], wait: bool = True) -> int | None:
    """Make `path` and return its lock. Raises BlockingIOError if it is locked and not `wait`, OSError."""
    while True:
        with suppress(FileExistsError):  # another run is still removing it
            make(path)
        try:
            return locks.take(path)
        except FileNotFoundError:
            continue  # another run removed it before it was locked
        except BlockingIOError:  # another run is removing it
            if not wait:
                raise


def _temporaries(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if NAME.fullmatch(entry.name)]
    return []
