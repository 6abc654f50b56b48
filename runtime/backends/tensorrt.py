"""The TensorRT backend. All data stays on the GPU. A whole image is one CUDA graph, recorded once and then launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..bundle import engine_record
from ..bundle.engine_record import EngineRecord
from ..bundle.manifest import Manifest
from ..bundle.names import CONDITION, ENCODER, IMAGE, SMOOTH_BRIDGE, TINY_DECODER, TOKENS
from ..errors import BundleError, SettingsError, with_room
from ..sampling import DECODERS, Sampling
from .arrays import Arrays, DeviceArray, DeviceArrays
from .base import OnStage, Plan
from .cuda import Cuda, Gpu, Recording
from .kernel_cache import KernelCache
from .trt_engine import LoadedEngine, Log, load_tensorrt
from .wired import Kind, Ran, Shape, WiredBackend
from .wiring import Stage, Wiring, scale_constants


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

    launches_whole = True
    keeps_batches = True  # recording takes longer than drawing

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
        self._kernels = KernelCache(built.tag)
        self._engines = {name: self._load(name) for name in self._drawing_graphs}
        self._own_arrays = arrays = self._arrays()
        # The stages run in order on one stream, so they can share scratch memory.
        scratch = arrays.zeros((max(engine.scratch_bytes() for engine in self._engines.values()),), np.uint8)
        for engine in self._engines.values():
            engine.use(scratch, self._cuda.stream)
        self._constants = scale_constants(self._folder, self.manifest, arrays)

    def _arrays(self) -> DeviceArrays:
        return DeviceArrays(self._cuda)

    def check(self, sampling: Sampling) -> None:
        super().check(sampling)
        least, wanted = self._record.guidance_scales, sampling.scales_guided
        if wanted < min(least, len(self.manifest.scales)):
            built = f"the engines in {self._folder} have guidance at {least} scales or more, not at {wanted}"
            option = f"--guidance-scales {wanted}"
            raise SettingsError(f"guidance_scales: {built}; build them with python -m export.engine … {option}")

    def _new_batch(self, arrays: Arrays, size: int, kind: Kind) -> _Batch:
        smooth, guidance_scales = kind
        if size not in self._record.batches:
            sizes = ", ".join(map(str, self._record.batches))
            raise SettingsError(f"batch: the engines in {self._folder} draw {sizes} pictures at once, not {size}")
        if smooth and SMOOTH_BRIDGE not in self._engines:  # loaded only if smooth sampling is used
            engine = self._load(SMOOTH_BRIDGE)
            engine.use(self._own_arrays.zeros((engine.scratch_bytes(),), np.uint8), self._cuda.stream)
            self._engines[SMOOTH_BRIDGE] = engine
        wiring = Wiring(size, self.manifest, self._constants, arrays, smooth, guidance_scales)
        return _Batch(wiring, arrays, self._cuda, self._engines, self._record)

    def _prepare(self, wanted: Shape, plan: Plan, whole: bool) -> _Batch:
        batch = super()._prepare(wanted, plan, whole)
        self._kernels.save()  # those that were compiled for this batch
        return batch

    def free_batches(self) -> None:
        super().free_batches()
        for engine in self._engines.values():
            engine.free_contexts()

    def encode(self, images: np.ndarray) -> np.ndarray:
        return with_room(self._room, lambda: self._encode(images))

    def _encode(self, images: np.ndarray) -> np.ndarray:
        arrays, engine, image, found = self._encoder
        results = []
        for i in range(len(images)):
            arrays.upload(image, np.ascontiguousarray(images[i : i + 1]))
            engine.enqueue(0, {IMAGE: image, TOKENS: found})
            results.append(arrays.download(found))
        self._kernels.save()
        return np.concatenate(results)

    def close(self) -> None:
        super().close()
        if encoder := self.__dict__.pop("_encoder", None):
            encoder[0].free()
        self._engines.clear()
        self._own_arrays.free()

    @cached_property
    def _encoder(self) -> tuple[DeviceArrays, LoadedEngine, DeviceArray, DeviceArray]:
        """The encoder's arrays, engine, image and tokens. Loaded on first use, because only editing needs them."""
        if ENCODER not in self._record.engines:
            advice = "make onnx exports the bundle with one, then run make engine"
            raise BundleError(f"{self._folder}: no encoder engine, which editing needs; {advice}")
        arrays, side = self._arrays(), self.manifest.model.image_size
        try:
            engine = self._load(ENCODER)
            image = arrays.zeros((1, side, side, 3), np.uint8)
            found = arrays.zeros((1, self.manifest.model.tokens), np.int32)
            engine.use(arrays.zeros((engine.scratch_bytes(),), np.uint8), self._cuda.stream)
        except BaseException:
            arrays.free()
            raise
        return arrays, engine, image, found

    def _load(self, name: str) -> LoadedEngine:
        graph = self.manifest.graphs[name]
        path = self._folder / graph.file
        if name not in self._record.engines:
            raise BundleError(f"{self._folder}: no engine {name}; run make engine again")
        record = self._record.engines[name]
        return LoadedEngine(self._trt, self._runtime, self._log, self._kernels, path, graph, record)


@dataclass
class _Work:
    """Work for the stream: `before`, the stages with their profiles, `after`."""

    runs: Sequence[tuple[Stage, int]]
    before: Sequence[Callable[[], None]] = ()
    after: Sequence[Callable[[], None]] = ()
    recording: Recording | None = None


class _Batch:
    """The arrays of one batch size, and the CUDA graphs recorded on them.

    If nobody listens, a whole image is one graph, one for each decoder: the upload of all settings, the kernels of all
    engines, and the download of the results. Otherwise there is one graph for the condition, one for transformer and
    bridge of each scale, and one for each decoder and f_hat buffer. Graphs are recorded when they are first needed: a
    draft needs those of its scales only. With an observer the same work is queued stage by stage instead, because
    inside the graph of a scale the bridge overwrites the inputs of the transformer before the observer could read them.
    """

    def __init__(
        self, wiring: Wiring, arrays: Arrays, cuda: Cuda, engines: dict[str, LoadedEngine], record: EngineRecord
    ) -> None:
        self.wiring, self.arrays = wiring, arrays
        self._cuda, self._engines = cuda, engines
        self.latest = -1  # the scale of the latest step
        self._whole = False
        self._on_stage: OnStage | None = None
        self._ran: Ran | None = None
        self._marks: list[tuple[str, int | None, Any, Any]] = []

        scales = len(wiring.steps)
        condition = [(wiring.condition, record.batches.index(wiring.size))]
        steps = []
        for k, (transformer, bridge) in enumerate(wiring.steps):
            profile = columns = record.profile(wiring.size, k, scales)
            if k >= wiring.guidance_scales:
                columns = record.unguided_profile(wiring.size, k, scales)
            steps.append([(transformer, columns), (bridge, profile)])
        decoders = {  # of each, one list per f_hat buffer
            graph: [[(stage, 0) for stage in wiring.decoders(graph, k)] for k in range(2)]
            for graph in DECODERS.values()
            if graph in engines
        }
        fetch = wiring.results.fetch
        self._condition = _Work(condition, before=(wiring.upload_labels, wiring.clear_f_hat))
        self._steps = [_Work(step, before=(partial(wiring.upload_scale, k),)) for k, step in enumerate(steps)]
        self._decoders = {name: [_Work(runs, after=(fetch,)) for runs in pair] for name, pair in decoders.items()}
        tokens = [*condition, *(run for step in steps for run in step)]
        begin = wiring.settings.upload, wiring.clear_f_hat
        self._images = {
            name: _Work([*tokens, *pair[(scales - 1) % 2]], begin, (fetch,)) for name, pair in decoders.items()
        }

    def prepare(self, plan: Plan, whole: bool, decoder: str) -> None:
        self._ran = None
        for work in [self._images[decoder]] if whole else self._parts(plan, decoder):
            if work.recording is None:
                self._queue(work)  # the first run allocates and chooses kernels, which is not allowed in a recording
                self._cuda.synchronize()
                work.recording = self._cuda.recorded(partial(self._queue, work))

    def _parts(self, plan: Plan, decoder: str) -> list[_Work]:
        """Return the work that the plan may launch one by one."""
        last = plan.scales == len(self._steps)  # whose preview is the image itself
        decoders = self._decoders[decoder] if plan.image or (plan.asked and last) else []
        if plan.asked:
            decoders = [*decoders, *self._decoders.get(TINY_DECODER, self._decoders[decoder])]  # for previews
        return [self._condition, *self._steps[: plan.scales], *decoders]

    def begin(self, on_stage: OnStage | None, ran: Ran | None, whole: bool) -> None:
        self._times()  # of a run that was stopped
        self.latest, self._on_stage, self._ran, self._whole = -1, on_stage, ran, whole
        if not whole:
            self._launch(CONDITION, None, self._condition)

    def step(self, k: int) -> None:
        if not self._whole:
            self._launch("step", k, self._steps[k])
        self.latest = k

    def decode(self, decoder: str) -> None:
        work = self._images[decoder] if self._whole else self._decoders[decoder][self.latest % 2]
        self._launch(decoder, None, work)
        self._cuda.synchronize()

    def report(self) -> None:
        for stage, scale, seconds in self._times():
            assert self._on_stage
            self._on_stage(stage, scale, seconds)

    def free(self) -> None:
        self.arrays.free()  # waits for what is queued
        for work in (*self._images.values(), self._condition, *self._steps, *chain(*self._decoders.values())):
            work.recording = None

    def _queue(self, work: _Work) -> None:
        for prepare in work.before:
            prepare()
        for stage, profile in work.runs:
            for copy in stage.copies:
                self.arrays.copy_columns(copy.target, copy.source)
            self._engines[stage.graph].enqueue(profile, stage.tensors)
            if self._ran:
                self._ran(stage)
        for finish in work.after:
            finish()

    def _launch(self, stage: str, scale: int | None, work: _Work) -> None:
        start = self._cuda.mark() if self._on_stage else None
        if self._ran:
            self._queue(work)
        else:
            assert work.recording is not None
            self._cuda.launch(work.recording)
        if start is not None:
            self._marks.append((stage, scale, start, self._cuda.mark()))

    def _times(self) -> list[tuple[str, int | None, float]]:
        """Return (stage, scale, seconds) of each launch since the last call. The stream must have finished them."""
        times = [(stage, scale, self._cuda.seconds(start, end)) for stage, scale, start, end in self._marks]
        self._marks.clear()
        return times
