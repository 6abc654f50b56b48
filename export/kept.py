"""Files in a bundle that its exporter did not write: a later export keeps them, and warns of those that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.bundle.engine_record import FOLDER, EngineRecord
from runtime.bundle.manifest import Manifest
from runtime.errors import BundleError
from runtime.files.atomic import atomic_directory
from runtime.files.outputs import Kind, record

Warn = Callable[[str], None]


@contextmanager
def new_bundle(out: Path, kind: Kind, warn: Warn, *sources: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes the bundle `out`, see `atomic_directory`.

    Then call `warn` if files kept from an earlier bundle do not fit the new one.
    """
    with atomic_directory(out, kind, *sources) as folder:
        yield folder
    if names := list(_misfits(out)):
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        warn(f"{out}: kept {shown}, made for other weights or graphs; make them again or remove them")


def _misfits(bundle: Path) -> Iterator[str]:
    """Yield the names of calibrations, sensitivities and engines in `bundle` that were made for another bundle."""
    manifest = Manifest.load(bundle, verify=False)
    for file in sorted(bundle.glob("*.json")):
        collected_on = record(file).get("bundle")
        if isinstance(collected_on, dict) and any(
            name not in manifest.files or manifest.files[name].sha256 != found for name, found in collected_on.items()
        ):
            yield file.name
    for folder in sorted(bundle.glob(f"{FOLDER}/[!.]*")):
        try:
            fits = EngineRecord.load(folder).fits(manifest)
        except BundleError:
            fits = False
        if not fits:
            yield f"{FOLDER}/{folder.name}"
