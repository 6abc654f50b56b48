"""What the reference makes in every stage, batch by batch: artifacts are led by it and held against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.backends.base import Outputs
from runtime.backends.wiring import SMOOTH_BRIDGE
from runtime.bundle.manifest import Manifest, Tensor
from runtime.errors import SettingsError
from runtime.pipeline import Maps, Pipeline, Result, ScaleView
from runtime.progress import Progress
from runtime.sampling import Sampling
from runtime.uniforms import uniforms


@dataclass(frozen=True)
class Drawn:
    """N pictures drawn freely; see `export.model.reference.Generation`."""

    images: np.ndarray
    tokens: Maps
    logits: list[np.ndarray]


@dataclass(frozen=True)
class Batch:
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

    @classmethod
    def default(cls, pipeline: Pipeline, pictures: int, batch: int) -> Settings:
        """The default sampling settings, as far as the vocabulary allows."""
        if pictures < 1:
            raise SettingsError(f"pictures: expected 1 or more, found {pictures}")
        return cls(pictures, batch, 0, Sampling(top_k=Sampling.default_top_k(pipeline.manifest.model.vocab_size)))

    def batches(self, num_classes: int) -> list[Batch]:
        """Labels spread over the classes."""
        labels = [i * num_classes // self.pictures for i in range(self.pictures)]
        starts = range(0, self.pictures, self.batch)
        return [Batch(labels[start : start + self.batch], self.seed + start) for start in starts]


@dataclass(frozen=True)
class Smooth:
    """The same pictures by smooth sampling."""

    f_hats: list[
        np.ndarray
    ]  # K arrays (B, Z, P, P): after every scale, if only this one was mixed and tokens led to it
    images: np.ndarray  # all scales mixed


@dataclass(frozen=True)
class Recording:
    """What every stage of the reference made in one batch."""

    batch: Batch
    tokens: Maps  # K arrays (B, p²)
    logits: list[np.ndarray]  # K arrays (B, L, V), after guidance
    condition: dict[str, np.ndarray]  # its outputs
    outputs: list[Outputs]  # of the other graphs, by scale; keys and values in the first batch only: they are large
    images: np.ndarray  # (B, H, W, 3) uint8
    encoded: np.ndarray | None  # (B, T): the tokens of `images`; None without an encoder
    smooth: Smooth | None  # None without its graph

    def of(self, pictures: range, manifest: Manifest) -> Recording:
        """Of some of the batch's pictures."""
        total = len(self.batch.labels)
        if len(pictures) == total:
            return self
        rows, specs = slice(pictures.start, pictures.stop), _batched(manifest)

        def part(graph: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: _taken(specs[graph, name], array, pictures, total) for name, array in values.items()}

        return Recording(
            Batch(self.batch.labels[rows], self.batch.seed + pictures.start),
            [maps[rows] for maps in self.tokens],
            [logits[rows] for logits in self.logits],
            part("condition", self.condition),
            [{graph: part(graph, values) for graph, values in scale.items()} for scale in self.outputs],
            self.images[rows],
            None if self.encoded is None else self.encoded[rows],
            self.smooth and Smooth([f_hat[rows] for f_hat in self.smooth.f_hats], self.smooth.images[rows]),
        )

    def draws(self) -> Maps:
        """The uniforms of its pictures: K arrays (B, p²) float32."""
        counts = [maps.shape[1] for maps in self.tokens]
        rows = [uniforms(self.batch.seed + i, counts) for i in range(len(self.batch.labels))]
        return [np.stack(scale) for scale in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Reference:
    """What artifacts are held against."""

    name: str
    settings: Settings
    recordings: list[Recording]
    free: Drawn

    @property
    def images(self) -> np.ndarray:
        return np.concatenate([recording.images for recording in self.recordings])


def prepare(
    pipeline: Pipeline, settings: Settings, smooth: bool, free: Callable[[Recording], Drawn] | None, progress: Progress
) -> Reference:
    """Draws all batches with the reference. `free` draws the same pictures with a loop of its own."""
    batches = settings.batches(pipeline.manifest.model.num_classes)
    recordings, drawn = [], []
    for i, batch in enumerate(batches):
        progress(f"drawing with {pipeline.backend.name}", i, len(batches))
        recordings.append(_record(pipeline, batch, settings.sampling, i == 0, smooth))
        drawn.append(
            free(recordings[-1]) if free else Drawn(recordings[-1].images, recordings[-1].tokens, recordings[-1].logits)
        )
    return Reference(pipeline.backend.name, settings, recordings, _join(drawn))


def generate(
    pipeline: Pipeline,
    batch: Batch,
    sampling: Sampling,
    lead: Maps | None = None,
    on_scale: Callable[[ScaleView], None] | None = None,
    size: int | None = None,
    led_scales: int | None = None,
) -> Result:
    """Draws a batch, `size` pictures at a time (None: all).

    With `lead`, its first `led_scales` scales (None: all) are drawn from these tokens.
    """
    count = 0 if lead is None else len(lead) if led_scales is None else led_scales
    keep = None if lead is None else [np.full_like(maps, k < count, bool) for k, maps in enumerate(lead)]
    return pipeline.generate(
        batch.labels,
        batch.seed,
        sampling.cfg,
        sampling.top_k,
        sampling.top_p,
        keep,
        lead,
        batch=size or len(batch.labels),
        on_scale=on_scale,
        smooth=sampling.smooth,
    )


def started(pipeline: Pipeline, batch: Batch) -> dict[str, np.ndarray]:
    """What `condition` makes of the batch's labels."""
    backend: Any = pipeline.backend
    backend.begin(np.array(batch.labels, np.int64))
    result: dict[str, np.ndarray] = backend.started()
    return result


def outputs(view: ScaleView) -> Outputs:
    """What the graphs of the scale just stepped made."""
    result: Outputs = view.backend.outputs(view.index)  # type: ignore[attr-defined]
    return result


class _Enough(Exception):
    """What was asked for is there."""


def smoothly(pipeline: Pipeline, batch: Batch, sampling: Sampling, tokens: Maps) -> Smooth:
    """Draws a batch by smooth sampling, and each scale alone of it after `tokens`."""
    sampling = replace(sampling, smooth=True)
    f_hats: list[np.ndarray] = []

    def on_scale(view: ScaleView) -> None:
        if view.index == len(f_hats):
            f_hats.append(outputs(view)[SMOOTH_BRIDGE]["f_hat_out"].copy())
            raise _Enough

    for k in range(len(tokens)):
        with suppress(_Enough):
            generate(pipeline, batch, sampling, tokens, on_scale, led_scales=k)
    return Smooth(f_hats, generate(pipeline, batch, sampling).images)


def _record(pipeline: Pipeline, batch: Batch, sampling: Sampling, with_keys: bool, smooth: bool) -> Recording:
    """Draws freely and keeps what every stage made."""
    logits: list[np.ndarray] = []
    made: list[Outputs] = []

    def on_scale(view: ScaleView) -> None:
        graphs = outputs(view)
        logits.append(view.logits())
        kept = {name: value for name, value in graphs["transformer"].items() if with_keys and name != "logits"}
        made.append({**graphs, "transformer": kept})

    condition = started(pipeline, batch)
    result = generate(pipeline, batch, sampling, on_scale=on_scale)
    encoded = None
    if "encoder" in pipeline.manifest.graphs:
        encoded = np.concatenate(pipeline.encode(result.images), axis=1)
    mixed = smoothly(pipeline, batch, sampling, result.tokens) if smooth else None
    return Recording(batch, result.tokens, logits, condition, made, result.images, encoded, mixed)


def _join(parts: Sequence[Drawn]) -> Drawn:
    def maps(field: str) -> Maps:
        return [np.concatenate(scale) for scale in zip(*(getattr(part, field) for part in parts), strict=True)]

    return Drawn(np.concatenate([part.images for part in parts]), maps("tokens"), maps("logits"))


def _batched(manifest: Manifest) -> dict[tuple[str, str], Tensor]:
    return {(name, spec.name): spec for name, graph in manifest.graphs.items() for spec in graph.outputs}


def _taken(spec: Tensor, values: np.ndarray, pictures: range, total: int) -> np.ndarray:
    """Of these pictures; an axis 2B holds all with their label, then all without."""
    axis = next(i for i, size in enumerate(spec.shape) if size in ("B", "2B"))
    twice = [total + i for i in pictures] if spec.shape[axis] == "2B" else []
    return values.take([*pictures, *twice], axis)
