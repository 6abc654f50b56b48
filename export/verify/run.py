"""Verify artifacts: compare every stage of each with the PyTorch model, or with an FP32 bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from export.verify.artifacts import Artifact, channel_scaling, find, runnable, static_sizes
from export.verify.bisect import Finding, bisect
from export.verify.check import (
    SMOOTH,
    STATIC_STEP,
    ChannelScaling,
    Measured,
    Row,
    absent,
    check,
    check_steps,
    led,
    mix,
    rows,
)
from export.verify.recording import Drawn, Recording, Reference, Settings, prepare
from export.verify.report import Entry, Report
from export.verify.shortcuts import DRAFTING, Shortcuts, check_shortcuts
from export.verify.tolerances import GUIDANCE
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import SMOOTH_BRIDGE, TINY_DECODER
from runtime.bundle.precision import Precision
from runtime.errors import BundleError, SettingsError
from runtime.files.atomic import scratch_directory
from runtime.pipeline import Pipeline
from runtime.progress import Progress, silent

Checkpoints = tuple[Path | None, Path | None]
NO_SHORTCUTS = Shortcuts()


def verify(
    directories: Sequence[Path],
    checkpoints: Checkpoints = (None, None),
    against: Path | None = None,
    pictures: int = 8,
    with_bisect: bool = False,
    progress: Progress = silent,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    tiny_decoder: Path | None = None,
) -> Report:
    """Compare everything in `directories` with the PyTorch model, or with the FP32 bundle `against`.

    `checkpoints` are the files of VAR and VQVAE; a file that is not given is found by the manifest's provenance.
    `tiny_decoder` is the file of the tiny decoder, if it is not shipped. `shortcuts` are compared with the exact path.
    Raises BundleError, CheckpointError, SettingsError.
    """
    artifacts = find(directories)
    first = next(artifact for artifact in artifacts if artifact.manifest)
    assert first.manifest
    shortcuts.check(first.path, first.manifest)
    smooth, tiny = _with_graph(artifacts, SMOOTH_BRIDGE) is not None, _with_graph(artifacts, TINY_DECODER)
    if tiny_decoder is not None and tiny is None:
        raise SettingsError(f"--tiny-decoder: {first.path} has none to compare; export it with --tiny-decoder FILE")
    if against is None:
        reference = _pytorch_reference(first, checkpoints, tiny, tiny_decoder, pictures, smooth, progress)
    else:
        reference = bundle_reference(against, first, pictures, progress)
    entries = []
    for artifact in artifacts:
        if against is not None and artifact.path == against.resolve():
            entries.append(Entry(artifact, "reference: the others are compared with it"))
        elif reason := artifact.unable():
            entries.append(Entry(artifact, reason))
        else:
            entries.append(_verified(artifact, reference, _titled(progress, artifact.name), shortcuts))
    if with_bisect and any(entry.failed for entry in entries):
        with _sound(artifacts, checkpoints, tiny_decoder, against, progress) as sound:
            entries = [_bisected(entry, reference, sound, progress) for entry in entries]
    return Report(reference, entries)


def _with_graph(artifacts: Sequence[Artifact], graph: str) -> Manifest | None:
    """Return the manifest of the first artifact that has this optional graph."""
    return next((a.manifest for a in artifacts if a.manifest and graph in a.manifest.graphs), None)


def _pytorch_reference(
    first: Artifact,
    checkpoints: Checkpoints,
    with_tiny: Manifest | None,
    tiny_file: Path | None,
    pictures: int,
    smooth: bool,
    progress: Progress,
) -> Reference:
    """Return PyTorch's model as the reference, with the tiny decoder of the bundle `with_tiny`."""
    from export.checkpoint.provenance import recipe_of, weights_of
    from export.checkpoint.tiny_decoder import load_tiny_decoder, tiny_decoder_of
    from export.checkpoint.weights import load_models
    from export.model.reference import PyTorchBackend, generate

    assert first.manifest
    progress("loading PyTorch's model", 0, 1)
    recipe, weights = recipe_of(first.manifest), weights_of(first.manifest, *checkpoints)
    models = load_models(recipe, weights)
    tiny = tiny_decoder_of(with_tiny, recipe, weights, tiny_file)
    imitation = load_tiny_decoder(weights, recipe, tiny) if tiny is not None else None
    pipeline = Pipeline(first.path, PyTorchBackend(*models, imitation), verify=False)
    settings = Settings.default(pipeline, pictures, _batch(first))
    sampling = settings.sampling

    def free(recording: Recording) -> Drawn:
        drawn = generate(*models, recording.batch.labels, recording.draws(), sampling)
        return Drawn(drawn.images, drawn.tokens, drawn.logits)

    return prepare(pipeline, settings, smooth, imitation is not None, free, progress)


def bundle_reference(against: Path, first: Artifact, pictures: int, progress: Progress) -> Reference:
    """Return the FP32 bundle `against` as the reference for `first` and others of its model. Raises SettingsError."""
    assert first.manifest
    if not against.is_dir():
        raise SettingsError(f"--against {against}: expected the directory of an FP32 bundle")
    manifest = Manifest.load(against)
    same = manifest.provenance.same_checkpoints(first.manifest.provenance)
    if manifest.model != first.manifest.model or not same:
        raise SettingsError(f"--against {against}: expected the model and weights of {first.path}, found others")
    if manifest.precision is not Precision.FP32:
        raise SettingsError(f"--against {against}: expected an FP32 bundle, found {manifest.precision}")
    pipeline = Pipeline(against, "onnxruntime", verify=False)
    smooth, tiny = (graph in manifest.graphs for graph in (SMOOTH_BRIDGE, TINY_DECODER))
    return prepare(pipeline, Settings.default(pipeline, pictures, _batch(first)), smooth, tiny, None, progress)


def _batch(artifact: Artifact) -> int:
    """Return the batch size of the reference: 4 for small models, 1 for large ones, which need the memory."""
    assert artifact.manifest
    return 4 if artifact.manifest.model.depth < 16 else 1


def verified(artifact: Artifact, pipeline: Pipeline, reference: Reference, progress: Progress) -> Entry:
    """Return the results of `pipeline`, which runs the artifact."""
    checked = check(reference, pipeline, channel_scaling(artifact), progress)
    return Entry(artifact, None, pipeline.backend.name, checked.rows, checked.led, checked.free)


def _verified(artifact: Artifact, reference: Reference, progress: Progress, shortcuts: Shortcuts) -> Entry:
    assert artifact.manifest
    progress("loading", 0, 1)
    try:
        with runnable(artifact) as (_, pipeline):
            entry = verified(artifact, pipeline, reference, progress)
            entry = replace(entry, rows=[*entry.rows, *check_shortcuts(reference, pipeline, shortcuts, progress)])
            del pipeline  # free its memory before the static steps need theirs
    except (BundleError, SettingsError) as error:
        if not artifact.engines:
            raise
        return Entry(artifact, f"not run: {error}")  # built for another GPU or TensorRT
    if artifact.engines:
        return entry
    steps = [row for size in static_sizes(artifact.manifest) for row in _steps(artifact, reference, size, progress)]
    return replace(entry, rows=[*entry.rows, *(steps or [absent(f"{STATIC_STEP} 1")])])


def _steps(artifact: Artifact, reference: Reference, size: int, progress: Progress) -> list[Row]:
    assert artifact.manifest
    progress(f"{STATIC_STEP} {size}", 0, 1)
    return check_steps(reference, Pipeline(artifact.path, "onnxruntime", verify=False, finite=False), size)


@contextmanager
def _sound(
    artifacts: Sequence[Artifact],
    checkpoints: Checkpoints,
    tiny_file: Path | None,
    against: Path | None,
    progress: Progress,
) -> Iterator[Path]:
    """Yield the FP32 bundle that --bisect compares with: `against`, or a new export."""
    if against is not None:
        yield against
        return
    from export.bundle import export_bundle
    from export.checkpoint.provenance import recipe_of, weights_of
    from export.checkpoint.tiny_decoder import tiny_decoder_of, with_tiny_decoder

    manifests = [artifact.manifest for artifact in artifacts if artifact.manifest]
    recipe, weights = recipe_of(manifests[0]), weights_of(manifests[0], *checkpoints)
    tiny = tiny_decoder_of(_with_graph(artifacts, TINY_DECODER), recipe, weights, tiny_file)
    if tiny is not None:
        weights = with_tiny_decoder(weights, recipe, tiny)
    smooth = _with_graph(artifacts, SMOOTH_BRIDGE) is not None
    sizes = sorted({size for manifest in manifests for size in static_sizes(manifest)}) or [1]
    with scratch_directory(artifacts[0].path) as scratch:
        sound = scratch / "sound"
        export_bundle(recipe, weights, sound, batches=sizes, smooth=smooth, progress=progress)
        yield sound


def _guilty(row: Row, reference: Reference, pipeline: Pipeline, factors: ChannelScaling) -> Recording:
    """Return the recording of the first image that alone puts the row out of tolerance; else of the first image."""
    sampling, manifest = reference.settings.sampling, pipeline.manifest
    alone = (
        known.of(range(i, i + 1), manifest) for known in reference.recordings for i in range(len(known.batch.labels))
    )
    for known in alone:
        measured: Measured = {}
        if row.stage == SMOOTH:
            mix(known, pipeline, sampling, measured)
        else:
            led(known, pipeline, sampling, factors, measured)
        if any(found.misses and found.name == row.name for found in rows(measured, manifest.precision)):
            return known
    return reference.recordings[0].of(range(1), manifest)


def _bisected(entry: Entry, reference: Reference, sound: Path, progress: Progress) -> Entry:
    """Return the entry, with the finding of --bisect if it failed."""
    if not entry.failed or entry.artifact.engines:
        return entry
    row, artifact = entry.failed[0], entry.artifact
    if row.stage.startswith((GUIDANCE, DRAFTING)):
        return replace(entry, finding="every stage is within tolerance: the shortcut differs from the exact path")
    if row.stage.endswith("generation"):
        said: Finding | str | None = "every stage is within tolerance: the loop, the seeds or the sampler differ"
        return replace(entry, finding=said)
    progress(f"{artifact.name}: bisecting {row.name}", 0, 1)
    factors, sampling = channel_scaling(artifact), reference.settings.sampling
    if row.stage.startswith(STATIC_STEP):  # a simulated twin has no static steps
        known = reference.recordings[0].of(range(1), Manifest.load(artifact.path, verify=False))
        said = bisect(row, artifact.path, artifact.path, sound, known, sampling, factors)
    else:
        with runnable(artifact) as (candidate, pipeline):
            known = _guilty(row, reference, pipeline, factors)
            del pipeline
            said = bisect(row, candidate, artifact.path, sound, known, sampling, factors)
    return replace(entry, finding=said or f"{row.name}: every tensor inside agrees with the sound bundle")


def _titled(progress: Progress, title: str) -> Progress:
    return lambda stage, done, total: progress(f"{title}: {stage}", done, total)
