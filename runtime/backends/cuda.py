"""The CUDA calls of the GPU backends, through cuda-python: memory, one stream, CUDA graphs, events."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import DRAW_FEWER, OutOfMemoryError, SettingsError, VarEdgeError
from ..memory import available_memory
from ..optional import INSTALL

NO_DEVICE, INSUFFICIENT_DRIVER, OUT_OF_MEMORY = 100, 35, 2  # cudaError_t
# CUDA's major version -> the first Linux driver that has it, from the release notes of CUDA.
DRIVERS = {12: "525", 13: "580"}
NO_DRIVER = (
    "no NVIDIA driver on this machine (libcuda.so.1 is missing); install one from nvidia.com/drivers,"
    " or use --backend onnxruntime"
)


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
        # A non-blocking stream keeps clear of the legacy default stream. What other threads queue there would otherwise
        # spoil a recording.
        try:
            self._call("cudaSetDevice", 0)
            stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        except OutOfMemoryError:
            raise
        except VarEdgeError as error:  # such as a GPU that one process has for itself
            raise SettingsError(f"{self.gpu.name}: cannot be used: {error}; check nvidia-smi") from None
        self.stream = int(stream)
        self._events: list[Any] = []  # all that were created
        self._unused: list[Any] = []  # those that `mark` can use again
        weakref.finalize(self, _destroy_stream, self._runtime, self.stream, self._events)

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the device, aligned to 256 and set to 0, and return their address.

        Raises OutOfMemoryError.
        """
        status, address = self._runtime.cudaMalloc(max(size, 1))
        if int(status) == OUT_OF_MEMORY:
            free, total = self._free_and_total()
            raise OutOfMemoryError(
                f"GPU memory: {size / 1e6:.0f} MB are needed, {free / 1e6:.0f} of {total / 1e6:.0f} MB are free;"
                f" {DRAW_FEWER} or close other programs"
            )
        self._check(status, "cudaMalloc")
        self.zero(int(address), size)
        return int(address)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pinned(self, size: int) -> np.ndarray:
        """Return (size,) uint8 of pinned host memory, set to 0, which the device reads and writes without the CPU."""
        address = int(self._call("cudaMallocHost", max(size, 1)))
        host = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))
        host.fill(0)  # it would be uploaded as labels and tokens before the first image
        return host

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

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Queue a copy within the device: `width` bytes of each row; pitches are the bytes between rows."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, kind, self.stream)

    def zero(self, device: int, size: int) -> None:
        self._call("cudaMemsetAsync", device, 0, size, self.stream)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def recorded(self, queue: Callable[[], None]) -> Recording:
        """Record the work that `queue` queues, without running it."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with _no_collection():
            self._call("cudaStreamBeginCapture", self.stream, mode)
            try:
                queue()
            except BaseException:
                # The capture must end, or the stream stays unusable.
                status, graph = self._runtime.cudaStreamEndCapture(self.stream)
                if int(status) == 0:
                    self._runtime.cudaGraphDestroy(graph)
                raise
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return Recording(self, self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def discard(self, graph: Any) -> None:
        """Destroy a graph when the stream no longer runs it."""
        self._runtime.cudaStreamSynchronize(self.stream)
        self._runtime.cudaGraphExecDestroy(graph)

    def launch(self, recording: Recording) -> None:
        self._call("cudaGraphLaunch", recording.graph, self.stream)

    def mark(self) -> Any:
        """Record an event after the work that is queued now, and return it."""
        if not self._unused:
            self._unused.append(self._call("cudaEventCreate"))
            self._events += self._unused
        event = self._unused.pop()
        self._call("cudaEventRecord", event, self.stream)
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks that the stream has passed. They cannot be used again."""
        milliseconds = float(self._call("cudaEventElapsedTime", start, end))
        self._unused += start, end
        return milliseconds / 1000

    def _call(self, name: str, *arguments: Any) -> Any:
        function: Callable[..., Any] = getattr(self._runtime, name)
        status, *results = function(*arguments)
        self._check(status, name)
        return results[0] if len(results) == 1 else tuple(results)

    def _check(self, status: Any, name: str = "") -> None:
        if int(status) == OUT_OF_MEMORY:
            raise OutOfMemoryError(f"CUDA: {name}: out of memory; {DRAW_FEWER}")
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


class Recording:
    """Work that was recorded as a CUDA graph. The graph is destroyed with this object."""

    def __init__(self, cuda: Cuda, graph: Any) -> None:
        self.graph = graph
        weakref.finalize(self, cuda.discard, graph)


def _destroy_stream(runtime: ModuleType, stream: int, events: list[Any]) -> None:
    for event in events:
        runtime.cudaEventDestroy(event)
    runtime.cudaStreamDestroy(stream)


_RECORDING = threading.Lock()  # two threads that record would enable the collector for each other


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing GPU memory meanwhile, which would spoil a recording of this thread."""
    with _RECORDING:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _bindings() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise SettingsError(f"cuda-python 12.6 or newer cannot be imported ({error}); {INSTALL['cuda']}") from None
    except RuntimeError:  # some releases look for the driver when they are imported
        raise SettingsError(NO_DRIVER) from None
