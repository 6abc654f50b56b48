"""Build the engines of a bundle one after the other, and write them with everything else that the runtime needs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from safetensors.numpy import save

from export.engine.build_log import counted, int8_fault, int8_products
from export.engine.builder import Builder, Options, load_tensorrt
from export.engine.kernels import Kernels, count
from export.engine.report import REPORT, inspected, report
from runtime.backends.cuda import Gpu, gpu, gpu_or_reason
from runtime.backends.wiring import ALIGNMENT
from runtime.bundle import engine_record, manifest
from runtime.bundle.engine_record import Built, Engine, EngineRecord
from runtime.bundle.names import CONDITION, GRAPHS, TRANSFORMER, caches, channel_scaling, past
from runtime.bundle.weight_file import open_weights, weight_bytes
from runtime.errors import BundleError, SettingsError
from runtime.files.atomic import atomic_directory
from runtime.files.outputs import ENGINES
from runtime.limits import Integers, shown
from runtime.memory import available_memory, memory
from runtime.optional import INSTALL
from runtime.progress import Progress, silent

AHEAD_OF_TIME = ("8.6",)  # the default without a GPU
JETSONS = ("7.2", "8.7", "10.1", "11.0")  # compute capabilities of Xavier, Orin and Thor, which no other GPU has
MEMORY_OF_TOOLS = 0.7e9  # bytes: TensorRT, the parsed graph
COPIES_OF_WEIGHTS = 3.5  # parsed, folded, in the plan, in the written file; measured: docs/benchmarks/engines.md
DEFAULTS = Options()


def find_tensorrt(asked: str) -> tuple[str, ModuleType]:
    """Return the flavour asked for and its module.

    "auto" is TensorRT if it is installed alone or if there is a GPU, else TensorRT for RTX.
    """
    if asked != "auto":
        flavour = asked.replace("-", "_")
        return flavour, load_tensorrt(flavour)
    here = [flavour for flavour in engine_record.FLAVOURS if find_spec(flavour)]
    if not here:
        raise SettingsError(f"no TensorRT is installed; {INSTALL['tensorrt']}; for RTX GPUs {INSTALL['tensorrt_rtx']}")
    flavour = "tensorrt" if here == ["tensorrt"] or ("tensorrt" in here and gpu()) else "tensorrt_rtx"
    return flavour, load_tensorrt(flavour)


def target(trt: ModuleType, flavour: str, capabilities: tuple[str, ...], options: Options) -> Built:
    """Return what to build for: this machine's GPU, or the given compute capabilities.

    Raises SettingsError if the GPU is missing, or if TensorRT cannot build for it or not with these options.
    """
    here = gpu_or_reason()
    if flavour == "tensorrt":
        if capabilities:
            raise SettingsError("--compute-capability: only TensorRT for RTX builds for other GPUs than this machine's")
        if isinstance(here, str):
            raise SettingsError(f"tensorrt: builds for the GPU of this machine, but: {here}")
        if options.hardware_compatible:
            _check_hardware_compatible(here)
    else:
        _check_for_rtx(trt, capabilities or here, options)
    compatible = options.hardware_compatible, options.version_compatible
    if capabilities or isinstance(here, str):
        return Built(flavour, trt.__version__, tuple(sorted({*capabilities} or AHEAD_OF_TIME)), None, *compatible)
    return Built(flavour, trt.__version__, (here.capability,), here.name, *compatible)


def _check_hardware_compatible(gpu: Gpu) -> None:
    """Raise SettingsError unless TensorRT builds engines on this GPU that run on others (AMPERE_PLUS)."""
    found = f"--hardware-compatible: {gpu.name} has compute capability {gpu.capability}"
    if gpu.capability in JETSONS:
        raise SettingsError(
            f"{found}, a Jetson, where TensorRT does not support it; leave it out and run make engine on each device"
        )
    if int(gpu.capability.split(".")[0]) < 8:
        raise SettingsError(
            f"{found}, TensorRT needs 8.0 (Ampere) or later for it; leave it out and run make engine on each device"
        )


def _check_for_rtx(trt: ModuleType, wanted: tuple[str, ...] | Gpu | str, options: Options) -> None:
    """Raise SettingsError unless TensorRT for RTX builds for these compute capabilities or this GPU."""
    name = f"TensorRT for RTX {trt.__version__}"
    known = [f"{n[2:-1]}.{n[-1]}" for n in trt.ComputeCapability.__members__ if n.startswith("SM")]
    if options.version_compatible:
        raise SettingsError(
            f"--version-compatible: {name} cannot do it; use --trt tensorrt, or leave it out and run"
            " make engine for each version"
        )
    if options.hardware_compatible:
        named = "name every GPU instead, such as --compute-capability 8.6,8.9,12.0"
        raise SettingsError(f"--hardware-compatible: {name} runs only on the GPUs that it is built for; {named}")
    if isinstance(wanted, tuple) and (unknown := [c for c in wanted if c not in known]):
        raise SettingsError(f"--compute-capability: expected any of {', '.join(known)}, found {', '.join(unknown)}")
    if isinstance(wanted, Gpu) and wanted.capability not in known:
        raise SettingsError(
            f"{wanted.name}: has compute capability {wanted.capability}, {name} supports {', '.join(known)};"
            " use --trt tensorrt, or --compute-capability to build for another GPU"
        )


def build_engines(
    bundle: Path,
    out: Path | None,
    trt: ModuleType,
    built: Built,
    batches: tuple[int, ...] = (1,),
    options: Options = DEFAULTS,
    guidance_scales: int | None = None,
    timing_cache: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda note: None,
) -> tuple[Path, bool]:
    """Build the engines of `bundle` into `out`, by default `engines/<device and TensorRT>` in the bundle.

    Returns the directory and whether it was built: existing engines that are up to date are not built again, unless
    `force`. They draw with guidance at `guidance_scales` scales or at more; None: at all. The directory is
    self-contained: engines, manifest, class names, constants. Raises BundleError, BuildError, SettingsError, OSError.
    """
    source = manifest.Manifest.load(bundle)
    if any(not graph.file.endswith(".onnx") for graph in source.graphs.values()):
        raise BundleError(f"{bundle}: holds engines, not graphs; give the bundle they were built from")
    if source.precision.is_simulated:
        raise SettingsError(f"{bundle}: {source.precision} is for checking on a CPU; build from the FP16 bundle")
    if source.precision.target == "cpu":
        raise SettingsError(f"{bundle}: its INT8 is for ONNX Runtime on a CPU; calibrate with --target trt for engines")
    batches = tuple(sorted({1, *batches}))  # with 1, the engines can generate any number of images
    guided = _guidance_scales(source, guidance_scales)
    _check_alignment(source, batches, guided)
    out = out or bundle / engine_record.FOLDER / built.tag
    plan = _plan(source, built, batches, options, guided)
    if not force and _is_up_to_date(out, plan):
        return out, False
    check_memory(bundle, source)
    builder = Builder(trt, built, options, timing_cache)
    with atomic_directory(out, ENGINES, bundle) as folder:
        engines = {}
        kernels: dict[str, Kernels] = {}
        for name, planned in plan.engines.items():
            start = time.perf_counter()
            data = builder.build(bundle / source.graphs[name].file, planned.profiles, progress)
            (folder / planned.file).write_bytes(data)
            weights = weight_bytes(bundle, [source.graphs[name].file])
            seconds = round(time.perf_counter() - start, 3)
            measured = replace(planned, build_seconds=seconds, weight_bytes=weights)
            kernels[name] = count(builder.log.lines, len(planned.profiles))
            if note := builder.foreign_cache():
                warn(note)
            engines[name] = _with_layers(measured, builder, data)
            if fault := int8_fault(name, engines[name]):
                warn(f"{fault}; see {REPORT}")
        _copy_constants(bundle, source, folder)
        record = replace(plan, engines=engines, peak_bytes=_peak_bytes(), created=_now())
        record.write(folder)
        text = report(record, kernels, folder)
        text += "".join(inspected(bundle / source.graphs[name].file) for name in engines)
        (folder / REPORT).write_text(text, encoding="utf-8")
        _engine_manifest(source, record, folder).write(folder)
    return out, True


def _with_layers(engine: Engine, builder: Builder, plan: bytes) -> Engine:
    """Return the record of an engine with its layers: from its inspector if it can be opened, else from the log.

    It is opened only if products are planned in INT8, because that takes the memory of its weights once more.
    """
    sources = [builder.inspect(plan)] if engine.int8_planned and builder.on_gpu else []
    sources = [layers for layers in (*sources, builder.layers()) if layers]
    products = (int8_products(layers, len(engine.profiles)) for layers in sources)
    return replace(
        engine,
        layers=counted(sources[0]) if sources else {},
        int8_built=next((counts for counts in products if counts), ()),
    )


def _check_alignment(source: manifest.Manifest, batches: tuple[int, ...], guidance_scales: int) -> None:
    """Raise SettingsError if images of a batch, or keys of one column, do not start where TensorRT accepts it."""
    model = source.model
    rows = model.code_size * model.grid**2 * 4, model.image_size**2 * 3  # bytes of one image in f_hat and in images
    if batches != (1,) and any(row % ALIGNMENT for row in rows):
        raise SettingsError(
            f"--batches: TensorRT needs images at multiples of {ALIGNMENT} bytes, those of {model.name} are not;"
            " use --batches 1"
        )
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in source.graphs[TRANSFORMER].inputs}
    keys = model.width * dtypes[past(*caches(model.depth)[0])].itemsize  # bytes of a token in a column
    if guidance_scales < len(source.scales) and keys % ALIGNMENT:
        raise SettingsError(
            f"--guidance-scales: TensorRT needs keys at multiples of {ALIGNMENT} bytes, those of {model.name} take"
            f" {keys}; leave it out"
        )


def _guidance_scales(source: manifest.Manifest, wanted: int | None) -> int:
    """Return the number of guided scales: `wanted`, or all. Raises SettingsError."""
    scales = len(source.scales)
    if wanted is not None and wanted not in Integers(1, scales):
        raise SettingsError(f"--guidance-scales: expected 1 to {scales}, found {shown(wanted)}")
    return scales if wanted is None else wanted


def _plan(
    source: manifest.Manifest, built: Built, batches: tuple[int, ...], options: Options, guidance_scales: int
) -> EngineRecord:
    """Return the record as far as it is known before building. Equal records mean equal engines."""
    engines = {
        name: Engine(
            f"{name}.engine",
            source.files[source.graphs[name].file].sha256,
            engine_record.profiles(name, source, batches, guidance_scales),
            build_seconds=0.0,
            weight_bytes=0,
            layers={},
            int8_planned=_int8_planned(source, name),
            int8_built=(),
        )
        for name in GRAPHS
        if name in source.graphs
    }
    weights = source.files[manifest.WEIGHTS].sha256
    version = engine_record.SCHEMA_VERSION
    return EngineRecord(version, built, weights, batches, guidance_scales, asdict(options), engines, 0, "")


def _is_up_to_date(out: Path, plan: EngineRecord) -> bool:
    try:
        manifest.Manifest.load(out)
        record = EngineRecord.load(out)
    except BundleError:
        return False
    unmeasured = {
        name: replace(engine, build_seconds=0.0, weight_bytes=0, layers={}, int8_built=())
        for name, engine in record.engines.items()
    }
    return replace(record, engines=unmeasured, peak_bytes=0, created="") == plan


def check_memory(bundle: Path, source: manifest.Manifest) -> None:
    """Raise SettingsError unless memory suffices for the largest graph; it says how much is needed and available."""
    files = [source.graphs[name].file for name in GRAPHS if name in source.graphs]
    largest = max(weight_bytes(bundle, [file]) for file in files)
    needed, available = build_bytes(largest), available_memory()
    if available is not None and available < needed:
        raise SettingsError(
            f"{bundle}: building needs {needed / 1e9:.2f} GB of memory, {available / 1e9:.2f} GB are available;"
            " close other programs or add swap"
        )


def build_bytes(largest: int) -> float:
    """Return the bytes of memory that a build needs whose largest graph has `largest` bytes of weights."""
    return MEMORY_OF_TOOLS + COPIES_OF_WEIGHTS * largest


def _copy_constants(bundle: Path, source: manifest.Manifest, folder: Path) -> None:
    """Copy what the runtime reads besides engines: its tensors of the weight file, and the class names.

    Also copy the channel scaling of the outputs of `condition`, which verification of the engine needs.
    """
    with open_weights(bundle) as weights:
        scaling = {channel_scaling(spec.name) for spec in source.graphs[CONDITION].outputs}
        wanted = source.runtime_tensors | scaling & set(weights.keys())
        tensors = {name: weights.get_tensor(name) for name in sorted(wanted)}
    (folder / manifest.WEIGHTS).write_bytes(save(tensors))  # not save_file, which hides the kind of an OSError
    if source.classes:
        shutil.copyfile(bundle / source.classes, folder / source.classes)


def _engine_manifest(source: manifest.Manifest, record: EngineRecord, folder: Path) -> manifest.Manifest:
    graphs = {name: replace(source.graphs[name], file=engine.file) for name, engine in record.engines.items()}
    files = {path.name: manifest.File.of(path) for path in sorted(folder.iterdir())}
    return replace(source, graphs=graphs, files=files)


def _int8_planned(source: manifest.Manifest, graph: str) -> int:
    plan = source.provenance.options.get("plan", {})
    return sum(key.startswith(f"{graph}: ") for kind in plan if kind.startswith("int8") for key in plan[kind])


def _peak_bytes() -> int:
    held = memory()
    return held.peak if held else 0


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
