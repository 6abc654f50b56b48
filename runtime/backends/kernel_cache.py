"""The kernels that TensorRT for RTX has compiled on this machine, kept for the next process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import VarEdgeError
from ..files.atomic import atomic_file
from ..files.bounded import read_bytes

MOST_BYTES = 1 << 30  # a larger file is not ours


def cache_directory() -> Path:
    """Return the user's directory for files that can be made again at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "var-edge"


class KernelCache:
    """A runtime cache of TensorRT for RTX, which all engines of one build share, in a file in `cache_directory`.

    TensorRT checks that the file fits this GPU, driver and TensorRT. A file that cannot be read or written costs time
    and is no error.
    """

    def __init__(self, tag: str) -> None:
        self._path = cache_directory() / f"{tag}.kernels"
        self._cache: Any = None
        self._kept = b""  # the content of the file
        self._attached = False  # since the file was written

    def attach(self, config: Any) -> None:
        """Make the contexts of this runtime configuration use the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                self._kept = read_bytes(self._path, MOST_BYTES)
            except VarEdgeError:
                self._kept = b""
            if self._kept and not self._cache.deserialize(self._kept):
                self._kept = b""
        config.set_runtime_cache(self._cache)
        self._attached = True

    def save(self) -> None:
        """Write the file if kernels were compiled since it was read or written."""
        if not self._attached:
            return
        self._attached = False
        content = bytes(self._cache.serialize())
        if content == self._kept:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path) as file:
                file.write(content)
        except (OSError, VarEdgeError):
            return
        self._kept = content
