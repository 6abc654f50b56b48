"""The CUDA calls of the GPU backends, through cuda-python: memory, one stream, CUDA graphs, events."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import SettingsError, VarEdgeError
from ..memory import available_memory
from ..optional import INSTALL

NO_DEVICE, INSUFFICIENT_DRIVER, OUT_OF_MEMORY = 100, 35, 2  # cudaError_t
# CUDA's major version -> the first Linux driver that has it, from the release notes of CUDA.
DRIVERS = {12: "525", 13: "580"}
NO_DRIVER = "no NVIDIA driver on this machine (libcuda.so.1 is missing); install it, or use --backend onnxruntime"


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: str  # "8.7"
    total_bytes: int
    integrated: bool = False  # shares the memory of the host, as on a Jetson


def gpu() -> Gpu | None:
    """Return the first GPU of this machine; None if there is none that can be used."""
    found = gpu_or_reason()
    return found if isinstance(found, Gpu) else None


@lru_cache(maxsize=1)
def gpu_or_reason() -> Gpu | str:
    """Return the first GPU of this machine, else what is missing: cuda-python, the driver, a newer one, or a GPU."""
    try:
        return Cuda().gpu
    except SettingsError as error:
        return str(error)


class Cuda:
    """Device 0 with one stream, on which all work runs in order. Addresses are plain integers.

    Raises SettingsError if there is no usable GPU, VarEdgeError if a later call fails.
    """

    def __init__(self) -> None:
        self._runtime = _bindings()
        try:
            status, count = self._runtime.cudaGetDeviceCount()
        except RuntimeError:  # cuda-python up to 12.6 looks for the driver here
            raise SettingsError(NO_DRIVER) from None
        if int(status) == INSUFFICIENT_DRIVER:
            raise SettingsError(self._driver_problem())
        if int(status) == NO_DEVICE or not count:
            raise SettingsError(self._device_problem(status))
        properties = self._call("cudaGetDeviceProperties", 0)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        capability, integrated = f"{properties.major}.{properties.minor}", bool(properties.integrated)
        self.gpu = Gpu(name.rstrip("\0"), capability, int(properties.totalGlobalMem), integrated)
        self._call("cudaSetDevice", 0)
        self.stream = int(self._call("cudaStreamCreate"))

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the device, aligned to 256 and set to 0, and return their address."""
        status, address = self._runtime.cudaMalloc(max(size, 1))
        if int(status) == OUT_OF_MEMORY:
            free, total = self._free_and_total()
            raise VarEdgeError(
                f"GPU memory: {size / 1e6:.0f} MB are needed, {free / 1e6:.0f} of {total / 1e6:.0f} MB are free;"
                " draw fewer pictures at once (--batch 1) or close other programs"
            )
        self._check(status)
        self.zero(int(address), size)
        return int(address)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pinned(self, size: int) -> np.ndarray:
        """Return (size,) uint8 of pinned host memory, which the device reads and writes without the CPU."""
        address = int(self._call("cudaMallocHost", max(size, 1)))
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))

    def unpin(self, host: np.ndarray) -> None:
        self._call("cudaFreeHost", host.ctypes.data)

    def upload(self, device: int, host: np.ndarray) -> None:
        """Queue a copy to the device; `host` must not change until the stream has finished the copy."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, kind, self.stream)

    def download(self, host: np.ndarray, device: int) -> None:
        """Queue a copy from the device; `host` holds the data after `synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, kind, self.stream)

    def zero(self, device: int, size: int) -> None:
        self._call("cudaMemsetAsync", device, 0, size, self.stream)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    @contextmanager
    def capturing(self) -> Iterator[list[Any]]:
        """Record the work that the block queues, without running it.

        Yields a list; when the block has ended, the recorded graph is its only item.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        graphs: list[Any] = []
        self._call("cudaStreamBeginCapture", self.stream, mode)
        yield graphs
        graph = self._call("cudaStreamEndCapture", self.stream)
        graphs.append(self._call("cudaGraphInstantiate", graph, 0))
        self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        self._call("cudaGraphLaunch", graph, self.stream)

    def discard(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def mark(self) -> Any:
        """Record an event after the work that is queued now, and return it."""
        event = self._call("cudaEventCreate")
        self._call("cudaEventRecord", event, self.stream)
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks that the stream has passed, and destroy both."""
        milliseconds = float(self._call("cudaEventElapsedTime", start, end))
        for event in (start, end):
            self._call("cudaEventDestroy", event)
        return milliseconds / 1000

    def _call(self, name: str, *arguments: Any) -> Any:
        function: Callable[..., Any] = getattr(self._runtime, name)
        status, *results = function(*arguments)
        self._check(status, name)
        return results[0] if len(results) == 1 else tuple(results)

    def _check(self, status: Any, name: str = "") -> None:
        if int(status) != 0:
            _, text = self._runtime.cudaGetErrorString(status)
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise VarEdgeError(f"CUDA: {name}: {reason}")

    def _free_and_total(self) -> tuple[int, int]:
        """Return the bytes that can still be allocated on the device, and all of them.

        An integrated GPU shares the host's memory. There CUDA counts the page cache as used, which the kernel gives
        back when it is needed.
        """
        free, total = self._call("cudaMemGetInfo")
        return (self.gpu.integrated and available_memory()) or free, total

    def _driver_problem(self) -> str:
        _, driver = self._runtime.cudaDriverGetVersion()
        if not driver:
            return NO_DRIVER
        _, runtime = self._runtime.cudaRuntimeGetVersion()
        versions = f"the NVIDIA driver has CUDA {_dotted(driver)}, this cuda-python needs CUDA {_dotted(runtime)}"
        update = f"update the driver to {DRIVERS.get(runtime // 1000, 'the newest')} or newer"
        older = "pip install 'cuda-python>=12.6,<13', or " if driver // 1000 == 12 < runtime // 1000 else ""
        return f"{versions}; {older}{update}"

    def _device_problem(self, status: Any) -> str:
        _, driver = self._runtime.cudaDriverGetVersion()
        _, text = self._runtime.cudaGetErrorString(status)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        return (
            f"no CUDA GPU for this process: the driver (CUDA {_dotted(driver)}) says {reason!r}; check nvidia-smi,"
            " CUDA_VISIBLE_DEVICES and, on a Jetson, that this user is in the groups video and render"
        )


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _bindings() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise SettingsError(f"cuda-python 12.6 or newer cannot be imported ({error}); {INSTALL['cuda']}") from None
    except RuntimeError:  # some releases look for the driver when they are imported
        raise SettingsError(NO_DRIVER) from None
