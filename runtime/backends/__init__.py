"""Inference engines that can run a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SettingsError
from ..manifest import Manifest

if TYPE_CHECKING:
    from .base import Backend

BACKENDS = ("auto", "onnxruntime")


def create(name: str, bundle: Path, manifest: Manifest, threads: int | None) -> Backend:
    """The backend called `name`; "auto" takes the fastest that can run this bundle. Raises SettingsError."""
    if name not in BACKENDS:
        raise SettingsError(f"backend: expected one of {', '.join(BACKENDS)}, found {name!r}")
    from .onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, manifest, threads)
