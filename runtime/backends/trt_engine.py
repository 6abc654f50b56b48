"""Load one TensorRT engine, check it against the manifest and run it, with one context for each profile."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..bundle.engine_record import Engine
from ..bundle.manifest import Graph
from ..errors import BundleError, SettingsError, VarEdgeError
from ..files.bounded import open_file
from ..optional import INSTALL
from .arrays import DeviceArray

READ_BYTES = 64 << 20  # an engine is read into host memory in pieces of at most this size


def load_tensorrt(flavour: str) -> ModuleType:
    """Return the module `tensorrt` or `tensorrt_rtx`. Raises SettingsError if it cannot be imported."""
    try:
        return importlib.import_module(flavour)
    except ImportError as error:
        raise SettingsError(f"{flavour} cannot be imported ({error}); {INSTALL[flavour]}") from None


class Log:
    """Collects the errors that TensorRT logs; they give the reason when a call fails."""

    def __init__(self, trt: ModuleType) -> None:
        errors: list[str] = []
        serious = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in serious:
                    errors.append(" ".join(text.split()))

        self.errors = errors
        self.logger = Logger()

    def reason(self) -> str:
        return "; ".join(dict.fromkeys(self.errors)) or "TensorRT gives no reason"


class LoadedEngine:
    """An engine on the GPU, with one context for each profile in use.

    Raises BundleError if TensorRT cannot read it or it differs from the manifest or the record.
    """

    def __init__(self, trt: ModuleType, runtime: Any, log: Log, path: Path, graph: Graph, record: Engine) -> None:
        self._trt, self._log, self._path, self._record = trt, log, path, record
        self._config: Any = None  # used by TensorRT for RTX only
        with open_file(path) as file:
            self._engine = runtime.deserialize_cuda_engine(stream_reader(trt, file))
        if self._engine is None:
            raise BundleError(f"{path}: TensorRT cannot read it: {log.reason()}; run make engine on this machine")
        self._check(graph)

    def scratch_bytes(self) -> int:
        """Return the bytes of scratch memory that the largest profile needs while it runs."""
        count = len(self._record.profiles)
        return max(int(self._engine.get_device_memory_size_for_profile_v2(i)) for i in range(count))

    def use(self, scratch: DeviceArray, stream: int) -> None:
        """Set the stream to run on, and scratch memory, which engines on the same stream may share."""
        self._scratch, self._stream = scratch, stream
        self._contexts: dict[int, Any] = {}

    def enqueue(self, profile: int, tensors: dict[str, DeviceArray]) -> None:
        """Queue one run with this profile on these arrays. The first run of a profile creates its context."""
        context = self._contexts.get(profile) or self._contexts.setdefault(profile, self._context(profile))
        for name, array in tensors.items():
            expected = self._record.profiles[profile].get(name, array.shape)
            assert array.shape == expected, f"{self._path}: {name}: {array.shape} is bound, not {expected}"
            if not context.set_tensor_address(name, array.address):
                raise VarEdgeError(f"{self._path}: {name}: TensorRT refuses its address: {self._log.reason()}")
        if not context.execute_async_v3(self._stream):
            raise VarEdgeError(f"{self._path}: TensorRT failed: {self._log.reason()}")

    def _context(self, profile: int) -> Any:
        """Create the context of a profile; TensorRT allows one for each."""
        context = self._new_context()
        if context is None:
            raise VarEdgeError(f"{self._path}: no execution context: {self._log.reason()}")
        accepted = context.set_optimization_profile_async(profile, self._stream)
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        for name, shape in self._record.profiles[profile].items():
            accepted = context.set_input_shape(name, shape) and accepted
        if not accepted:
            raise VarEdgeError(f"{self._path}: profile {profile}: TensorRT refuses its shapes: {self._log.reason()}")
        return context

    def _new_context(self) -> Any:
        trt, scratch_is_ours = self._trt, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return self._engine.create_execution_context(scratch_is_ours)
        self._config = self._config or self._engine.create_runtime_config()  # must outlive the contexts
        self._config.set_execution_context_allocation_strategy(scratch_is_ours)
        # By default TensorRT for RTX compiles the kernels of a shape in the background and runs slower ones until they
        # are ready. A CUDA graph recorded meanwhile would keep the slower ones for ever.
        self._config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return self._engine.create_execution_context(runtime_config=self._config)

    def _check(self, graph: Graph) -> None:
        engine, trt = self._engine, self._trt
        found = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            found[name] = is_input, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        expected = {tensor.name: (True, tensor.dtype) for tensor in graph.inputs}
        expected |= {tensor.name: (False, tensor.dtype) for tensor in graph.outputs}
        if differing := sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name)):
            raise BundleError(
                f"{self._path}: {', '.join(differing)}: engine and manifest differ in name, direction or dtype;"
                " run make engine again"
            )
        if engine.num_optimization_profiles != len(self._record.profiles):
            profiles = f"expected {len(self._record.profiles)} profiles, found {engine.num_optimization_profiles}"
            raise BundleError(f"{self._path}: {profiles}; run make engine again")
        for i, profile in enumerate(self._record.profiles):
            for name, shape in profile.items():
                shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, i)]
                if shapes != [shape] * 3:  # min, opt, max
                    found_shapes = f"expected {shape}, found {shapes[0]} to {shapes[2]}"
                    raise BundleError(f"{self._path}: profile {i}: {name}: {found_shapes}; run make engine again")


def stream_reader(trt: ModuleType, file: io.BufferedReader) -> Any:
    """Return a reader that gives TensorRT the engine in pieces, so that host memory never holds all of it.

    TensorRT 10.3 has only the older interface, `IStreamReader`.
    """
    in_pieces = hasattr(trt, "IStreamReaderV2")  # this interface allows a read to return fewer bytes than asked for
    base = trt.IStreamReaderV2 if in_pieces else trt.IStreamReader

    class Reader(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def read(self, size: int, stream: int = 0) -> bytes:
            return file.read(min(size, READ_BYTES) if in_pieces else size)

        def seek(self, offset: int, where: Any) -> bool:
            positions = trt.SeekPosition
            whence = {positions.SET: io.SEEK_SET, positions.CUR: io.SEEK_CUR, positions.END: io.SEEK_END}
            file.seek(offset, whence[where])
            return True

    return Reader()
