"""The whole benchmark, in an order in which no part disturbs the next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from ..base_pipeline import BasePipeline
from ..bundle.manifest import WEIGHTS, Manifest
from ..bundle.names import TINY_DECODER
from ..bundle.weight_file import loaded_weights
from ..errors import SettingsError
from ..optional import require
from ..processors import usable_cpus
from ..progress import Progress, counter, silent
from ..sampling import DECODERS
from .compare import Draw
from .gemm import gemm_rate
from .jetson import Jetson
from .machine import machine
from .measure import load, measure_batch, memory_while_drawing
from .report import SCHEMA_VERSION, BundleFacts, Floor, JetsonFacts, Report, Settings
from .work import decoder_flop, tiny_decoder_flop, transformer_flop

Checkpoints = tuple[Path | None, Path | None]  # files of VAR and VQVAE; None: found from the bundle's manifest


def check_libraries(plot: bool, pytorch: bool) -> None:
    """Raise SettingsError if a requested feature needs a library that is not installed. Nothing is imported."""
    if plot:
        require("--plot", "matplotlib")
    if pytorch:
        require("--compare pytorch", "torch")


def benchmark(
    bundle: Path,
    settings: Settings,
    checkpoints: Checkpoints = (None, None),
    jetson: Jetson | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure a bundle and return the report. `checkpoints` are used to compare with PyTorch. Raises VarEdgeError."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    host, before = machine(), jetson.state() if jetson else None
    threads = settings.threads or usable_cpus()
    rate = gemm_rate(threads)
    pipeline, loaded = load(bundle, settings)
    progress("first runs", 0, 1)
    # Memory is measured before PyTorch is loaded into this process.
    held = {batch: memory_while_drawing(pipeline, settings, batch) for batch in settings.batches}
    rivals, left_out = _rivals(bundle, pipeline, settings, threads, checkpoints, progress)
    batches = []
    for batch in settings.batches:
        on_round = counter(progress, f"batch of {batch}", settings.runs + 1)
        batches.append(measure_batch(pipeline, settings, batch, held[batch], rivals, jetson, on_round))
    module = JetsonFacts(jetson.model, before, jetson.state()) if jetson and before else None
    rate = max(rate, gemm_rate(threads))
    return Report(
        schema_version=SCHEMA_VERSION,
        date=date,
        command=shlex.join(["python", "-m", "runtime.bench", *_arguments()]),
        bundle=_bundle_facts(bundle),
        draft=_bundle_facts(Path(settings.draft)) if settings.draft is not None else None,
        settings=settings,
        backend=pipeline.backend.name,
        threads=threads,
        machine=host,
        load=loaded,
        batches=tuple(batches),
        floor=_floor(pipeline, settings, rate),
        jetson=module,
        left_out=left_out,
    )


def _rivals(
    bundle: Path, pipeline: BasePipeline, settings: Settings, threads: int, checkpoints: Checkpoints, progress: Progress
) -> tuple[dict[str, Draw], dict[str, str]]:
    """Return the rivals by name, ready to run, and those that cannot run, with the reason."""
    if settings.compare is None:
        return {}, {}
    label = pipeline.classes.label(settings.label)
    if settings.compare == "cpp":
        from .cpp import cpp_rival

        return cpp_rival(bundle, pipeline.manifest, label, settings, threads), {}
    progress("loading PyTorch", 0, 1)
    return _plugin(settings.compare)(pipeline.manifest, label, settings, threads, checkpoints)


def _arguments() -> list[str]:
    """Return the arguments of this run: those behind `bench` or its module where var-edge runs it."""
    return sys.argv[2:] if sys.argv[1:2] in (["bench"], ["runtime.bench"]) else sys.argv[1:]


def _plugin(name: str) -> Callable[..., tuple[dict[str, Draw], dict[str, str]]]:
    """Return the function that makes the rivals called `name`.

    The packages that depend on `runtime` register it as an entry point of the group `var_edge.rivals`.
    """
    found = [entry for entry in entry_points(group="var_edge.rivals") if entry.name == name]
    if not found:
        advice = "install var-edge[export] again, or run make setup in a checkout"
        raise SettingsError(f"--compare {name}: not part of this installation; {advice}")
    return cast(Callable[..., tuple[dict[str, Draw], dict[str, str]]], found[0].load())


def _bundle_facts(bundle: Path) -> BundleFacts:
    manifest = Manifest.load(bundle, verify=False)
    weights = manifest.files[WEIGHTS]
    return BundleFacts(
        directory=str(bundle),
        name=manifest.model.name,
        precision=str(manifest.precision),
        source=manifest.provenance.source,
        weights_sha256=weights.sha256,
        weight_file_bytes=weights.size,
        loaded_weight_bytes=loaded_weights(bundle, manifest),
    )


def _floor(pipeline: BasePipeline, settings: Settings, flop_per_second: float) -> Floor:
    """Return the floor of the work that these settings ask for: shortcuts leave a part of it out."""
    model, guided = pipeline.manifest.model, settings.guidance_scales
    transformer = transformer_flop(model, guided)
    if pipeline.draft:
        transformer += transformer_flop(pipeline.draft.manifest.model, guided, pipeline.draft_scales)
    decoder = tiny_decoder_flop(model) if DECODERS[settings.decoder] == TINY_DECODER else decoder_flop(model)
    return Floor(flop_per_second, transformer, decoder, (transformer + decoder) / flop_per_second)
