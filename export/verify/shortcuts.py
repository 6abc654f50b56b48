"""Compare the shortcuts with the exact path. What is exact in them must be equal: such as drafted tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.verify.check import Measured, Row, rows
from export.verify.metrics import LogitDifference
from export.verify.recording import Recording, Reference, generate
from export.verify.tolerances import GUIDANCE
from runtime.base_pipeline import Maps, ScaleView
from runtime.bundle.manifest import Manifest
from runtime.drafted import DraftedPipeline, check_draft_scales, check_fit
from runtime.errors import BundleError, NumericError, SettingsError
from runtime.limits import Integers, shown
from runtime.pipeline import Pipeline
from runtime.progress import Progress
from runtime.sampling import Sampling

DRAFTING = "draft of"  # begins the names of the stages


@dataclass(frozen=True)
class Shortcuts:
    """The shortcuts to verify; None: not this one."""

    guidance_scales: int | None = None
    draft: Path | None = None
    draft_scales: int | None = None

    def check(self, bundle: Path, manifest: Manifest) -> None:
        """Raise SettingsError or BundleError if the model of `bundle` cannot draw with them."""
        scales = len(manifest.scales)
        if self.guidance_scales is not None and self.guidance_scales not in Integers(1, scales):
            raise SettingsError(f"guidance_scales: expected 1 to {scales}, found {shown(self.guidance_scales)}")
        if self.draft_scales is not None:
            check_draft_scales(self.draft_scales, scales)
        if self.draft is not None:
            check_fit(self.draft, Manifest.load(self.draft), bundle, manifest)


def check_shortcuts(reference: Reference, pipeline: Pipeline, shortcuts: Shortcuts, progress: Progress) -> list[Row]:
    """Compare the shortcuts of a loaded bundle or engine directory with its own exact path."""
    known, sampling = _of_one_batch(reference, pipeline), reference.settings.sampling
    found: list[Row] = []
    if shortcuts.guidance_scales is not None:
        progress("guidance at the first scales", 0, 1)
        found += _guidance(known, pipeline, sampling, shortcuts.guidance_scales)
    if shortcuts.draft is not None and shortcuts.draft_scales is not None:
        progress("drafting", 0, 1)
        try:
            with Pipeline(shortcuts.draft, "onnxruntime", verify=False) as draft:
                found += _drafting(known, pipeline, draft, sampling, shortcuts.draft_scales)
        except (NumericError, BundleError, SettingsError) as error:  # what was measured so far is kept
            found.append(Row(f"{DRAFTING} {shortcuts.draft_scales} scale(s)", None, {}, [str(error)]))
    return found


def _of_one_batch(reference: Reference, pipeline: Pipeline) -> Recording:
    """Return the first images of the reference, as many as the backend can draw together."""
    known = reference.recordings[0]
    total = len(known.batch.labels)
    size = max(size for size in (pipeline.backend.batches or (total,)) if size <= total)
    return known.of(range(size), pipeline.manifest)


def _guidance(known: Recording, pipeline: Pipeline, sampling: Sampling, guidance_scales: int) -> Iterator[Row]:
    """Yield the difference of the logits with label between both runs, and whether guiding all scales is exact."""
    stage, scales = f"{GUIDANCE} {guidance_scales} scale(s)", pipeline.manifest.scales
    expected: list[np.ndarray] = []
    measured: Measured = {(stage, k): LogitDifference(scales[k].side) for k in range(guidance_scales, len(scales))}

    def exact(view: ScaleView) -> None:
        count = len(view.pictures)
        expected.append(view.backend.logits()[:, :count].swapaxes(0, 1))

    def shortened(view: ScaleView) -> None:
        if view.index >= guidance_scales:
            measured[stage, view.index].add(expected[view.index], view.logits())

    try:
        generate(pipeline, known.batch, sampling, known.tokens, exact)
        fewer = replace(sampling, guidance_scales=guidance_scales)
        generate(pipeline, known.batch, fewer, known.tokens, shortened)
    except SettingsError as error:  # engines without the profiles
        yield Row(stage, None, {}, [], str(error))
        return
    yield from rows(measured, pipeline.manifest.precision)
    every = generate(pipeline, known.batch, replace(sampling, guidance_scales=len(scales)))
    default = generate(pipeline, known.batch, replace(sampling, guidance_scales=None))
    yield _equal(f"{GUIDANCE} all scales", [*default.tokens, default.images], [*every.tokens, every.images])


def _drafting(
    known: Recording, pipeline: Pipeline, draft: Pipeline, sampling: Sampling, draft_scales: int
) -> Iterator[Row]:
    """Yield whether the tokens of each model, and the limits of no scale and all scales, are exact."""
    labels, seed, scales = known.batch.labels, known.batch.seed, len(pipeline.manifest.scales)

    def drawn(count: int) -> Maps:
        result = DraftedPipeline(draft, pipeline, count).generate(labels, seed, batch=len(labels), sampling=sampling)
        return [*result.tokens, result.images]

    alone = [generate(each, known.batch, sampling) for each in (draft, pipeline)]
    found, stage = drawn(draft_scales), f"{DRAFTING} {draft_scales} scale(s)"
    yield _equal(f"{stage}, drafted", alone[0].tokens[:draft_scales], found[:draft_scales])
    rest = generate(
        pipeline,
        known.batch,
        sampling,
        [*found[:draft_scales], *alone[1].tokens[draft_scales:]],
        led_scales=draft_scales,
    )
    yield _equal(f"{stage}, refined", [*rest.tokens[draft_scales:], rest.images], found[draft_scales:])
    yield _equal(f"{DRAFTING} no scale", [*alone[1].tokens, alone[1].images], drawn(0))
    yield _equal(f"{DRAFTING} all scales", alone[0].tokens, drawn(scales)[:scales])


def _equal(stage: str, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Row:
    """Return a row that fails unless all values are equal."""
    same = sum(int((a == b).sum()) for a, b in zip(expected, found, strict=True))
    share = same / max(1, sum(a.size for a in expected)) if expected else 1.0
    return Row(stage, None, {"equal": share}, [] if share == 1 else [f"equal {share:.6f}, at least 1"])
