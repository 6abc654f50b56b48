"""A fake GPU for tests: the functions of cuda-python, on a device in host memory that refuses what a real one refuses.

- Work is queued, and runs when the stream is waited for.
- New memory is filled with 0xAB. Addresses on the device mean nothing to the host, and every access is checked against
  the allocations.
- A recording fails on a copy of pageable memory, on allocation, on waiting, and on work in the default stream of
  another thread if the recorded stream waits for that one.

docs/gpu-status.md lists what it cannot show.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.backends import cuda as cuda_module
from runtime.backends import tensorrt as backend_module

# cudaError_t
SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_READY = 0, 1, 2, 600
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_IMPLICIT = 900, 901, 906
FRESH = 0xAB  # every byte of memory that nobody has written
ALIGNMENT = 256
LEGACY_STREAM = 0

Work = tuple[str, Callable[[], None]]


@dataclass
class Stream:
    blocking: bool
    queue: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    spoiled: int = SUCCESS  # why the recording failed


@dataclass
class Event:
    ticks: int | None = None


class FakeGpu:
    """The functions and constants of `cuda.bindings.runtime`. `calls` are the names of all functions called.

    `launched` are the names of the work in each launched graph. Set `spoil` to a function that is called while work is
    being recorded, such as one that does what another thread might do.
    """

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, name: str = "Fake RTX", capability: str = "8.6", total_bytes: int = 1 << 30) -> None:
        self.name, self.capability, self.total_bytes = name, capability, total_bytes
        self.calls: list[str] = []
        self.launched: list[list[str]] = []
        self.spoil: Callable[[], None] = lambda: None
        self.memory: dict[int, np.ndarray] = {}  # bytes by address
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: set[int] = set()  # that can be launched
        self.events: list[Event] = []
        self._graph_work: dict[int, list[Work]] = {}
        self._next_address, self._next_handle, self._ticks = 0x7F00_0000_0000, 100, 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name[4:5].isupper() and name not in FakeGpu._constants:
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    _constants = ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamNonBlocking")

    @property
    def used(self) -> int:
        """Bytes allocated on the device."""
        return sum(map(len, self.memory.values()))

    def at(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return the array at this address of the device. Fails unless it lies in one allocation."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for start, held in self.memory.items():
            if start <= address and address + size <= start + len(held):
                return held[address - start : address - start + size].view(dtype).reshape(shape)
        raise AssertionError(f"{size} bytes at {address:#x} of the device are not allocated")

    def enqueue(self, name: str, stream: int, work: Callable[[], None]) -> int:
        """Queue or record this work; return the status."""
        target = self.streams[stream]
        if target.recording is None:
            target.queue.append((name, work))
        else:
            target.recording.append((name, work))
            self.spoil()
        return target.spoiled and CAPTURE_INVALIDATED

    def is_recording(self, stream: int) -> bool:
        return self.streams[stream].recording is not None

    def refuse_recording(self, reason: int = CAPTURE_UNSUPPORTED) -> int:
        """Spoil every recording, because of a call that none allows; return the status of the call."""
        status = SUCCESS
        for stream in self.streams.values():
            if stream.recording is not None:
                stream.spoiled = status = reason
        return status

    def use_default_stream(self) -> int:
        """Do what a copy without a stream does in another thread: it waits for all streams but non-blocking ones."""
        recorded = [stream for stream in self.streams.values() if stream.recording is not None]
        for stream in recorded:
            if stream.blocking:
                stream.spoiled = CAPTURE_IMPLICIT
        return CAPTURE_IMPLICIT if any(stream.blocking for stream in recorded) else SUCCESS

    # The functions of cuda-python, in its spelling. Each returns a status and then its results.

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return SUCCESS, 1

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        major, minor = map(int, self.capability.split("."))
        properties = SimpleNamespace(
            name=self.name.encode() + b"\0",
            major=major,
            minor=minor,
            totalGlobalMem=self.total_bytes,
            integrated=0,
        )
        return SUCCESS, properties

    def cudaSetDevice(self, device: int) -> tuple[int]:
        return (SUCCESS,)

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return SUCCESS, 13000

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:
        return SUCCESS, 13000

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return SUCCESS, f"error {int(status)}".encode()

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return SUCCESS, self.total_bytes - self.used, self.total_bytes

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if status := self.refuse_recording():
            return status, 0
        if self.used + size > self.total_bytes:
            return OUT_OF_MEMORY, 0
        address = self._next_address
        self._next_address += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT  # a gap, in which nothing lies
        self.memory[address] = np.full(size, FRESH, np.uint8)
        return SUCCESS, address

    def cudaFree(self, address: int) -> tuple[int]:
        if status := self.refuse_recording():
            return (status,)
        for stream in self.streams:
            self._run(stream)  # it waits for the device
        del self.memory[address]
        return (SUCCESS,)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        if status := self.refuse_recording():
            return status, 0
        host = np.full(size, FRESH, np.uint8)
        self.pinned[host.ctypes.data] = host
        return SUCCESS, host.ctypes.data

    def cudaFreeHost(self, address: int) -> tuple[int]:
        if status := self.refuse_recording():
            return (status,)
        self.pinned[address].fill(FRESH)
        del self.pinned[address]
        return (SUCCESS,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        to_device = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (source, target) if to_device else (target, source)
        self.at(device, (size,), np.uint8)
        values: np.ndarray | None = None
        if not self._is_pinned(host, size):
            if self.is_recording(stream):
                return (self.refuse_recording(),)
            if to_device:
                values = _host(host, size).copy()  # pageable memory is copied before the call returns

        def copy() -> None:
            if to_device:
                self.at(device, (size,), np.uint8)[:] = _host(host, size) if values is None else values
            else:
                _host(host, size)[:] = self.at(device, (size,), np.uint8)

        status = self.enqueue("upload" if to_device else "download", stream, copy)
        if not to_device and not self._is_pinned(host, size):
            self._run(stream)  # such a download waits
        return (status,)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        rows: int,
        kind: int,
        stream: int,
    ) -> tuple[int]:
        assert kind == self.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        assert 0 < width <= min(target_pitch, source_pitch)
        for address, pitch in ((target, target_pitch), (source, source_pitch)):
            self.at(address, (rows, pitch), np.uint8)

        def copy() -> None:
            rows_of_target = self.at(target, (rows, target_pitch), np.uint8)
            rows_of_target[:, :width] = self.at(source, (rows, source_pitch), np.uint8)[:, :width]

        return (self.enqueue("copy", stream, copy),)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        self.at(address, (size,), np.uint8)
        return (self.enqueue("zero", stream, lambda: self.at(address, (size,), np.uint8).fill(value)),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return SUCCESS, self._handle(self.streams, Stream(blocking=not flags & self.cudaStreamNonBlocking))

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self._run(stream)
        del self.streams[stream]
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if status := self.refuse_recording():
            return (status,)
        self._run(stream)
        return (SUCCESS,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        if self.is_recording(stream):
            return (INVALID_VALUE,)
        self.streams[stream].recording = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        target = self.streams[stream]
        if target.recording is None:
            return INVALID_VALUE, None
        recorded, spoiled = target.recording, target.spoiled
        target.recording, target.spoiled = None, SUCCESS
        if spoiled:
            return CAPTURE_INVALIDATED, None
        return SUCCESS, self._handle(self._graph_work, recorded)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        ready = self._handle(self._graph_work, self._graph_work[graph])
        self.graphs.add(ready)
        return SUCCESS, ready

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:
        del self._graph_work[graph]
        return (SUCCESS,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        if graph not in self.graphs:
            return (INVALID_VALUE,)
        if self.is_recording(stream):
            return (self.refuse_recording(),)
        work = self._graph_work[graph]
        self.launched.append([name for name, _ in work])
        self.streams[stream].queue += work
        return (SUCCESS,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:
        self.graphs.remove(graph)
        del self._graph_work[graph]
        return (SUCCESS,)

    def cudaEventCreate(self) -> tuple[int, Event]:
        self.events.append(Event())
        return SUCCESS, self.events[-1]

    def cudaEventRecord(self, event: Event, stream: int) -> tuple[int]:
        def tick() -> None:
            self._ticks += 1
            event.ticks = self._ticks

        event.ticks = None
        return (self.enqueue("event", stream, tick),)

    def cudaEventElapsedTime(self, start: Event, end: Event) -> tuple[int, float]:
        if start.ticks is None or end.ticks is None:
            return NOT_READY, 0.0
        return SUCCESS, float(end.ticks - start.ticks)

    def cudaEventDestroy(self, event: Event) -> tuple[int]:
        self.events.remove(event)
        return (SUCCESS,)

    def _run(self, stream: int) -> None:
        queue = self.streams[stream].queue
        while queue:
            queue.pop(0)[1]()

    def _is_pinned(self, host: int, size: int) -> bool:
        return any(start <= host and host + size <= start + len(held) for start, held in self.pinned.items())

    def _handle(self, table: dict[int, Any], value: Any) -> int:
        self._next_handle += 1
        table[self._next_handle] = value
        return self._next_handle


def _host(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def use(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu, trt: Any = None) -> FakeGpu:
    """Make the backends use this GPU, and the TensorRT backend this module, by default the fake TensorRT for RTX."""
    from tests.runtime.fake_tensorrt import fake_tensorrt

    monkeypatch.setattr(cuda_module, "_bindings", lambda: gpu)
    module = trt or fake_tensorrt(gpu)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda flavour: module)
    return gpu
