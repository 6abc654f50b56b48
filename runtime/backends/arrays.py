"""The arrays of a backend: numpy arrays in host memory, or arrays in GPU memory.

Both kinds have a shape and a dtype, row slices, `view` and `reshape`. So the wiring of the stages is written once for
both.
"""

from __future__ import annotations

import math
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import VarEdgeError
from .cuda import Cuda


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array at an address in GPU memory."""

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
        """Return the same bytes as a one-dimensional array of another dtype."""
        other = np.dtype(dtype)
        return DeviceArray(self.address, (self.nbytes // other.itemsize,), other)

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        assert math.prod(shape) == math.prod(self.shape)
        return DeviceArray(self.address, shape, self.dtype)


Array = Any  # np.ndarray or DeviceArray, whichever the Arrays below allocate


class Arrays(Protocol):
    """Allocates arrays and copies their contents."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array: ...

    def shared(self, size: int) -> tuple[np.ndarray, Array]:
        """Return two blocks of `size` bytes, set to 0, one for the host and one for the stages.

        `upload` copies from the first to the second, `fetch` in the other direction.
        """

    def upload(self, target: Array, host: np.ndarray) -> None:
        """Queue a copy of `host` to `target`; every stage that is queued later reads the new values."""

    def fetch(self, host: np.ndarray, source: Array) -> None:
        """Queue a copy of `source` to `host`, which holds the values after `wait`."""

    def wait(self) -> None:
        """Wait for everything that was queued."""

    def download(self, source: Array) -> np.ndarray:
        """Wait for the stages queued so far, and return an independent copy of `source`."""

    def clear(self, array: Array) -> None:
        """Queue setting `array` to 0."""

    def copy_columns(self, target: Array, source: Array) -> None:
        """Queue a copy of the columns that both have: (R, n, …) and (R, m, …), the first min(n, m) of each row."""

    def free(self) -> None:
        """Release the memory now; the arrays must not be used afterwards."""


class HostArrays:
    """Allocates numpy arrays; host and stages share them."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def shared(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        block = np.zeros(size, np.uint8)
        return block, block

    def upload(self, target: np.ndarray, host: np.ndarray) -> None:
        _copy(target, host)

    def fetch(self, host: np.ndarray, source: np.ndarray) -> None:
        _copy(host, source)

    def wait(self) -> None:
        pass  # a stage has run when the call that runs it returns

    def download(self, source: np.ndarray) -> np.ndarray:
        result: np.ndarray = source.copy()
        return result

    def clear(self, array: np.ndarray) -> None:
        array.fill(0)

    def copy_columns(self, target: np.ndarray, source: np.ndarray) -> None:
        columns = min(target.shape[1], source.shape[1])
        target[:, :columns] = source[:, :columns]

    def free(self) -> None:
        pass  # the garbage collector does it


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    if target.ctypes.data != source.ctypes.data:  # not both halves of a shared block
        target[...] = source


class DeviceArrays:
    """Allocates arrays in GPU memory, which is freed with this object if not before."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._addresses: list[int] = []
        self._pinned: list[np.ndarray] = []
        self._finalizer = weakref.finalize(self, _free, cuda, self._addresses, self._pinned)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        kind = np.dtype(dtype)
        address = self._cuda.malloc(math.prod(shape) * kind.itemsize)
        self._addresses.append(address)
        return DeviceArray(address, shape, kind)

    def shared(self, size: int) -> tuple[np.ndarray, DeviceArray]:
        self._pinned.append(self._cuda.pinned(size))
        return self._pinned[-1], self.zeros((size,), np.uint8)

    def upload(self, target: DeviceArray, host: np.ndarray) -> None:
        self._cuda.upload(target.address, host)

    def fetch(self, host: np.ndarray, source: DeviceArray) -> None:
        self._cuda.download(host, source.address)

    def wait(self) -> None:
        self._cuda.synchronize()

    def download(self, source: DeviceArray) -> np.ndarray:
        host = np.empty(source.shape, source.dtype)
        self.fetch(host, source)
        self.wait()
        return host

    def clear(self, array: DeviceArray) -> None:
        self._cuda.zero(array.address, array.nbytes)

    def copy_columns(self, target: DeviceArray, source: DeviceArray) -> None:
        pitches = [array.nbytes // len(array) for array in (target, source)]  # bytes of a row
        self._cuda.copy_rows(target.address, pitches[0], source.address, pitches[1], min(pitches), len(source))

    def free(self) -> None:
        self._finalizer()


def _free(cuda: Cuda, addresses: list[int], pinned: list[np.ndarray]) -> None:
    with suppress(VarEdgeError):  # after an error of the device every call fails, and there is nothing left to free
        cuda.synchronize()
        while addresses:
            cuda.free(addresses.pop())
        while pinned:
            cuda.unpin(pinned.pop())
