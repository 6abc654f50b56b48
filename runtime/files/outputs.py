"""Check where a command may write. Every command calls these checks before it starts its work."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError, SettingsError
from .bounded import read_json
from .unfinished import beside, is_temporary, recover, sweep

PREVIEW = re.compile(r"scale_\d\d+\.png")
OF_REPORTS = re.compile(r"report\.json|report\.html|benchmarks\.md|bench-.*\.json")


@dataclass(frozen=True)
class Kind:
    """A kind of output directory."""

    what: str  # its name in messages
    owned: Callable[[Path], set[str] | None]  # returns its files in a directory; None for a directory of another kind


def check_directory(path: Path, kind: Kind, *sources: Path) -> None:
    """Raise SettingsError unless `path` is new, empty or of this kind, and can be replaced. Call it before long work.

    `path` must not be or contain the current directory or one of `sources`.
    """
    with _in_one_line(path):
        real = _checked(path, kind, sources)
        if os.path.ismount(real):
            raise SettingsError(f"{path}: a disk is mounted there, so it cannot be replaced; give a folder inside it")
        parent = next(parent for parent in real.parents if parent.exists())
        for name in real.relative_to(parent).parts:  # also the names of the folders to make
            _check_place(parent / name)


def check_folder(path: Path, kind: Kind, *sources: Path) -> None:
    """Make the same checks for a directory that is filled, not replaced. Its parent folder must exist."""
    with _in_one_line(path):
        real = _checked(path, kind, sources)
        if not real.parent.is_dir():
            raise SettingsError(f"{path}: there is no folder {path.parent}; make it first")
        _check_place(real / "file" if real.exists() else real)


def check_target(path: Path, *suffixes: str, sources: tuple[Path, ...] = ()) -> None:
    """Raise SettingsError unless `path` has one of these suffixes and can be written. Call it before long work.

    `path` must be neither one of the files in `sources` nor part of a bundle in `sources`.
    """
    if path.suffix.lower() not in suffixes:
        raise SettingsError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")
    with _in_one_line(path):
        _check_link(path)
        real = followed(path)
        if not real.parent.is_dir():
            raise SettingsError(f"{path}: there is no folder {path.parent}; make it first")
        if real.exists() and not real.is_file():
            raise SettingsError(f"{path}: cannot be written: it is a {'folder' if real.is_dir() else 'device'}")
        for source in map(followed, sources):
            if real == source or (real.parent == source and real.name in (BUNDLE.owned(source) or ())):
                raise SettingsError(f"{path}: the command reads this file; give another name")
        _check_place(real)


def check_apart(*paths: Path | None) -> None:
    """Raise SettingsError if two outputs have the same path."""
    seen: dict[Path, Path] = {}
    for path in filter(None, paths):
        if seen.setdefault(followed(path), path) is not path:
            raise SettingsError(f"{path}: two outputs have this name; give each a name of its own")


def followed(path: Path) -> Path:
    """Return the absolute path with every symbolic link followed."""
    return Path(os.path.realpath(path))


def _checked(path: Path, kind: Kind, sources: tuple[Path, ...]) -> Path:
    """Check that `path` may become a directory of this kind, and return it with links followed.

    Raises SettingsError, OSError.
    """
    _check_link(path)
    real, here = followed(path), Path.cwd()
    if real == here or real in here.parents:
        raise SettingsError(f"{path}: is or holds the current directory; give another directory")
    for source in map(followed, sources):
        if real == source or real in source.parents:
            raise SettingsError(f"{path}: is or holds {source}, which the command reads; give another directory")
    recover(real)
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISDIR(real.stat().st_mode):
            raise SettingsError(f"{path}: expected a folder, found a file")
        others = [entry.name for entry in real.iterdir() if not is_temporary(entry.name)]
        if others and kind.owned(real) is None:
            found = f"found {min(others)!r:.60}"
            raise SettingsError(f"{path}: expected a new or empty folder or {kind.what}, {found}; give another")
    return real


def _check_link(path: Path) -> None:
    if path.is_symlink() and not os.path.exists(path):
        raise SettingsError(f"{path}: a broken link to {os.readlink(path)}; create its target or remove the link")


def _check_place(real: Path) -> None:
    """Remove what killed runs left beside `real`, and raise OSError unless a file of this name can be made."""
    sweep(real.parent)
    with beside(real, Path.touch):
        pass


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"{path}: cannot be written: {reason}; choose another place") from None


def record(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file holds none."""
    with suppress(BundleError):
        document = read_json(path)
        return document if isinstance(document, dict) else {}
    return {}


def _bundle_files(folder: Path, wanted: Callable[[Path, str], bool]) -> set[str] | None:
    """Return the files of a bundle of any version if `wanted` accepts its folder and precision, else None."""
    found = record(folder / "manifest.json")
    files, precision = found.get("files"), found.get("precision")
    ours = {"schema_version", "graphs", "provenance"} <= found.keys()
    if not (ours and isinstance(files, dict) and isinstance(precision, str) and wanted(folder, precision)):
        return None
    return {"manifest.json", *files}


def _of_engines(folder: Path) -> bool:
    return {"schema_version", "engines", "built"} <= record(folder / "engine.json").keys()


def _reports(folder: Path) -> set[str] | None:
    names = {entry.name for entry in folder.iterdir() if not is_temporary(entry.name)}
    ours = {"reference", "tolerances", "artifacts"} <= record(folder / "report.json").keys()
    return names if ours and all(map(OF_REPORTS.fullmatch, names)) else None


def _sets(folder: Path) -> set[str] | None:
    ours = {"schema_version", "bundle", "per_class"} <= record(folder / "settings.json").keys()
    return {"settings.json"} if ours else None


def previews(*beside: Path | None) -> Kind:
    """Return the kind of a folder with one image per scale, maybe with other outputs (`beside`) of the same command."""

    def owned(folder: Path) -> set[str] | None:
        known = {path.name for path in map(followed, filter(None, beside)) if path.parent == folder}
        names = {entry.name for entry in folder.iterdir() if not is_temporary(entry.name)}
        return names if all(PREVIEW.fullmatch(name) or name in known for name in names) else None

    return Kind("previews of an earlier run", owned)


BUNDLE = Kind("a bundle", lambda folder: _bundle_files(folder, lambda _, precision: True))
EXPORTED = Kind(
    "an exported bundle",
    lambda folder: _bundle_files(folder, lambda at, precision: precision in ("fp32", "fp16") and not _of_engines(at)),
)
INT8_BUNDLE = Kind(
    "an INT8 bundle",
    lambda folder: _bundle_files(folder, lambda at, precision: precision.startswith("int8") and not _of_engines(at)),
)
ENGINES = Kind("engines", lambda folder: _bundle_files(folder, lambda at, _: _of_engines(at)))
REPORT = Kind("a report", _reports)
SET = Kind("an evaluation set", _sets)
