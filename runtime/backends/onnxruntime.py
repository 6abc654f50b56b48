"""The ONNX Runtime backend, for CPU and GPU. Graphs work in place on arrays that are allocated once per batch size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..bundle.manifest import Graph, Manifest
from ..bundle.names import ENCODER, IMAGE, SMOOTH_BRIDGE, TOKENS
from ..errors import BundleError
from ..processors import usable_cpus
from ..sampling import DECODERS
from .arrays import Array, Arrays, DeviceArrays, HostArrays
from .base import OnStage, Plan
from .cuda import Cuda
from .ort_session import Device, Session
from .wired import Kind, Ran, WiredBackend
from .wiring import Stage, Wiring, scale_constants


class OnnxRuntimeBackend(WiredBackend["_Batch"]):
    """A `Backend` on the GPU and stream of `cuda`, or without it on `threads` CPU threads (None: `usable_cpus()`)."""

    batches: tuple[int, ...] | None = None

    def __init__(self, bundle: Path, manifest: Manifest, threads: int | None = None, cuda: Cuda | None = None) -> None:
        if other := [graph.file for graph in manifest.graphs.values() if not graph.file.endswith(".onnx")]:
            raise BundleError(f"{bundle}: holds engines ({other[0]}), which only --backend tensorrt runs")
        self.name = f"onnxruntime on {cuda.gpu.name}" if cuda else "onnxruntime"
        self.name += f" with {threads} thread(s)" if threads else ""
        super().__init__(manifest)
        self._bundle, self._threads, self._cuda = bundle, threads or usable_cpus(), cuda
        self._replaced: dict[str, _Replacement] = {}
        self._sessions = {name: self._open(name) for name in self._drawing_graphs}
        self._own_arrays = self._arrays()  # which are freed with this object
        self._constants = scale_constants(bundle, manifest, self._own_arrays)

    def _new_batch(self, arrays: Arrays, size: int, kind: Kind) -> _Batch:
        smooth, guidance_scales = kind
        if smooth and SMOOTH_BRIDGE not in self._sessions:  # loaded only if smooth sampling is used
            self._sessions[SMOOTH_BRIDGE] = self._open(SMOOTH_BRIDGE)
        wiring = Wiring(size, self.manifest, self._constants, arrays, smooth, guidance_scales)
        return _Batch(wiring, arrays, self._sessions, self._replaced)

    def replace_graph(
        self, name: str, graph: Graph, content: bytes, step_constants: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Run the ONNX file `content` instead of the bundle's graph `name`; `graph` declares its inputs and outputs.

        Tools use this to inspect a graph or to try a change. The file may have more outputs than the bundle's graph:
        an observer sees them too. It may have more inputs: at scale k such an input is row k of its array (K, …) in
        `step_constants`. The weights are still those of the bundle's weight file. Raises BundleError.
        """
        self.restore_graph(name, reopen=False)
        try:
            self._sessions[name] = self._open(name, graph, content)
        except BundleError:
            self.restore_graph(name)
            raise
        self._replaced[name] = _Replacement(graph, dict(step_constants or {}))

    def restore_graph(self, name: str, reopen: bool = True) -> None:
        """Undo `replace_graph`. Only one of the two graphs is in memory at a time. Raises BundleError."""
        self.free_batches()
        self._replaced.pop(name, None)
        self._sessions.pop(name, None)
        if reopen:
            self._sessions[name] = self._open(name)

    def encode(self, images: np.ndarray) -> np.ndarray:
        encoder, arrays = self._encoder, self._arrays()
        side, tokens = self.manifest.model.image_size, self.manifest.model.tokens
        try:
            image, found = arrays.zeros((1, side, side, 3), np.uint8), arrays.zeros((1, tokens), np.int32)
            run = encoder.bind({IMAGE: image}, {TOKENS: found})
            results = []
            for i in range(len(images)):
                arrays.upload(image, np.ascontiguousarray(images[i : i + 1]))
                run()
                results.append(arrays.download(found))
        finally:
            arrays.free()
        return np.concatenate(results)

    def close(self) -> None:
        super().close()
        self._sessions.clear()
        self._own_arrays.free()
        self.__dict__.pop("_encoder", None)

    @cached_property
    def _encoder(self) -> Session:
        # Loaded on first use, because only editing needs it.
        if ENCODER not in self.manifest.graphs:
            raise BundleError(f"{self._bundle}: no encoder, which editing needs; make onnx exports the bundle with one")
        return self._open(ENCODER)

    def _open(self, name: str, graph: Graph | None = None, content: bytes | None = None) -> Session:
        device = Device(self._cuda.stream) if self._cuda else None
        # Weights have 8 bits in INT8 for TensorRT, and may have in the graphs that a tool tries.
        exact = self.manifest.precision.target == "trt" or content is not None
        return Session(self._bundle, graph or self.manifest.graphs[name], self._threads, device, content, exact)

    def _arrays(self) -> Arrays:
        return DeviceArrays(self._cuda) if self._cuda else HostArrays()


@dataclass(frozen=True)
class _Replacement:
    """A replacement graph, with the inputs and outputs that the wiring does not provide."""

    graph: Graph
    step_constants: dict[str, np.ndarray]  # (K, …) each

    def extended(self, stage: Stage, arrays: Arrays, shared: dict[str, Array]) -> Stage:
        """Return the stage with arrays for the additional inputs and outputs.

        The scales share the output arrays in `shared`. A larger one than there is takes its place.
        """
        inputs, outputs = dict(stage.inputs), dict(stage.outputs)
        for name, rows in self.step_constants.items():
            assert stage.scale is not None
            inputs[name] = arrays.zeros(rows[stage.scale].shape, rows.dtype)
            arrays.upload(inputs[name], np.ascontiguousarray(rows[stage.scale]))
        sizes = {
            axis: size
            for spec in (*self.graph.inputs, *self.graph.outputs)
            if spec.name in stage.tensors
            for axis, size in zip(spec.shape, stage.tensors[spec.name].shape, strict=True)
        }
        for spec in self.graph.outputs:
            if spec.name not in outputs:
                shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
                if spec.name not in shared or len(shared[spec.name]) < math.prod(shape):
                    shared[spec.name] = arrays.zeros((math.prod(shape),), spec.dtype)
                outputs[spec.name] = shared[spec.name][: math.prod(shape)].reshape(shape)
        return replace(stage, inputs=inputs, outputs=outputs)


Run = tuple[Stage, Callable[[], None]]  # a stage, and the function that runs it


class _Batch:
    """The stages of one batch size, bound to their arrays."""

    def __init__(
        self, wiring: Wiring, arrays: Arrays, sessions: dict[str, Session], replaced: Mapping[str, _Replacement]
    ) -> None:
        shared: dict[str, dict[str, Array]] = {name: {} for name in replaced}

        def bound(stage: Stage) -> Run:
            if stage.graph in replaced:
                stage = replaced[stage.graph].extended(stage, arrays, shared[stage.graph])
            return stage, sessions[stage.graph].bind(stage.inputs, stage.outputs)

        self.wiring, self.arrays = wiring, arrays
        self.latest = -1  # the scale of the latest step
        self._on_stage: OnStage | None = None
        self._ran: Ran | None = None
        self._condition = bound(wiring.condition)
        from_largest = [[bound(stage) for stage in step] for step in reversed(wiring.steps)]
        self._steps = from_largest[::-1]
        self._decoders = {  # of each, one list per f_hat buffer
            graph: [[bound(stage) for stage in wiring.decoders(graph, k)] for k in range(2)]
            for graph in DECODERS.values()
            if graph in sessions
        }

    def prepare(self, plan: Plan, whole: bool, decoder: str) -> None:
        pass  # the stages are bound already, and ONNX Runtime runs them one by one in any case

    def begin(self, on_stage: OnStage | None, ran: Ran | None, whole: bool) -> None:
        self.latest = -1
        self._on_stage, self._ran = on_stage, ran
        self.wiring.upload_labels()
        self.wiring.clear_f_hat()
        self._run([self._condition])

    def step(self, k: int) -> None:
        self.wiring.upload_scale(k)
        for run in self._steps[k]:
            self._run([run])
        self.latest = k

    def decode(self, decoder: str) -> None:
        self._run(self._decoders[decoder][self.latest % 2])
        self.wiring.results.fetch()
        self.arrays.wait()

    def report(self) -> None:
        pass  # each time was reported when its stage had run

    def free(self) -> None:
        self.arrays.free()

    def _run(self, runs: Sequence[Run]) -> None:
        """Run these stages of one graph, then report each run to `_ran` and their total time to `_on_stage`."""
        start = time.perf_counter()
        for stage, run in runs:
            for copy in stage.copies:
                self.arrays.copy_columns(copy.target, copy.source)
            run()
            if self._ran:
                self._ran(stage)
        if self._on_stage:
            self._on_stage(stage.graph, stage.scale, time.perf_counter() - start)
