"""The kernels that TensorRT for RTX has compiled on this machine, kept for the next process."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import VarEdgeError
from ..files.atomic import atomic_file
from ..files.bounded import read_bytes
from ..files.cache import cache_directory

MOST_BYTES = 1 << 30  # a larger file is not ours


class KernelCache:
    """A runtime cache of TensorRT for RTX, in one file for a kind of GPU and TensorRT in `cache_directory`.

    TensorRT checks that the file fits this GPU, driver and TensorRT. A file that cannot be read or written costs time
    and is no error. Of two processes at once the last to write wins, which costs time too.
    """

    def __init__(self, tag: str) -> None:
        folder = cache_directory()
        self._path = folder and folder / f"{tag}.kernels"
        self._cache: Any = None
        self._kept = b""  # the content of the file
        self._attached = False  # since the file was written

    def attach(self, config: Any) -> None:
        """Make the contexts of this runtime configuration use the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache is None:
                return
            with suppress(VarEdgeError):
                content = read_bytes(self._path, MOST_BYTES) if self._path else b""
                if content and self._cache.deserialize(content):
                    self._kept = content
        config.set_runtime_cache(self._cache)
        self._attached = True

    def save(self) -> None:
        """Write the file if kernels were compiled since it was read or written."""
        if not self._attached or not self._path:
            return
        self._attached = False
        serialized = self._cache.serialize()
        content = bytes(serialized) if serialized is not None else b""
        if content in (b"", self._kept):
            return
        with suppress(OSError, VarEdgeError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path) as file:
                file.write(content)
            self._kept = content
