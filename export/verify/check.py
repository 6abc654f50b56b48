"""Stage by stage against the reference: led by its tokens, so that errors do not compound, and drawing freely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.fidelity import top_k
from export.verify.metrics import Difference, LogitDifference, PictureDifference, Share, parted, redrawn
from export.verify.tolerances import misses
from runtime.backends.wiring import SMOOTH_BRIDGE
from runtime.errors import SettingsError
from runtime.pipeline import Maps, Pipeline, ScaleView
from runtime.sampling import Sampling
from runtime.uniforms import uniforms

KEYS_AND_VALUES, STATIC_STEP = "keys and values", "transformer, static step"
BOUNDARY = 1e-5  # of probability: nearer to the end of a token's interval float32 may draw its neighbour
Progress = Callable[[str, int, int], None]  # what is going on, how much of it is done, how much there is
Outputs = dict[str, dict[str, np.ndarray]]  # graph -> tensor -> values


@dataclass(frozen=True)
class Drawn:
    """Free drawing of the reference, see `export.reference.Generation`."""

    images: np.ndarray
    tokens: Maps
    margins: Maps


@dataclass(frozen=True)
class Turn:
    """Pictures drawn together."""

    labels: list[int]
    seed: int


@dataclass(frozen=True)
class Settings:
    """What is drawn."""

    pictures: int
    batch: int
    seed: int
    sampling: Sampling

    def turns(self, num_classes: int) -> list[Turn]:
        """Labels spread over the classes."""
        labels = [i * num_classes // self.pictures for i in range(self.pictures)]
        starts = range(0, self.pictures, self.batch)
        return [Turn(labels[start : start + self.batch], self.seed + start) for start in starts]


@dataclass(frozen=True)
class Trace:
    """What every stage of the reference made in one turn."""

    turn: Turn
    tokens: Maps  # K arrays (B, p²)
    logits: list[np.ndarray]  # K arrays (B, L, V), after guidance
    outputs: list[Outputs]  # by scale; keys and values in the first turn only: they are large
    images: np.ndarray  # (B, H, W, 3) uint8
    encoded: np.ndarray | None  # (B, T): the tokens of `images`; None without an encoder
    smooth: np.ndarray | None  # (B, H, W, 3) uint8: by smooth sampling; None without its graph


@dataclass(frozen=True)
class Reference:
    """What artifacts are held against."""

    name: str
    settings: Settings
    traces: list[Trace]
    free: Drawn | None  # drawn by a loop of its own; None: the traces, whose loop is the runtime's

    @property
    def images(self) -> np.ndarray:
        return np.concatenate([trace.images for trace in self.traces])


@dataclass(frozen=True)
class Row:
    """One stage's errors; `misses` say which of them are out of tolerance."""

    stage: str
    scale: int | None
    metrics: dict[str, float]
    misses: list[str]

    @property
    def name(self) -> str:
        return self.stage if self.scale is None else f"{self.stage}, scale {self.scale}"


@dataclass(frozen=True)
class Checked:
    """All rows in the order in which a picture passes the stages, and the pictures."""

    rows: list[Row]
    led: np.ndarray  # (N, H, W, 3) uint8: from the reference's tokens
    free: np.ndarray  # from tokens of its own


def trace(pipeline: Pipeline, turn: Turn, sampling: Sampling, with_keys: bool) -> Trace:
    """Draws freely and keeps what every stage made."""
    logits: list[np.ndarray] = []
    outputs: list[Outputs] = []

    def on_scale(view: ScaleView) -> None:
        made = _outputs(view)
        logits.append(view.logits())
        kept = {name: value for name, value in made["transformer"].items() if with_keys and name != "logits"}
        outputs.append({**made, "transformer": kept})

    result = _generate(pipeline, turn, sampling, None, on_scale)
    encoded = None
    if "encoder" in pipeline.manifest.graphs:
        encoded = np.concatenate(pipeline.encode(result.images), axis=1)
    smooth = None
    if SMOOTH_BRIDGE in pipeline.manifest.graphs:
        smooth = _generate(pipeline, turn, replace(sampling, smooth=True), None, None).images
    return Trace(turn, result.tokens, logits, outputs, result.images, encoded, smooth)


def prepare(
    pipeline: Pipeline, settings: Settings, free: Callable[[Turn], Drawn] | None, progress: Progress
) -> Reference:
    """Draws all turns with the reference. `free` draws the same pictures with a loop of its own."""
    turns = settings.turns(pipeline.manifest.model.num_classes)
    traces, drawn = [], []
    for i, turn in enumerate(turns):
        progress(f"drawing with {pipeline.backend.name}", i, len(turns))
        traces.append(trace(pipeline, turn, settings.sampling, with_keys=i == 0))
        if free:
            drawn.append(free(turn))
    joined = _join(drawn) if drawn else None
    return Reference(pipeline.backend.name, settings, traces, joined)


def _join(parts: Sequence[Drawn]) -> Drawn:
    def maps(field: str) -> Maps:
        return [np.concatenate(scale) for scale in zip(*(getattr(part, field) for part in parts), strict=True)]

    return Drawn(np.concatenate([part.images for part in parts]), maps("tokens"), maps("margins"))


def check(reference: Reference, pipeline: Pipeline, smoothing: Mapping[str, np.ndarray], progress: Progress) -> Checked:
    """All stages of a loaded bundle or engine directory. `smoothing` is what `condition` multiplied its outputs by."""
    precision = pipeline.manifest.precision
    measured: dict[tuple[str, int | None], Any] = {}
    led, free_images, free_tokens = [], [], []
    for i, known in enumerate(reference.traces):
        progress("led by the reference", i, len(reference.traces))
        led.append(_led(known, pipeline, reference.settings.sampling, smoothing, measured))
        progress("drawing freely", i, len(reference.traces))
        result = _generate(pipeline, known.turn, reference.settings.sampling, None, None)
        if known.smooth is not None and SMOOTH_BRIDGE in pipeline.manifest.graphs:
            mixed = _generate(pipeline, known.turn, replace(reference.settings.sampling, smooth=True), None, None)
            measured.setdefault(("smooth generation", None), PictureDifference()).add(known.smooth, mixed.images)
        free_images.append(result.images)
        free_tokens.append(result.tokens)
    rows = [_row(precision, stage, scale, value.metrics()) for (stage, scale), value in measured.items()]
    images = np.concatenate(free_images)
    tokens = [np.concatenate(maps) for maps in zip(*free_tokens, strict=True)]
    rows.append(_row(precision, "generation", None, _free_metrics(reference, tokens, images)))
    return Checked(rows, np.concatenate(led), images)


def check_steps(reference: Reference, pipeline: Pipeline) -> list[Row]:
    """The static per-scale steps: `pipeline` runs them in place of the symbolic transformer, one picture at a time."""
    known = reference.traces[0]
    first = Trace(
        Turn(known.turn.labels[:1], known.turn.seed),
        [maps[:1] for maps in known.tokens],
        [logits[:1] for logits in known.logits],
        [{} for _ in known.outputs],
        known.images[:1],
        None,
        None,
    )
    measured: dict[tuple[str, int | None], Any] = {}
    _led(first, pipeline, reference.settings.sampling, {}, measured)
    transformer = {key: value for key, value in measured.items() if key[0] == "transformer"}
    rows = (_row(pipeline.manifest.precision, *key, value.metrics()) for key, value in transformer.items())
    return [Row(STATIC_STEP, row.scale, row.metrics, row.misses) for row in rows]


def _led(
    known: Trace,
    pipeline: Pipeline,
    sampling: Sampling,
    smoothing: Mapping[str, np.ndarray],
    measured: dict[tuple[str, int | None], Any],
) -> np.ndarray:
    """One turn with the reference's tokens; adds to `measured`, and returns the pictures."""
    counts = [scale.tokens for scale in pipeline.manifest.scales]
    draws = [uniforms(known.turn.seed + i, counts) for i in range(len(known.turn.labels))]

    def at(stage: str, scale: int | None, new: Callable[[], Any]) -> Any:
        if (stage, scale) not in measured:
            measured[stage, scale] = new()
        return measured[stage, scale]

    def on_scale(view: ScaleView) -> None:
        k, expected, found, logits = view.index, known.outputs[view.index], _outputs(view), view.logits()
        if k == 0:
            for name, values in expected.get("condition", {}).items():
                undone = found["condition"][name].astype(np.float64) / smoothing.get(name, 1.0)
                at("condition", None, _Worst).add(name, values, undone)
        at("transformer", k, lambda: LogitDifference(view.side)).add(known.logits[k], logits)
        for name, values in expected.get("transformer", {}).items():
            at(KEYS_AND_VALUES, k, _Worst).add(name, values, found["transformer"][name])
        bridge = at("bridge", k, _Bridge)
        for name in ("f_hat_out", "x_next"):
            if name in expected.get("bridge", {}):
                bridge.add(name, expected["bridge"][name], found["bridge"][name])
        tokens, margins = redrawn(logits, np.stack([draw[k] for draw in draws]), sampling)
        sure = margins > BOUNDARY
        bridge.drawn.add(tokens[sure], found["bridge"]["drawn"][sure])

    images = _generate(pipeline, known.turn, sampling, known.tokens, on_scale).images
    at("decoder", None, PictureDifference).add(known.images, images)
    if known.encoded is not None and "encoder" in pipeline.manifest.graphs:
        tokens = np.concatenate(pipeline.encode(known.images), axis=1)
        at("encoder", None, _Tokens).add(known.encoded, tokens)
    return images


class _Worst:
    """Several tensors of one stage: the metrics of the one that is furthest off."""

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

    def metrics(self) -> dict[str, float]:
        return (super().metrics() if self.tensors else {}) | {"drawn": self.drawn.share}


class _Tokens(Share):
    def metrics(self) -> dict[str, float]:
        return {"tokens": self.share}


def _free_metrics(reference: Reference, tokens: Maps, images: np.ndarray) -> dict[str, float]:
    """Of free drawing: tokens, pictures, and where the reference's margins are known the widest at a parting."""
    if reference.free is None:
        expected = [np.concatenate(maps) for maps in zip(*(t.tokens for t in reference.traces), strict=True)]
        pictures = reference.images
    else:
        expected, pictures = reference.free.tokens, reference.free.images
    share, difference = Share(), PictureDifference()
    for a, b in zip(expected, tokens, strict=True):
        share.add(a, b)
    difference.add(pictures, images)
    metrics = {"tokens": share.share, **difference.metrics()}
    if reference.free is not None:
        metrics["parted"] = parted(expected, tokens, reference.free.margins)[1]
    return metrics


def _row(precision: str, stage: str, scale: int | None, metrics: dict[str, float]) -> Row:
    return Row(stage, scale, metrics, misses(precision, stage, metrics))


def _outputs(view: ScaleView) -> Outputs:
    return view.backend.outputs(view.index)  # type: ignore[attr-defined]


def _generate(
    pipeline: Pipeline,
    turn: Turn,
    sampling: Sampling,
    lead: Maps | None,
    on_scale: Callable[[ScaleView], None] | None,
) -> Any:
    keep = None if lead is None else [np.ones_like(maps, bool) for maps in lead]
    return pipeline.generate(
        turn.labels,
        turn.seed,
        sampling.cfg,
        sampling.top_k,
        sampling.top_p,
        keep,
        lead,
        batch=len(turn.labels),
        on_scale=on_scale,
        smooth=sampling.smooth,
    )


def default_settings(pipeline: Pipeline, pictures: int, batch: int, seed: int = 0) -> Settings:
    """The default sampling settings, as far as the vocabulary allows."""
    if pictures < 1:
        raise SettingsError(f"pictures: expected 1 or more, found {pictures}")
    return Settings(pictures, batch, seed, Sampling(top_k=top_k(pipeline)))


def failed(rows: Sequence[Row]) -> Iterator[Row]:
    """Rows out of tolerance, the first one the cause."""
    return (row for row in rows if row.misses)
