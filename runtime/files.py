"""Files written whole or not at all, and their fingerprints."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .bounded import open_file
from .errors import SettingsError

_unfinished: list[Callable[[], None]] = []  # how to undo what is being written, for a process that must end at once


def remove_unfinished() -> None:
    """Leaves nothing half written behind. Only for a process that ends now."""
    while _unfinished:
        _unfinished.pop()()


@contextmanager
def _undone_at_the_end(undo: Callable[[], None]) -> Iterator[None]:
    _unfinished.append(undo)
    try:
        yield
    finally:
        undo()
        _unfinished.remove(undo)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends, and never if it fails."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with _undone_at_the_end(lambda: beside.unlink(missing_ok=True)):
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill: it becomes `path` when the block ends, and vanishes if it fails."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")

    def undo() -> None:
        if replaced.exists() and not path.exists():
            replaced.replace(path)
        for leftover in (beside, replaced):
            shutil.rmtree(leftover, ignore_errors=True)

    with _undone_at_the_end(undo):
        beside.mkdir(parents=True)
        yield beside
        if path.exists():
            path.replace(replaced)
        beside.replace(path)


@contextmanager
def scratch_directory(neighbour: Path) -> Iterator[Path]:
    """An empty directory on the disk of `neighbour`, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix=f".{neighbour.name}.", dir=neighbour.parent))
    with _undone_at_the_end(lambda: shutil.rmtree(folder, ignore_errors=True)):
        yield folder


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content. Raises BundleError if it cannot be read."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Removes what processes that were killed left half written of the files called `names` in `folder`."""
    for path in folder.glob(".*"):
        if path.name[1:].rpartition(".")[0] in names:
            path.unlink(missing_ok=True)


def check_target(path: Path, *suffixes: str) -> None:
    """Raises SettingsError unless `path` has one of these suffixes and can be written. Ask before long work."""
    if path.suffix.lower() not in suffixes:
        raise SettingsError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"{path}: cannot be written; choose another place")


def check_folder(path: Path) -> None:
    """Raises SettingsError unless `path` is a folder to write to, or can become one. Ask before long work."""
    if path.exists() and not path.is_dir():
        raise SettingsError(f"{path}: expected a folder, found a file")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingsError(f"{path}: cannot be written; choose another place")
