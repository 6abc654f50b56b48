"""Measured rows in a JSON file, so that what has not changed is not measured again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtime.bench.machine import machine
from runtime.bundle.manifest import FILE_NAME
from runtime.files.atomic import atomic_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Row = TypeVar("Row", bound=DataclassInstance)


class KeptRows:
    """Rows of measured values, kept in the file `path`.

    They are measured again if a bundle or one of the `settings` changes, and on a processor with other instruction
    sets, whose kernels round differently.

    `kinds` are the dataclasses of the rows. A file that is truncated or has other rows is not used.
    """

    def __init__(self, path: Path, kinds: Collection[type[DataclassInstance]], *settings: object) -> None:
        self._path, self._settings = path, [*map(str, settings), *machine().instruction_sets]
        self._rows = _rows(path, kinds)

    def row(self, kind: type[Row], measure: Callable[[], Row], *bundles: Path, what: str = "") -> Row:
        """Return the row that is called `what` of these bundles. `measure` makes it if it is not kept."""
        key = self._key(bundles, what)
        if key not in self._rows:
            self._rows[key] = asdict(measure())
            self._write()
        values = self._rows[key].items()
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values})

    def _key(self, bundles: tuple[Path, ...], what: str) -> str:
        """Return a hash of the bundles' manifests, which name the hashes of their files, the settings, and `what`."""
        manifests = b"".join((bundle / FILE_NAME).read_bytes() for bundle in bundles)
        return hashlib.sha256(manifests + json.dumps([what, *self._settings]).encode()).hexdigest()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path) as file:
            file.write(json.dumps(self._rows, indent=1).encode() + b"\n")


def _rows(path: Path, kinds: Collection[type[DataclassInstance]]) -> dict[str, dict[str, Any]]:
    """Return the rows of a file of `KeptRows`; none, and a line on stderr, if they are not all there."""
    if not path.exists():
        return {}
    columns = [{field.name for field in fields(kind)} for kind in kinds]
    try:
        rows: dict[str, dict[str, Any]] = json.loads(path.read_text())
        if all(row.keys() in columns for row in rows.values()):
            return rows
    except (ValueError, AttributeError):  # no JSON; no tables
        pass
    click.echo(f"{path}: truncated or of another release; everything is measured anew", err=True)
    return {}
