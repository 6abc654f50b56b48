"""What is half written: hidden beside its target, gone when its run fails, swept by the next run if it was killed."""

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

# Random, because process numbers repeat in containers; with an ending that no user gives to a file.
SUFFIX = ".var-edge"
NAME = re.compile(r"\.(.+)\.([0-9a-f]{8}|lock)\.var-edge", re.DOTALL)

_unfinished: list[Callable[[], None]] = []  # how to undo what is being written, for a process that must end at once


def remove_unfinished() -> None:
    """Leaves nothing half written behind. Only for a process that ends now."""
    while _unfinished:
        _unfinished.pop()()


@contextmanager
def undone_at_the_end(undo: Callable[[], None]) -> Iterator[None]:
    """Calls `undo` when the block ends, however it ends: also by an error or a signal."""
    _unfinished.append(undo)
    try:
        yield
    finally:
        undo()
        with suppress(ValueError):  # the process ends, and has undone it
            _unfinished.remove(undo)


@contextmanager
def beside(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new hidden file or directory, made by `make`, beside `path`. It is removed at the end unless it was renamed."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")
    with undone_at_the_end(partial(remove, made)):
        lock = _made(made, make)
        try:
            yield made
        finally:
            locks.release(lock)


@contextmanager
def exclusive(path: Path, advice: str) -> Iterator[None]:
    """Lets no other run write `path` until the block ends. Raises SettingsError, with `advice`, if one does already."""
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
    """Removes what runs that were killed left in `folder`. What a live run is writing there stays."""
    for path in _temporaries(folder):
        with suppress(OSError):
            lock = locks.take(path)
            if lock is not None:
                remove(path)
                locks.release(lock)


def written_by_others(path: Path, mine: Path) -> bool:
    """Whether something other than `mine` is about to become `path`. Sweep its folder first."""
    targets = {found: NAME.fullmatch(found.name) for found in _temporaries(path.parent)}
    return any(found != mine and match and match[1] == path.name for found, match in targets.items())


def is_temporary(name: str) -> bool:
    """Whether a file of this name was made by this project, to be renamed or removed later."""
    return name.startswith(".") and name.endswith(SUFFIX)


def aside_of(path: Path) -> Path:
    """Where a directory waits, on systems that cannot exchange two names, while another takes its place."""
    return path.with_name(f".{path.name}.aside{SUFFIX}")


def recover(path: Path) -> None:
    """Puts back, or removes, what a run left aside that was killed between two renames. Links are followed."""
    with suppress(OSError, ValueError):  # ValueError: a name with a NUL; "/" has no name
        path = Path(os.path.realpath(path))  # "." has none
        aside = aside_of(path)
        lock = locks.take(aside)
        try:
            if not path.exists():
                aside.rename(path)
            remove(aside)
        finally:
            locks.release(lock)


def remove(path: Path) -> None:
    """Removes a file, a link or a directory; nothing there is fine, and so is a directory that cannot be emptied."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _made(path: Path, make: Callable[[Path], object], wait: bool = True) -> int | None:
    """The lock of what was made. Raises BlockingIOError unless `wait`, OSError."""
    while True:
        with suppress(FileExistsError):  # still being swept
            make(path)
        try:
            return locks.take(path)
        except FileNotFoundError:
            continue  # swept away before it was locked
        except BlockingIOError:  # being swept
            if not wait:
                raise


def _temporaries(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if NAME.fullmatch(entry.name)]
    return []
