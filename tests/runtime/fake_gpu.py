"""A fake GPU for tests. It records the calls of the driver and executes them in host memory; engines are ONNX files.

It refuses what a real driver or TensorRT refuses, so a backend that passes here binds, orders and records its work
correctly. docs/gpu-status.md lists what it cannot show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.backends.cuda import Gpu
from runtime.bundle import engine_record
from runtime.bundle.engine_record import Built, Engine, EngineRecord
from runtime.bundle.manifest import WEIGHTS, File, Manifest
from runtime.bundle.names import GRAPHS

STREAM, SCRATCH = 77, 4096
GPU = Gpu("Fake RTX", "8.6", 1 << 30)
BUILT = Built("tensorrt_rtx", "1.7.0", ("8.6",), None, False, False)


class FakeCuda:
    """Has the interface of `runtime.backends.cuda.Cuda`. `calls` lists the names of all calls in order."""

    def __init__(self, gpu: Gpu = GPU) -> None:
        self.gpu, self.stream = gpu, STREAM
        self.calls: list[str] = []
        self.launched: list[list[str]] = []  # the calls in each launched graph
        self._memory: dict[int, np.ndarray] = {}
        self._recording: list[tuple[str, Callable[[], None]]] | None = None
        self._ticks = 0

    def malloc(self, size: int) -> int:
        self._not_while_recording("malloc")
        raw = np.zeros(size + 512, np.uint8)
        address = -(-raw.ctypes.data // 256) * 256
        self._memory[address] = raw
        return address

    def free(self, address: int) -> None:
        self._not_while_recording("free")
        del self._memory[address]

    def pinned(self, size: int) -> np.ndarray:
        self._not_while_recording("pinned")
        return np.zeros(size, np.uint8)

    def unpin(self, host: np.ndarray) -> None:
        self._not_while_recording("unpin")

    def upload(self, device: int, host: np.ndarray) -> None:
        self.queue("upload", lambda: at(device, host.shape, host.dtype).__setitem__(..., host))

    def download(self, host: np.ndarray, device: int) -> None:
        self.queue("download", lambda: host.__setitem__(..., at(device, host.shape, host.dtype)))

    def zero(self, device: int, size: int) -> None:
        self.queue("zero", lambda: at(device, (size,), np.uint8).fill(0))

    def synchronize(self) -> None:
        self._not_while_recording("synchronize")

    @contextmanager
    def capturing(self) -> Iterator[list[Any]]:
        self._not_while_recording("capture")
        graphs: list[Any] = []
        self._recording = []
        yield graphs
        graphs.append(self._recording)
        self._recording = None

    def launch(self, graph: Any) -> None:
        self._not_while_recording("launch")
        self.launched.append([name for name, _ in graph])
        for _, work in graph:
            work()

    def discard(self, graph: Any) -> None:
        self._not_while_recording("discard")

    def mark(self) -> int:
        self._ticks += 1
        return self._ticks

    def seconds(self, start: int, end: int) -> float:
        return float(end - start)

    def queue(self, name: str, work: Callable[[], None]) -> None:
        """Run the work, or add it to the graph that is being recorded."""
        if self._recording is None:
            self.calls.append(name)
            work()
        else:
            self._recording.append((name, work))

    def _not_while_recording(self, name: str) -> None:
        assert self._recording is None, f"{name} would end a stream capture"
        self.calls.append(name)


def at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return the array with this shape at an address of the fake device."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (np.ctypeslib.ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


def fake_tensorrt(cuda: FakeCuda, version: str = "1.7.0") -> Any:
    """Return a module with the parts of TensorRT that the backend uses; its engines run on `cuda`."""

    class Base:
        pass

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, reader: Any) -> FakeEngine | None:
            text = b""
            while piece := reader.read(7, STREAM):
                text += piece
            if not text.startswith(b"{"):
                self.logger.log("ERROR", "bad magic number")
                return None
            return FakeEngine(json.loads(text), cuda)

    return SimpleNamespace(
        __version__=version,
        ILogger=type("ILogger", (Base,), {"Severity": SimpleNamespace(INTERNAL_ERROR="INTERNAL_ERROR", ERROR="ERROR")}),
        IStreamReaderV2=Base,
        SeekPosition=SimpleNamespace(SET="set", CUR="cur", END="end"),
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        nptype=np.dtype,
    )


class FakeEngine:
    def __init__(self, plan: dict[str, Any], cuda: FakeCuda) -> None:
        self.plan, self.cuda = plan, cuda
        self.session = ort.InferenceSession(plan["onnx"], providers=["CPUExecutionProvider"])
        self.profiles_in_use: set[int] = set()
        self.num_io_tensors = len(plan["tensors"])
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.plan["tensors"])[index])

    def get_tensor_mode(self, name: str) -> str:
        return str(self.plan["tensors"][name][0])

    def get_tensor_dtype(self, name: str) -> str:
        return str(self.plan["tensors"][name][1])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(self.plan["profiles"][profile][name])] * 3

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return SCRATCH * (profile + 1)

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, runtime_config: FakeRuntimeConfig) -> FakeContext:
        assert runtime_config.allocation == "user"
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy == "eager"
        return FakeContext(self)


class FakeRuntimeConfig:
    """TensorRT for RTX: by default it allocates scratch memory itself and compiles kernels in the background."""

    allocation, dynamic_shapes_kernel_specialization_strategy = "static", "lazy"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.memory = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == STREAM
        if profile in self.engine.profiles_in_use:
            return False
        self.engine.profiles_in_use.add(profile)
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        self.shapes[name] = shape
        return tuple(self.engine.plan["profiles"][self.profile][name]) == shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.plan["tensors"] and address % 256 == 0 and address > 0

    def execute_async_v3(self, stream: int) -> bool:
        plan, addresses = self.engine.plan, dict(self.addresses)
        assert stream == STREAM and self.profile is not None
        assert self.memory >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert addresses.keys() == plan["tensors"].keys()

        def work() -> None:
            inputs = {
                name: at(addresses[name], self.shapes[name], dtype).copy()
                for name, (mode, dtype) in plan["tensors"].items()
                if mode == "in"
            }
            names = [name for name, (mode, _) in plan["tensors"].items() if mode == "out"]
            for name, value in zip(names, self.engine.session.run(names, inputs), strict=True):
                at(addresses[name], value.shape, value.dtype)[...] = value

        self.engine.cuda.queue(f"{plan['graph']} {self.profile}", work)
        return True


def write_engines(bundle: Path, batches: tuple[int, ...] = (1,), built: Built = BUILT) -> Path:
    """Write a directory of fake engines into the bundle, with the layout of the engine builder."""
    source = Manifest.load(bundle)
    folder = bundle / engine_record.FOLDER / built.tag
    folder.mkdir(parents=True)
    engines, graphs = {}, {}
    for name in GRAPHS:
        if name not in source.graphs:
            continue
        graph = source.graphs[name]
        profiles = engine_record.profiles(name, source, batches)
        tensors = {t.name: (mode, t.dtype) for mode, ts in (("in", graph.inputs), ("out", graph.outputs)) for t in ts}
        plan = {"graph": name, "onnx": str(bundle / graph.file), "tensors": tensors, "profiles": profiles}
        (folder / f"{name}.engine").write_text(json.dumps(plan))
        digest = source.files[graph.file].sha256
        engines[name] = Engine(f"{name}.engine", digest, profiles, 1.0, 1, {}, 0, ())
        graphs[name] = type(graph)(f"{name}.engine", graph.inputs, graph.outputs)
    (folder / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes())
    if source.classes:
        (folder / source.classes).write_bytes((bundle / source.classes).read_bytes())
    EngineRecord(engine_record.SCHEMA_VERSION, built, source.files[WEIGHTS].sha256, batches, {}, engines, 0, "").write(
        folder
    )
    rewrite_manifest(folder, Manifest(**{**vars(source), "graphs": graphs}))
    return folder


def rewrite_manifest(folder: Path, manifest: Manifest) -> None:
    """Update the sizes and hashes in the manifest to the current files."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {path.name: File.of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    Manifest(**{**vars(manifest), "files": files}).write(folder)
