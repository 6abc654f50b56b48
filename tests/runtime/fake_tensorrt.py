"""A fake TensorRT on the fake GPU: its engines are ONNX files, its kernels are runs of ONNX Runtime.

It has the interface of each generation: TensorRT 10.3 with `IStreamReader`, 10.7 and 10.8 with the reader that crashes,
10.9 and 11, and TensorRT for RTX. It refuses what TensorRT refuses: a second context for a profile, shapes before a
profile, a missing tensor, an address that is not aligned, a first run inside a recording.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.bundle import engine_record
from runtime.bundle.engine_record import Built, Engine, EngineRecord
from runtime.bundle.manifest import WEIGHTS, File, Manifest
from runtime.bundle.names import GRAPHS
from tests.runtime.fake_gpu import ALIGNMENT, FRESH, FakeGpu

SCRATCH = 4096
BUILT = Built("tensorrt_rtx", "1.7.0", ("8.6",), None, False, False)
SERVER = Built("tensorrt", "10.13.3", ("8.6",), "Fake RTX", False, False)


class Base:
    """Stands for a class of TensorRT that Python code derives from."""


def fake_tensorrt(gpu: FakeGpu, version: str = "1.7.0", flavour: str = "tensorrt_rtx") -> Any:
    """Return a module with the parts of this TensorRT that the backend uses."""
    number = tuple(map(int, version.split(".")[:2]))
    rtx = flavour == "tensorrt_rtx"
    module = SimpleNamespace(
        __version__=version,
        gpu=gpu,
        rtx=rtx,
        compiled=[],  # the kernels that were compiled, by graph and profile
        ILogger=type("ILogger", (Base,), {"Severity": SimpleNamespace(INTERNAL_ERROR="INTERNAL_ERROR", ERROR="ERROR")}),
        SeekPosition=SimpleNamespace(SET="set", CUR="cur", END="end"),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        nptype=np.dtype,
    )
    module.Runtime = lambda logger: FakeRuntime(module, logger)
    if rtx:
        module.IStreamReaderV2 = type("IStreamReaderV2", (Base,), {})
        module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        return module
    if number < (11, 0):
        module.IStreamReader = type("IStreamReader", (Base,), {})
    if number >= (10, 7):
        module.IStreamReaderV2 = type("IStreamReaderV2", (Base,), {})
    return module


class FakeRuntime:
    def __init__(self, trt: Any, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        trt.logger = logger

    def deserialize_cuda_engine(self, reader: Any) -> FakeEngine | None:
        if isinstance(reader, getattr(self.trt, "IStreamReader", ())):
            content = bytes(reader.read(7)) + bytes(reader.read(1 << 30))  # it does not ask again for more
        else:
            content = self._read_v2(reader)
        if not content.startswith(b"{"):
            self.logger.log("ERROR", "bad magic number")
            return None
        return FakeEngine(self.trt, json.loads(content))

    def _read_v2(self, reader: Any) -> bytes:
        """Read as the bindings do: from 10.9 on they ask until all is there, and copy to wherever the target is."""
        trt = self.trt
        correct = trt.rtx or tuple(map(int, trt.__version__.split(".")[:2])) >= (10, 9)
        assert correct, "memcpy to GPU memory: a crash"
        assert reader.seek(0, trt.SeekPosition.END)
        assert reader.seek(0, trt.SeekPosition.SET)
        assert not reader.seek(-1, trt.SeekPosition.CUR)
        content = bytes(reader.read(7, 77))
        while piece := bytes(reader.read(1 << 30, 77)):
            content += piece
        return content


class FakeEngine:
    def __init__(self, trt: Any, plan: dict[str, Any]) -> None:
        self.trt, self.plan = trt, plan
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # exact, as on a GPU
        self.session = ort.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
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
        assert self.trt.rtx
        return FakeRuntimeConfig()

    def create_execution_context(self, strategy: str = "", runtime_config: FakeRuntimeConfig | None = None) -> Any:
        if self.trt.rtx:
            assert runtime_config is not None
            assert runtime_config.allocation == "user"
            assert runtime_config.dynamic_shapes_kernel_specialization_strategy == "eager"
            return FakeContext(self, runtime_config.cache)
        assert strategy == "user"
        return FakeContext(self, None)


class FakeRuntimeCache:
    """The kernels that need not be compiled. A cache of another GPU is refused."""

    MAGIC = "kernels of the fake GPU: "

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def deserialize(self, content: bytes) -> bool:
        text = content.decode()
        if not text.startswith(self.MAGIC):
            return False
        self.kernels = set(text.removeprefix(self.MAGIC).split(","))
        return True

    def serialize(self) -> bytes:
        return (self.MAGIC + ",".join(sorted(self.kernels))).encode()


class FakeRuntimeConfig:
    """TensorRT for RTX: by default it allocates scratch memory itself and compiles kernels in the background."""

    allocation, dynamic_shapes_kernel_specialization_strategy = "static", "lazy"
    cache: FakeRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeContext:
    def __del__(self) -> None:
        self.engine.profiles_in_use.discard(self.profile)  # type: ignore[arg-type]

    def __init__(self, engine: FakeEngine, cache: FakeRuntimeCache | None) -> None:
        self.engine, self.gpu, self.cache = engine, engine.trt.gpu, cache
        self.profile: int | None = None
        self.scratch: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.has_run = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert not self.gpu.is_recording(stream)
        if profile in self.engine.profiles_in_use:  # the bindings raise where C++ returns false
            self.engine.trt.logger.log("ERROR", f"profile {profile} is in use by another context")
            raise RuntimeError("Error in set optimization profile async.")
        self.engine.profiles_in_use.add(profile)
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert self.profile is not None, "memory before a profile: its size is not known"
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert address % ALIGNMENT == 0
        self.gpu.at(address, (size,), np.uint8)
        self.scratch = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        self.shapes[name] = shape
        return tuple(self.engine.plan["profiles"][self.profile][name]) == shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.plan["tensors"] and address % ALIGNMENT == 0 and address > 0

    def execute_async_v3(self, stream: int) -> bool:
        plan, addresses, scratch = self.engine.plan, dict(self.addresses), self.scratch
        assert self.profile is not None
        assert scratch is not None
        assert addresses.keys() == plan["tensors"].keys()
        kernel = f"{plan['graph']} {self.profile}"
        if not self.has_run:  # the first run compiles and allocates
            if self.gpu.refuse_recording():
                return False
            if self.cache is None or kernel not in self.cache.kernels:
                self.engine.trt.compiled.append(kernel)
            if self.cache is not None:
                self.cache.kernels.add(kernel)
            self.has_run = True
        inputs = {
            name: (addresses[name], self.shapes[name], dtype)
            for name, (mode, dtype) in plan["tensors"].items()
            if mode == "in"
        }
        for where in inputs.values():
            self.gpu.at(*where)
        outputs = [name for name, (mode, _) in plan["tensors"].items() if mode == "out"]

        def work() -> None:
            # Another context may have used the scratch memory. What lies in it means nothing, before and after.
            self.gpu.at(scratch[0], (scratch[1],), np.uint8).fill(FRESH)
            values = {name: self.gpu.at(*where).copy() for name, where in inputs.items()}
            for name, value in zip(outputs, self.engine.session.run(outputs, values), strict=True):
                self.gpu.at(addresses[name], value.shape, value.dtype)[...] = value

        return bool(self.gpu.enqueue(kernel, stream, work) == 0)


def write_engines(
    bundle: Path, batches: tuple[int, ...] = (1,), built: Built = BUILT, guidance_scales: int | None = None
) -> Path:
    """Write a directory of fake engines into the bundle, with the layout of the engine builder."""
    source = Manifest.load(bundle)
    guided = guidance_scales or len(source.scales)
    folder = bundle / engine_record.FOLDER / built.tag
    folder.mkdir(parents=True)
    engines, graphs = {}, {}
    for name in GRAPHS:
        if name not in source.graphs:
            continue
        graph = source.graphs[name]
        profiles = engine_record.profiles(name, source, batches, guided)
        tensors = {t.name: (mode, t.dtype) for mode, ts in (("in", graph.inputs), ("out", graph.outputs)) for t in ts}
        plan = {"graph": name, "onnx": str(bundle / graph.file), "tensors": tensors, "profiles": profiles}
        (folder / f"{name}.engine").write_text(json.dumps(plan))
        digest = source.files[graph.file].sha256
        engines[name] = Engine(f"{name}.engine", digest, profiles, 1.0, 1, {}, 0, ())
        graphs[name] = type(graph)(f"{name}.engine", graph.inputs, graph.outputs)
    (folder / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes())
    if source.classes:
        (folder / source.classes).write_bytes((bundle / source.classes).read_bytes())
    weights = source.files[WEIGHTS].sha256
    EngineRecord(engine_record.SCHEMA_VERSION, built, weights, batches, guided, {}, engines, 0, "").write(folder)
    rewrite_manifest(folder, Manifest(**{**vars(source), "graphs": graphs}))
    return folder


def rewrite_manifest(folder: Path, manifest: Manifest) -> None:
    """Update the sizes and hashes in the manifest to the current files."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {path.name: File.of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    Manifest(**{**vars(manifest), "files": files}).write(folder)
