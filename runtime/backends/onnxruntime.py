"""ONNX Runtime, on the CPU or on a GPU: graphs work in place on arrays that are allocated once for a batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from ..bundle.manifest import REQUIRED_GRAPHS, Manifest
from ..errors import BundleError
from ..processors import usable_cpus
from .arrays import Arrays, DeviceArrays, HostArrays
from .base import OnStage
from .cuda import Cuda
from .ort_session import Device, Session
from .wired import WiredBackend
from .wiring import SMOOTH_BRIDGE, Stage, Wiring, scale_constants


class OnnxRuntimeBackend(WiredBackend["_Batch"]):
    """See `Backend`. With `cuda`, on that GPU and its stream; else on the CPU with `threads`, None: `usable_cpus()`."""

    batches: tuple[int, ...] | None = None

    def __init__(self, bundle: Path, manifest: Manifest, threads: int | None = None, cuda: Cuda | None = None) -> None:
        if other := [graph.file for graph in manifest.graphs.values() if not graph.file.endswith(".onnx")]:
            raise BundleError(f"{bundle}: holds engines ({other[0]}), which only --backend tensorrt runs")
        self.name = f"onnxruntime on {cuda.gpu.name}" if cuda else "onnxruntime"
        self.name += f" with {threads} thread(s)" if threads else ""
        super().__init__(manifest)
        self._bundle, self._threads, self._cuda = bundle, threads or usable_cpus(), cuda
        self._sessions = {name: self._open(name) for name in REQUIRED_GRAPHS}
        self._constants = scale_constants(bundle, manifest, self._arrays())

    def _prepare(self, size: int, smooth: bool) -> _Batch:
        arrays = self._arrays()
        if smooth and SMOOTH_BRIDGE not in self._sessions:  # only smooth sampling pays for it
            self._sessions[SMOOTH_BRIDGE] = self._open(SMOOTH_BRIDGE)
        return _Batch(Wiring(size, self._manifest, self._constants, arrays, smooth), arrays, self._sessions)

    def encode(self, images: np.ndarray) -> np.ndarray:
        arrays, side, tokens = self._arrays(), self._manifest.model.image_size, self._manifest.model.tokens
        image, found = arrays.zeros((1, side, side, 3), np.uint8), arrays.zeros((1, tokens), np.int32)
        run = self._encoder.bind({"image": image}, {"tokens": found})
        results = []
        for i in range(len(images)):
            arrays.upload(image, np.ascontiguousarray(images[i : i + 1]))
            run()
            results.append(arrays.download(found))
        _free(arrays)
        return np.concatenate(results)

    @cached_property
    def _encoder(self) -> Session:
        # Only editing needs it, so only editing pays for it.
        if "encoder" not in self._manifest.graphs:
            raise BundleError(f"{self._bundle}: no encoder, which editing needs; make onnx exports the bundle with one")
        return self._open("encoder")

    def _open(self, graph: str) -> Session:
        device = Device(self._cuda.stream) if self._cuda else None
        return Session(self._bundle, self._manifest.graphs[graph], self._threads, device)

    def _arrays(self) -> Arrays:
        return DeviceArrays(self._cuda) if self._cuda else HostArrays()


class _Batch:
    """The stages of one batch size, bound to their arrays."""

    def __init__(self, wiring: Wiring, arrays: Arrays, sessions: dict[str, Session]) -> None:
        def bound(stage: Stage) -> Callable[[], None]:
            return sessions[stage.graph].bind(stage.inputs, stage.outputs)

        self.wiring, self.arrays = wiring, arrays
        self.latest = -1  # the scale stepped last
        self._on_stage: OnStage | None = None
        self._condition = bound(wiring.condition)
        self._steps = [[(stage.graph, bound(stage)) for stage in step] for step in wiring.steps]
        self._decoders = [[bound(stage) for stage in wiring.decoders(k)] for k in range(2)]  # by f_hat's turn

    def begin(self, labels: np.ndarray, on_stage: OnStage | None) -> None:
        self.latest = -1
        self._on_stage = on_stage
        self.wiring.set_labels(labels)
        self.wiring.start()
        with self._timed("condition", None):
            self._condition()

    def step(self, k: int) -> None:
        self.wiring.settings[k].upload()
        for name, run in self._steps[k]:
            with self._timed(name, k):
                run()
        self.latest = k

    def decode(self) -> np.ndarray:
        with self._timed("decoder", None):
            for run in self._decoders[self.latest % 2]:
                run()
        return self.arrays.download(self.wiring.images)

    def finite(self) -> np.ndarray:
        return self.arrays.download(self.wiring.finite)[:, 0]

    def free(self) -> None:
        _free(self.arrays)

    @contextmanager
    def _timed(self, stage: str, scale: int | None) -> Iterator[None]:
        """Tells `on_stage`, if there is one, how long the block took."""
        start = time.perf_counter()
        yield
        if self._on_stage:
            self._on_stage(stage, scale, time.perf_counter() - start)


def _free(arrays: Arrays) -> None:
    if isinstance(arrays, DeviceArrays):
        arrays.free()
