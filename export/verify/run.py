"""Is this still the model? Every stage of every artifact against the PyTorch model, or against an FP32 bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.verify.artifacts import Artifact, StaticSteps, find, runnable, smoothing
from export.verify.bisect import Finding, bisect
from export.verify.check import (
    STATIC_STEP,
    Drawn,
    Progress,
    Reference,
    Turn,
    check,
    check_steps,
    default_settings,
    failed,
    prepare,
)
from export.verify.report import Entry, Report
from runtime.errors import SettingsError
from runtime.files import scratch_directory
from runtime.manifest import Manifest
from runtime.pipeline import Pipeline

Checkpoints = tuple[Path | None, Path | None]


def verify(
    directories: Sequence[Path],
    checkpoints: Checkpoints = (None, None),
    against: Path | None = None,
    pictures: int = 8,
    with_bisect: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Holds everything in `directories` against the PyTorch model, or against the FP32 bundle `against`.

    `checkpoints` are the files of the two models, where the manifest's provenance does not lead to them. Raises
    BundleError, CheckpointError, SettingsError.
    """
    artifacts = find(directories)
    first = next(artifact for artifact in artifacts if artifact.manifest)
    assert first.manifest
    reference = _reference(first, checkpoints, against, pictures, progress)
    entries = []
    for artifact in artifacts:
        if reason := artifact.unable():
            entries.append(Entry(artifact, reason))
            continue
        entry = _verified(artifact, reference, _titled(progress, artifact.name))
        if with_bisect and entry.failed and not artifact.engines:
            entry = replace(entry, finding=_found(entry, reference, first.manifest, checkpoints, against, progress))
        entries.append(entry)
    return Report(reference, entries)


def _reference(
    first: Artifact, checkpoints: Checkpoints, against: Path | None, pictures: int, progress: Progress
) -> Reference:
    assert first.manifest
    if against is not None:
        return bundle_reference(against, first, pictures, progress)

    import numpy as np

    from export.checkpoint import load_models
    from export.provenance import recipe_of, weights_of
    from export.reference import PyTorchBackend, generate
    from runtime.uniforms import uniforms

    progress("loading PyTorch's model", 0, 1)
    models = load_models(recipe_of(first.manifest), weights_of(first.manifest, *checkpoints))
    pipeline = Pipeline(first.path, PyTorchBackend(*models), verify=False)
    settings = default_settings(pipeline, pictures, _batch(first))
    sampling, counts = settings.sampling, [scale.tokens for scale in first.manifest.scales]

    def free(turn: Turn) -> Drawn:
        rows = [uniforms(turn.seed + i, counts) for i in range(len(turn.labels))]
        draws = [np.stack(scale) for scale in zip(*rows, strict=True)]
        drawn = generate(*models, turn.labels, draws, sampling.cfg, sampling.top_k, sampling.top_p)
        return Drawn(drawn.images, drawn.tokens, drawn.margins)

    return prepare(pipeline, settings, free, progress)


def bundle_reference(against: Path, first: Artifact, pictures: int, progress: Progress) -> Reference:
    """The FP32 bundle `against` as the reference of `first` and others of its model. Raises SettingsError."""
    assert first.manifest
    manifest = Manifest.load(against)
    if manifest.model != first.manifest.model or manifest.provenance.source != first.manifest.provenance.source:
        raise SettingsError(f"--against {against}: another model than {first.path}, or other weights")
    if manifest.precision != "fp32":
        raise SettingsError(f"--against {against}: expected an FP32 bundle, found {manifest.precision}")
    pipeline = Pipeline(against, "onnxruntime", verify=False)
    return prepare(pipeline, default_settings(pipeline, pictures, _batch(first)), None, progress)


def _batch(artifact: Artifact) -> int:
    """Small models draw several pictures together; large ones need the memory."""
    assert artifact.manifest
    return 4 if artifact.manifest.model.depth < 16 else 1


def verified(artifact: Artifact, pipeline: Pipeline, reference: Reference, progress: Progress) -> Entry:
    """All that `pipeline`, which runs the artifact, is measured for."""
    checked = check(reference, pipeline, smoothing(artifact), progress)
    return Entry(artifact, None, pipeline.backend.name, checked.rows, checked.led, checked.free)


def _verified(artifact: Artifact, reference: Reference, progress: Progress) -> Entry:
    assert artifact.manifest
    progress("loading", 0, 1)
    with runnable(artifact) as (_, pipeline):
        entry = verified(artifact, pipeline, reference, progress)
        del pipeline  # its memory, before the static steps take theirs
    if artifact.engines or not StaticSteps.names(artifact.manifest):
        return entry
    progress("static steps", 0, 1)
    steps = Pipeline(artifact.path, StaticSteps(artifact.path, artifact.manifest), verify=False)
    return replace(entry, rows=[*entry.rows, *check_steps(reference, steps)])


def _found(
    entry: Entry,
    reference: Reference,
    manifest: Manifest,
    checkpoints: Checkpoints,
    against: Path | None,
    progress: Progress,
) -> Finding | str:
    """What --bisect has to say of an artifact that failed."""
    row = next(failed(entry.rows))
    if row.stage.endswith("generation"):
        return "every stage is within tolerance when led by the reference: the loop, the seeds or the sampler differ"
    path = entry.artifact.path
    with scratch_directory(path) as scratch, runnable(entry.artifact) as (candidate, pipeline):
        del pipeline
        if against is None:
            from export.bundle import export_bundle
            from export.provenance import recipe_of, weights_of

            against = scratch / "sound"
            export_bundle(recipe_of(manifest), weights_of(manifest, *checkpoints), against, progress=progress)
        progress(f"bisecting {row.name}", 0, 1)
        sampling = reference.settings.sampling
        candidate = path if row.stage == STATIC_STEP else candidate  # a simulated twin has none
        finding = bisect(row, candidate, against, reference.traces[0], sampling, smoothing(entry.artifact))
    return finding or f"{row.name}: every tensor inside agrees with what the exporter writes today"


def _titled(progress: Progress, title: str) -> Progress:
    return lambda stage, done, total: progress(f"{title}: {stage}", done, total)
