"""Compare every stage with the reference: teacher-forced with its tokens, so that errors do not compound, and free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.verify.draws import Parting, allowed
from export.verify.metrics import Difference, LogitDifference, PictureDifference, Share
from export.verify.recording import Batch, Recording, Reference, generate, smoothly
from export.verify.tolerances import limits, misses
from runtime.backends.base import StageRun
from runtime.backends.ort_session import Session
from runtime.base_pipeline import Maps, ScaleView
from runtime.bundle.names import (
    BRIDGE,
    CONDITION,
    DRAWN,
    ENCODER,
    F_HAT_OUT,
    LOGITS,
    SMOOTH_BRIDGE,
    TINY_DECODER,
    TOKENS,
    TRANSFORMER,
    X_NEXT,
    static_step,
)
from runtime.bundle.precision import Precision
from runtime.pipeline import Pipeline, batches
from runtime.processors import usable_cpus
from runtime.progress import Progress
from runtime.sampling import Sampling, guided

TINY = "tiny decoder"
STATIC_STEP = "static step for"  # followed by the batch size
SMOOTH, SMOOTH_GENERATION = "smooth bridge", "smooth generation"
ChannelScaling = Mapping[str, np.ndarray]  # factors of an INT8 bundle for the outputs of `condition`
Measured = dict[tuple[str, int | None], Any]  # (stage, scale) -> an object with `metrics()`


@dataclass(frozen=True)
class Row:
    """The errors of one stage; `misses` are those out of tolerance."""

    stage: str
    scale: int | None
    metrics: dict[str, float]
    misses: list[str]
    note: str = ""  # why it is not judged

    @property
    def name(self) -> str:
        return self.stage if self.scale is None else f"{self.stage}, scale {self.scale}"

    @property
    def verdict(self) -> str:
        if self.misses:
            return "FAILED"
        if self.note:
            return "shown" if self.metrics else "absent"
        return "passed"

    @property
    def remark(self) -> str:
        """The text beside the numbers."""
        return "; ".join(self.misses) or self.note or "ok"


@dataclass(frozen=True)
class Checked:
    """All rows, in the order of the stages, and the images."""

    rows: list[Row]
    led: np.ndarray  # (N, H, W, 3) uint8: from the reference's tokens
    free: np.ndarray  # from its own tokens


def check(reference: Reference, pipeline: Pipeline, scaling: ChannelScaling, progress: Progress) -> Checked:
    """Compare all stages of a loaded bundle or engine directory, except its static steps."""
    sampling, precision = reference.settings.sampling, pipeline.manifest.precision
    measured: Measured = {}
    pictures = []
    for i, known in enumerate(reference.recordings):
        progress("generating with the reference's tokens", i, len(reference.recordings))
        for part in _parts(known, pipeline):
            pictures.append(led(part, pipeline, sampling, scaling, measured))
    progress("generating freely", 0, 1)
    free = _draw(reference, pipeline, measured)
    for i, known in enumerate(reference.recordings):
        progress("smooth sampling", i, len(reference.recordings))
        for part in _parts(known, pipeline):
            mix(part, pipeline, sampling, measured)
    compared = rows(measured, precision)
    return Checked([*compared, *_not_compared(reference, pipeline)], np.concatenate(pictures), free)


def check_steps(reference: Reference, pipeline: Pipeline, size: int) -> list[Row]:
    """Compare the static steps for batches of `size`: each gets the inputs of the bundle's symbolic transformer.

    Only one of them is in memory at a time.
    """
    known, sampling, stage = _first(reference, size), reference.settings.sampling, f"{STATIC_STEP} {size}"
    manifest, found = pipeline.manifest, []

    @np.errstate(over="ignore", invalid="ignore")
    def observe(run: StageRun) -> None:
        if run.graph != TRANSFORMER or run.scale is None:
            return
        k, graph = run.scale, manifest.graphs.get(static_step(size, run.scale))
        if graph is None:
            found.append(absent(stage, k))
            return
        made = Session(pipeline.bundle, graph, usable_cpus()).run(run.inputs)
        difference = LogitDifference(manifest.scales[k].side)
        difference.add(known.logits[k], guided(made[LOGITS], sampling.guidance(k, len(manifest.scales))))
        found.extend(rows({(stage, k): difference}, manifest.precision))

    generate(pipeline, known.batch, sampling, known.tokens, observe=observe)
    return found


def rows(measured: Measured, precision: Precision) -> list[Row]:
    """Return a row with its verdict for each stage and scale that was measured."""
    found = []
    for (stage, scale), value in measured.items():
        metrics = value.metrics()
        note = "" if limits(precision, stage) else "shown only"
        found.append(Row(stage, scale, metrics, misses(precision, stage, metrics), note))
    return found


@np.errstate(over="ignore", invalid="ignore")  # the rows show NaN
def led(
    known: Recording, pipeline: Pipeline, sampling: Sampling, scaling: ChannelScaling, measured: Measured
) -> np.ndarray:
    """Generate images, teacher-forced with the reference's tokens; add errors to `measured` and return the images."""
    draws = known.draws()
    found: dict[str, np.ndarray] = {}  # of the scale: what its bridge wrote, and what was recorded of its transformer

    def observe(run: StageRun) -> None:
        for name, expected in known.condition.items() if run.graph == CONDITION else ():
            undone = run.outputs[name].astype(np.float64) / scaling.get(name, 1.0)
            _at(measured, "condition", None, _Worst).add(name, expected, undone)
        if run.scale is not None:
            wanted = run.outputs if run.graph == BRIDGE else known.outputs[run.scale][TRANSFORMER]
            found.update({name: run.outputs[name] for name in wanted})

    def on_scale(view: ScaleView) -> None:
        k, logits = view.index, view.logits()
        expected = known.outputs[k][BRIDGE]
        _at(measured, "transformer", k, lambda: LogitDifference(view.side)).add(known.logits[k], logits)
        for name, values in known.outputs[k][TRANSFORMER].items():
            _at(measured, "keys and values", k, _Worst).add(name, values, found[name])
        bridge = _at(measured, "bridge", k, _Bridge)
        for name in (F_HAT_OUT, X_NEXT):
            if name in expected:
                bridge.add(name, expected[name], found[name])
        bridge.drawn.add(known.tokens[k], found[TOKENS])
        bridge.drew(logits, draws[k], sampling, found[DRAWN])
        if view.last and known.tiny is not None and TINY_DECODER in pipeline.manifest.graphs:
            imitated = view.backend.decode(preview=True)
            _at(measured, TINY, None, PictureDifference).add(known.tiny, imitated)

    images = generate(pipeline, known.batch, sampling, known.tokens, on_scale, observe=observe).images
    _at(measured, "decoder", None, PictureDifference).add(known.images, images)
    if known.encoded is not None and ENCODER in pipeline.manifest.graphs:
        tokens = np.concatenate(pipeline.encode(known.images), axis=1)
        _at(measured, "encoder", None, _Tokens).add(known.encoded, tokens)
    return images


@np.errstate(over="ignore", invalid="ignore")
def _draw(reference: Reference, pipeline: Pipeline, measured: Measured) -> np.ndarray:
    """Generate all images freely, in the largest batches possible; every token has to follow from its own logits."""
    settings = reference.settings
    whole = Batch([label for known in reference.recordings for label in known.batch.labels], settings.seed)
    draws = [np.concatenate(maps) for maps in zip(*(known.draws() for known in reference.recordings), strict=True)]
    parting = Parting(reference.free.tokens, reference.free.logits, draws, settings.sampling)

    def on_scale(view: ScaleView) -> None:
        rows = slice(view.pictures.start, view.pictures.stop)
        bridge = _at(measured, "bridge", view.index, _Bridge)
        bridge.drew(view.logits(), draws[view.index][rows], settings.sampling, view.tokens())
        parting(view)

    batch = max(pipeline.backend.batches or (settings.batch,))
    result = generate(pipeline, whole, settings.sampling, on_scale=on_scale, size=batch)
    measured["generation", None] = _Generation(reference, result.tokens, result.images, parting)
    return result.images


def mix(known: Recording, pipeline: Pipeline, sampling: Sampling, measured: Measured) -> None:
    """Compare smooth sampling, if both the reference and the pipeline have it; add errors to `measured`."""
    if known.smooth is None or SMOOTH_BRIDGE not in pipeline.manifest.graphs:
        return
    found = smoothly(pipeline, known.batch, sampling, known.tokens)
    for k, (expected, f_hat) in enumerate(zip(known.smooth.f_hats, found.f_hats, strict=True)):
        _at(measured, SMOOTH, k, _Worst).add("f_hat_out", expected, f_hat)
    _at(measured, SMOOTH_GENERATION, None, PictureDifference).add(known.smooth.images, found.images)


def _not_compared(reference: Reference, pipeline: Pipeline) -> Iterator[Row]:
    """Yield rows for the optional graphs that the pipeline or the reference lacks."""
    known = reference.recordings[0]
    for graph, stage, there in (
        (TINY_DECODER, TINY, known.tiny is not None),
        (ENCODER, "encoder", known.encoded is not None),
        (SMOOTH_BRIDGE, SMOOTH_GENERATION, known.smooth is not None),
    ):
        if graph == TINY_DECODER and graph not in pipeline.manifest.graphs and not there:
            continue  # most models have none
        if graph not in pipeline.manifest.graphs:
            yield absent(stage)
        elif not there:
            yield Row(stage, None, {}, [], "the reference has none to compare with")


def absent(stage: str, scale: int | None = None) -> Row:
    return Row(stage, scale, {}, [], "absent")


def _parts(known: Recording, pipeline: Pipeline) -> Iterator[Recording]:
    """Yield the recording in batches of sizes that the backend supports."""
    total = len(known.batch.labels)
    for pictures in batches(total, total, pipeline.backend.batches):
        yield known.of(pictures, pipeline.manifest)


def _first(reference: Reference, size: int) -> Recording:
    """Return the first `size` images of all batches as one batch, repeated if there are fewer.

    It holds only what teacher forcing of the transformer needs.
    """
    recordings = reference.recordings

    def of(arrays: Iterator[np.ndarray]) -> np.ndarray:
        return np.resize(joined := np.concatenate(list(arrays)), (size, *joined.shape[1:]))

    labels = [label for known in recordings for label in known.batch.labels]
    return Recording(
        Batch([labels[i % len(labels)] for i in range(size)], recordings[0].batch.seed),
        [of(known.tokens[k] for known in recordings) for k in range(len(recordings[0].tokens))],
        [of(known.logits[k] for known in recordings) for k in range(len(recordings[0].logits))],
        {},
        [{TRANSFORMER: {}, BRIDGE: {}} for _ in recordings[0].outputs],
        of(known.images for known in recordings),
        None,
        None,
        None,
    )


def _at(measured: Measured, stage: str, scale: int | None, new: Callable[[], Any]) -> Any:
    if (stage, scale) not in measured:
        measured[stage, scale] = new()
    return measured[stage, scale]


class _Worst:
    """Several tensors of one stage; `metrics` are those of the tensor with the largest relative error."""

    def __init__(self) -> None:
        self.tensors: dict[str, Difference] = {}

    def add(self, name: str, expected: np.ndarray, found: np.ndarray) -> None:
        self.tensors.setdefault(name, Difference()).add(expected, found)

    def metrics(self) -> dict[str, float]:
        def badness(difference: Difference) -> float:
            relative = difference.metrics()["relative"]
            return np.inf if np.isnan(relative) else relative

        return max(self.tensors.values(), key=badness).metrics()


class _Bridge(_Worst):
    def __init__(self) -> None:
        super().__init__()
        self.drawn = Share()

    def drew(self, logits: np.ndarray, draws: np.ndarray, sampling: Sampling, found: np.ndarray) -> None:
        """Count the tokens found (B, L) that follow from logits (B, L, V) after guidance and the uniforms (B, L)."""
        self.drawn.same += int(allowed(logits, draws, found, sampling).sum())
        self.drawn.tokens += found.size

    def metrics(self) -> dict[str, float]:
        return (super().metrics() if self.tensors else {}) | {"drawn": self.drawn.share}


class _Tokens(Share):
    def metrics(self) -> dict[str, float]:
        return {"tokens": self.share}


class _Generation:
    """Free generation: tokens, images, and whether the error of the logits explains where the tokens diverge."""

    def __init__(self, reference: Reference, tokens: Maps, images: np.ndarray, parting: Parting) -> None:
        self.share, self.pictures, self.parting = Share(), PictureDifference(), parting
        for a, b in zip(reference.free.tokens, tokens, strict=True):
            self.share.add(a, b)
        self.pictures.add(reference.free.images, images)

    def metrics(self) -> dict[str, float]:
        relative = self.parting.error.metrics()["relative"]  # judged too: else faulty logits would explain themselves
        explained = self.parting.share_explained
        return {"tokens": self.share.share, **self.pictures.metrics(), "relative": relative, "explained": explained}
