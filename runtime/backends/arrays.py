"""Where a backend keeps its tensors: numpy arrays in the host's memory, or pieces of a GPU's.

Both kinds know shape and dtype, take a slice of their rows, and can be read anew with `view` and `reshape`, so the
wiring of the stages is written once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .cuda import Cuda


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array at an address of the GPU."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self.address + start * row, (max(stop - start, 0), *self.shape[1:]), self.dtype)

    def view(self, dtype: Any) -> DeviceArray:
        """The same bytes, in one row of another type."""
        other = np.dtype(dtype)
        return DeviceArray(self.address, (self.nbytes // other.itemsize,), other)

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        assert math.prod(shape) == math.prod(self.shape)
        return DeviceArray(self.address, shape, self.dtype)


Array = Any  # np.ndarray or DeviceArray, as the Arrays below make them


class Arrays(Protocol):
    """Makes arrays and moves their contents."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array: ...

    def staged(self, size: int) -> tuple[np.ndarray, Array]:
        """`size` bytes twice: where the host writes them, and where the stages read them after `upload`."""

    def upload(self, target: Array, host: np.ndarray) -> None:
        """Queued: a stage that is queued later reads it."""

    def download(self, source: Array) -> np.ndarray:
        """A copy of its own, of what the stages so far have made."""

    def clear(self, array: Array) -> None:
        """Queued: sets it to 0."""


class HostArrays:
    """Numpy arrays; host and stages see the same."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def staged(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        block = np.zeros(size, np.uint8)
        return block, block

    def upload(self, target: np.ndarray, host: np.ndarray) -> None:
        if target is not host:
            target[...] = host

    def download(self, source: np.ndarray) -> np.ndarray:
        result: np.ndarray = source.copy()
        return result

    def clear(self, array: np.ndarray) -> None:
        array.fill(0)


class DeviceArrays:
    """Memory of the GPU, allocated once and given back with `free`."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._addresses: list[int] = []
        self._pinned: list[np.ndarray] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        kind = np.dtype(dtype)
        address = self._cuda.malloc(math.prod(shape) * kind.itemsize)
        self._addresses.append(address)
        return DeviceArray(address, shape, kind)

    def staged(self, size: int) -> tuple[np.ndarray, DeviceArray]:
        return self.pinned(size), self.zeros((size,), np.uint8)

    def pinned(self, size: int) -> np.ndarray:
        """(size,) uint8 of the host's memory that the GPU copies from and to by itself."""
        self._pinned.append(self._cuda.pinned(size))
        return self._pinned[-1]

    def upload(self, target: DeviceArray, host: np.ndarray) -> None:
        self._cuda.upload(target.address, host)

    def download(self, source: DeviceArray) -> np.ndarray:
        host = np.empty(source.shape, source.dtype)
        self._cuda.download(host, source.address)
        self._cuda.synchronize()
        return host

    def clear(self, array: DeviceArray) -> None:
        self._cuda.zero(array.address, array.nbytes)

    def free(self) -> None:
        self._cuda.synchronize()
        while self._addresses:
            self._cuda.free(self._addresses.pop())
        while self._pinned:
            self._cuda.unpin(self._pinned.pop())
