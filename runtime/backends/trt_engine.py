"""Load one TensorRT engine, check it against the manifest and run it, with one context for each profile."""

from __future__ import annotations

import importlib
import mmap
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..bundle.engine_record import Engine
from ..bundle.manifest import Graph
from ..errors import BundleError, OutOfMemoryError, SettingsError, VarEdgeError, engine_error
from ..files.bounded import open_file
from ..optional import INSTALL
from .arrays import DeviceArray
from .kernel_cache import KernelCache


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
        """Return what was logged since the last call."""
        reason = "; ".join(dict.fromkeys(self.errors)) or "TensorRT gives no reason"
        self.errors.clear()
        return reason

    def problem(self, what: str) -> VarEdgeError:
        """Return the error that `what` failed, for the reason that was logged.

        TensorRT's calls only return whether they succeeded: that the memory is full is in the text.
        """
        return engine_error(f"{what}: {self.reason()}")


class LoadedEngine:
    """An engine on the GPU, with one context for each profile in use.

    Raises BundleError if TensorRT cannot read it or it differs from the manifest or the record.
    """

    def __init__(
        self,
        trt: ModuleType,
        runtime: Any,
        log: Log,
        kernels: KernelCache,
        path: Path,
        graph: Graph,
        record: Engine,
    ) -> None:
        self._trt, self._log, self._kernels, self._path, self._record = trt, log, kernels, path, record
        self._config: Any = None  # used by TensorRT for RTX only
        log.errors.clear()
        self._engine = runtime.deserialize_cuda_engine(stream_reader(trt, path))
        if self._engine is None:
            error = log.problem(f"{path}: TensorRT cannot read it")
            if isinstance(error, OutOfMemoryError):
                raise error
            raise BundleError(f"{error}; run make engine on this machine")
        self._check(graph)

    def scratch_bytes(self) -> int:
        """Return the bytes of scratch memory that the largest profile needs while it runs."""
        count = len(self._record.profiles)
        return max(int(self._engine.get_device_memory_size_for_profile_v2(i)) for i in range(count))

    def use(self, scratch: DeviceArray, stream: int) -> None:
        """Set the stream to run on, and scratch memory, which engines on the same stream may share."""
        self._scratch, self._stream = scratch, stream
        self._contexts: dict[int, Any] = {}

    def free_contexts(self) -> None:
        """Release the memory of the contexts; the next run creates its own."""
        self._contexts.clear()

    def enqueue(self, profile: int, tensors: dict[str, DeviceArray]) -> None:
        """Queue one run with this profile on these arrays. The first run of a profile creates its context."""
        self._log.errors.clear()  # those of earlier calls that succeeded all the same
        context = self._contexts.get(profile) or self._contexts.setdefault(profile, self._context(profile))
        for name, array in tensors.items():
            expected = self._record.profiles[profile].get(name, array.shape)
            assert array.shape == expected, f"{self._path}: {name}: {array.shape} is bound, not {expected}"
            if not context.set_tensor_address(name, array.address):
                raise self._log.problem(f"{self._path}: {name}: TensorRT refuses its address")
        if not context.execute_async_v3(self._stream):
            raise self._log.problem(f"{self._path}: TensorRT failed")

    def _context(self, profile: int) -> Any:
        """Create the context of a profile; TensorRT allows one for each."""
        context = self._new_context()
        if context is None:
            raise self._log.problem(f"{self._path}: no execution context")
        try:
            context.set_optimization_profile_async(profile, self._stream)
        except RuntimeError:  # the bindings raise it, without a reason, where C++ returns false
            raise self._log.problem(f"{self._path}: profile {profile}: TensorRT refuses it") from None
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        shapes = self._record.profiles[profile].items()
        if not all([context.set_input_shape(name, shape) for name, shape in shapes]):
            raise self._log.problem(f"{self._path}: profile {profile}: TensorRT refuses its shapes")
        return context

    def _new_context(self) -> Any:
        trt, scratch_is_ours = self._trt, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return self._engine.create_execution_context(scratch_is_ours)
        self._config = self._config or self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(scratch_is_ours)
        # By default TensorRT for RTX compiles the kernels of a shape in the background and runs slower ones until they
        # are ready. A CUDA graph recorded meanwhile would keep the slower ones for ever.
        self._config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._kernels.attach(self._config)
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


def stream_reader(trt: ModuleType, path: Path) -> Any:
    """Return a reader that gives TensorRT the engine file from the page cache, without a copy in host memory.

    TensorRT may ask for all weights in one read, and does not promise to ask again after a shorter answer, so each read
    returns what was asked for. The Python bindings of TensorRT 10.7 and 10.8 copy what `IStreamReaderV2` reads with
    memcpy, although the target may be in GPU memory; until 10.9 only `IStreamReader` is safe.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
    old = hasattr(trt, "IStreamReader") and _version(trt) < (10, 9)
    base = trt.IStreamReader if old else trt.IStreamReaderV2

    class Reader(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.position = 0

        def read(self, size: int, stream: int = 0) -> memoryview:
            start = self.position
            self.position = min(start + size, len(content))
            return content[start : self.position]

        def seek(self, offset: int, where: Any) -> bool:
            positions = trt.SeekPosition
            origin = {positions.SET: 0, positions.CUR: self.position, positions.END: len(content)}[where]
            if not 0 <= origin + offset <= len(content):
                return False
            self.position = origin + offset
            return True

    return Reader()


def _version(trt: ModuleType) -> tuple[int, ...]:
    return tuple(int(number) for number in trt.__version__.split(".")[:2])
