"""The TensorRT backend. All data stays on the GPU. Each step is one CUDA graph, recorded once and then launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..bundle import engine_record
from ..bundle.engine_record import EngineRecord
from ..bundle.manifest import Manifest
from ..bundle.names import CONDITION, DECODER, ENCODER, IMAGE, REQUIRED_GRAPHS, SMOOTH_BRIDGE, TOKENS
from ..errors import BundleError, SettingsError
from .arrays import DeviceArray, DeviceArrays
from .base import OnStage
from .cuda import Cuda, Gpu
from .trt_engine import LoadedEngine, Log, load_tensorrt
from .wired import Ran, WiredBackend
from .wiring import ScaleConstants, Stage, Wiring, scale_constants


def find_engines(bundle: Path, manifest: Manifest, gpu: Gpu, verify: bool) -> tuple[Path, Manifest, EngineRecord]:
    """Return the directory of engines to use, its manifest and its record.

    The directory is `bundle` itself, or one inside it whose engines were built from this bundle and run on this
    machine. Raises BundleError, SettingsError. If no directory fits, the message gives the reason for each.
    """
    if (bundle / engine_record.FILE_NAME).is_file():
        record = EngineRecord.load(bundle)
        check_machine(bundle, record, gpu)
        return bundle, manifest, record
    folders = sorted(path.parent for path in bundle.glob(f"{engine_record.FOLDER}/*/{engine_record.FILE_NAME}"))
    if not folders:
        raise BundleError(f"{bundle}: no engines in {engine_record.FOLDER}/; make engine builds them")
    reasons = []
    for folder in folders:
        try:
            record = EngineRecord.load(folder)
            check_machine(folder, record, gpu)
            check_source(folder, record, manifest)
            return folder, Manifest.load(folder, verify), record
        except (BundleError, SettingsError) as error:
            reasons.append(str(error))
    raise BundleError("; ".join(reasons))


def check_machine(folder: Path, record: EngineRecord, gpu: Gpu) -> None:
    """Raise BundleError unless the engines fit this GPU and TensorRT, SettingsError if TensorRT is not installed."""
    built, trt = record.built, load_tensorrt(record.built.flavour)
    again = "run make engine on this machine"
    same_line = built.version_compatible and trt.__version__.split(".")[0] == built.version.split(".")[0]
    if trt.__version__ != built.version and not same_line:
        raise BundleError(
            f"{folder}: built with {built.flavour} {built.version}, this machine has {trt.__version__}; {again}"
        )
    newer = built.hardware_compatible and _number(gpu.capability) >= min(map(_number, built.compute_capabilities))
    if gpu.capability not in built.compute_capabilities and not newer:
        wanted = ", ".join(f"sm_{c.replace('.', '')}" for c in built.compute_capabilities)
        found = f"{gpu.name}, sm_{gpu.capability.replace('.', '')}"
        raise BundleError(f"{folder}: built for {wanted}, this GPU is {found}; {again}")
    if built.flavour == "tensorrt" and not built.hardware_compatible and built.gpu != gpu.name:
        raise BundleError(f"{folder}: built on {built.gpu}, this GPU is {gpu.name}; {again}")


def check_source(folder: Path, record: EngineRecord, manifest: Manifest) -> None:
    """Raise BundleError unless the engines were built from the bundle with this manifest."""
    if not record.fits(manifest):
        raise BundleError(f"{folder}: built from another bundle than the one it lies in; run make engine again")


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


class TensorRTBackend(WiredBackend["_Batch"]):
    """A `Backend` that runs the engines of a bundle on the first GPU."""

    def __init__(self, bundle: Path, manifest: Manifest, verify: bool = True) -> None:
        self._cuda = Cuda()
        self._folder, manifest, self._record = find_engines(bundle, manifest, self._cuda.gpu, verify)
        super().__init__(manifest)
        self.batches: tuple[int, ...] | None = self._record.batches
        built = self._record.built
        self.name = f"{built.flavour} {built.version} on {self._cuda.gpu.name}"
        self._trt: ModuleType = load_tensorrt(built.flavour)
        self._log = Log(self._trt)
        self._runtime = self._trt.Runtime(self._log.logger)
        if built.version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._engines = {name: self._load(name) for name in REQUIRED_GRAPHS}
        self._own_arrays = arrays = DeviceArrays(self._cuda)
        # The stages run in order on one stream, so they can share scratch memory.
        scratch = arrays.zeros((max(engine.scratch_bytes() for engine in self._engines.values()),), np.uint8)
        for engine in self._engines.values():
            engine.use(scratch, self._cuda.stream)
        self._constants = scale_constants(self._folder, self.manifest, arrays)

    def _prepare(self, size: int, smooth: bool) -> _Batch:
        if size not in self._record.batches:
            sizes = ", ".join(map(str, self._record.batches))
            raise SettingsError(f"batch: these engines draw {sizes} pictures at once, not {size}")
        if smooth and SMOOTH_BRIDGE not in self._engines:  # loaded only if smooth sampling is used
            engine = self._engines[SMOOTH_BRIDGE] = self._load(SMOOTH_BRIDGE)
            engine.use(self._own_arrays.zeros((engine.scratch_bytes(),), np.uint8), self._cuda.stream)
        return _Batch(size, smooth, self._cuda, self._engines, self._record, self.manifest, self._constants)

    def encode(self, images: np.ndarray) -> np.ndarray:
        arrays, engine, image, found = self._encoder
        results = []
        for i in range(len(images)):
            arrays.upload(image, np.ascontiguousarray(images[i : i + 1]))
            engine.enqueue(0, {IMAGE: image, TOKENS: found})
            results.append(arrays.download(found))
        return np.concatenate(results)

    @cached_property
    def _encoder(self) -> tuple[DeviceArrays, LoadedEngine, DeviceArray, DeviceArray]:
        """The encoder's arrays, engine, image and tokens. Loaded on first use, because only editing needs them."""
        if ENCODER not in self._record.engines:
            advice = "make onnx exports the bundle with one, then run make engine"
            raise BundleError(f"{self._folder}: no encoder engine, which editing needs; {advice}")
        arrays, engine, side = DeviceArrays(self._cuda), self._load(ENCODER), self.manifest.model.image_size
        image = arrays.zeros((1, side, side, 3), np.uint8)
        found = arrays.zeros((1, self.manifest.model.tokens), np.int32)
        engine.use(arrays.zeros((engine.scratch_bytes(),), np.uint8), self._cuda.stream)
        return arrays, engine, image, found

    def _load(self, name: str) -> LoadedEngine:
        graph = self.manifest.graphs[name]
        path = self._folder / graph.file
        if name not in self._record.engines:
            raise BundleError(f"{self._folder}: no engine {name}; run make engine again")
        return LoadedEngine(self._trt, self._runtime, self._log, path, graph, self._record.engines[name])


@dataclass(frozen=True)
class _Recording:
    """A CUDA graph, and the work in it: `prepare`, then the stages with their profiles."""

    runs: Sequence[tuple[Stage, int]]
    prepare: Callable[[], None]
    graph: Any


class _Batch:
    """The arrays of one batch size, and the CUDA graphs recorded on them.

    There is one graph for the condition, one for transformer and bridge of each scale, and one decoder for each of the
    two f_hat buffers. A graph holds the upload of the settings and the kernels of the engines. With an observer the
    same kernels are queued stage by stage instead, because inside the graph of a scale the bridge overwrites the
    inputs of the transformer before the observer could read them.
    """

    def __init__(
        self,
        size: int,
        smooth: bool,
        cuda: Cuda,
        engines: dict[str, LoadedEngine],
        record: EngineRecord,
        manifest: Manifest,
        constants: list[ScaleConstants],
    ) -> None:
        self._cuda, self._engines = cuda, engines
        self.arrays = DeviceArrays(cuda)
        self.wiring = wiring = Wiring(size, manifest, constants, self.arrays, smooth)
        self.latest = -1  # the scale of the latest step
        self._on_stage: OnStage | None = None
        self._ran: Ran | None = None
        self._marks: list[tuple[str, int | None, Any, Any]] = []
        self._images, self._finite = (self.arrays.pinned(array.nbytes) for array in (wiring.images, wiring.finite))

        scales = len(manifest.scales)
        self._condition = self._recorded([(wiring.condition, record.batches.index(size))], wiring.start)
        self._steps = [
            self._recorded([(stage, record.profile(size, k, scales)) for stage in step], wiring.settings[k].upload)
            for k, step in enumerate(wiring.steps)
        ]
        self._decoders = [self._recorded([(stage, 0) for stage in wiring.decoders(k)]) for k in range(2)]

    def begin(self, labels: np.ndarray, on_stage: OnStage | None, ran: Ran | None) -> None:
        self._cuda.synchronize()  # a stopped run may still read the arrays that are written now
        self._times()
        self.latest, self._on_stage, self._ran = -1, on_stage, ran
        self.wiring.set_labels(labels)
        self._launch(CONDITION, None, self._condition)

    def step(self, k: int) -> None:
        self._launch("step", k, self._steps[k])
        self.latest = k

    def decode(self) -> np.ndarray:
        self._launch(DECODER, None, self._decoders[self.latest % 2])
        self._cuda.download(self._images, self.wiring.images.address)
        self._cuda.download(self._finite, self.wiring.finite.address)
        self._cuda.synchronize()
        for stage, scale, seconds in self._times():
            assert self._on_stage
            self._on_stage(stage, scale, seconds)
        result: np.ndarray = self._images.reshape(self.wiring.images.shape).copy()
        return result

    def finite(self) -> np.ndarray:
        result: np.ndarray = self._finite.view(np.bool_).reshape(self.wiring.finite.shape)[:, 0].copy()
        return result

    def free(self) -> None:
        self._cuda.synchronize()
        for recording in (self._condition, *self._steps, *self._decoders):
            self._cuda.discard(recording.graph)
        self.arrays.free()

    def _recorded(self, runs: list[tuple[Stage, int]], prepare: Callable[[], None] = lambda: None) -> _Recording:
        """Record a graph that prepares, then runs the stages with their profiles."""
        self._queue(runs, prepare)  # the first run allocates and chooses kernels, which is not allowed in a recording
        self._cuda.synchronize()
        with self._cuda.capturing() as graphs:
            self._queue(runs, prepare)
        return _Recording(runs, prepare, graphs[0])

    def _queue(self, runs: Sequence[tuple[Stage, int]], prepare: Callable[[], None]) -> None:
        prepare()
        for stage, profile in runs:
            self._engines[stage.graph].enqueue(profile, stage.tensors)
            if self._ran:
                self._ran(stage)

    def _launch(self, stage: str, scale: int | None, recording: _Recording) -> None:
        start = self._cuda.mark() if self._on_stage else None
        if self._ran:
            self._queue(recording.runs, recording.prepare)
        else:
            self._cuda.launch(recording.graph)
        if start is not None:
            self._marks.append((stage, scale, start, self._cuda.mark()))

    def _times(self) -> list[tuple[str, int | None, float]]:
        """Return (stage, scale, seconds) of each launch since the last call. The stream must have finished them."""
        times = [(stage, scale, self._cuda.seconds(start, end)) for stage, scale, start, end in self._marks]
        self._marks.clear()
        return times
