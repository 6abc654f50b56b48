"""Files written whole or not at all, and their fingerprints."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import SettingsError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends, and never if it fails."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill: it becomes `path` when the block ends, and vanishes if it fails."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        beside.mkdir(parents=True)
        yield beside
        if path.exists():
            path.replace(replaced)
        beside.replace(path)
    except BaseException:
        if replaced.exists():
            replaced.replace(path)
        raise
    finally:
        for leftover in (beside, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_target(path: Path, suffix: str) -> None:
    """Raises SettingsError unless `path` has this suffix and can be written. Ask before long work."""
    if path.suffix.lower() != suffix:
        raise SettingsError(f"{path}: expected a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"{path}: cannot be written; choose another place")
