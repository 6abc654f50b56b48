"""Record what the reference computes in every stage, batch by batch: artifacts are compared with the recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from runtime.backends.base import Observe, StageRun
from runtime.base_pipeline import Maps, Result, ScaleView
from runtime.bundle.manifest import Manifest, Tensor
from runtime.bundle.names import CONDITION, ENCODER, F_HAT_OUT, LOGITS, SMOOTH_BRIDGE, TRANSFORMER
from runtime.errors import SettingsError
from runtime.pipeline import Pipeline
from runtime.progress import Progress
from runtime.sampling import Sampling
from runtime.uniforms import uniforms

Outputs = dict[str, dict[str, np.ndarray]]  # graph -> tensor -> values


@dataclass(frozen=True)
class Drawn:
    """N freely generated images; see `export.model.reference.Generation`."""

    images: np.ndarray
    tokens: Maps
    logits: list[np.ndarray]


@dataclass(frozen=True)
class Batch:
    """Images generated together."""

    labels: list[int]
    seed: int


@dataclass(frozen=True)
class Settings:
    """The images to generate: how many, in which batches, from which seed, with which sampling settings."""

    pictures: int
    batch: int
    seed: int
    sampling: Sampling

    @classmethod
    def default(cls, pipeline: Pipeline, pictures: int, batch: int) -> Settings:
        """Return settings with the default sampling, fitted to the model's vocabulary. Raises SettingsError."""
        if pictures < 1:
            raise SettingsError(f"pictures: expected 1 or more, found {pictures}")
        model = pipeline.manifest.model
        return cls(pictures, batch, 0, Sampling().fitted(model.vocab_size, len(model.patch_nums)))

    def batches(self, num_classes: int) -> list[Batch]:
        """Return batches whose labels are spread over the classes."""
        labels = [i * num_classes // self.pictures for i in range(self.pictures)]
        starts = range(0, self.pictures, self.batch)
        return [Batch(labels[start : start + self.batch], self.seed + start) for start in starts]


@dataclass(frozen=True)
class Smooth:
    """The same images by smooth sampling."""

    f_hats: list[np.ndarray]  # K arrays (B, Z, P, P): f_hat after scale k if only scale k is mixed, after given tokens
    images: np.ndarray  # with all scales mixed


@dataclass(frozen=True)
class Recording:
    """The results of every stage of the reference for one batch."""

    batch: Batch
    tokens: Maps  # K arrays (B, p²)
    logits: list[np.ndarray]  # K arrays (B, L, V), after guidance
    condition: dict[str, np.ndarray]  # outputs of the graph
    outputs: list[Outputs]  # of the other graphs, by scale; keys and values only in the first batch: they are large
    images: np.ndarray  # (B, H, W, 3) uint8
    tiny: np.ndarray | None  # the same by the tiny decoder; None without one
    encoded: np.ndarray | None  # (B, T): the tokens of `images`; None without an encoder
    smooth: Smooth | None  # None without its graph

    def of(self, pictures: range, manifest: Manifest) -> Recording:
        """Return the recording of some images of the batch."""
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
            part(CONDITION, self.condition),
            [{graph: part(graph, values) for graph, values in scale.items()} for scale in self.outputs],
            self.images[rows],
            None if self.tiny is None else self.tiny[rows],
            None if self.encoded is None else self.encoded[rows],
            self.smooth and Smooth([f_hat[rows] for f_hat in self.smooth.f_hats], self.smooth.images[rows]),
        )

    def draws(self) -> Maps:
        """Return the uniforms of the images: K arrays (B, p²) float32."""
        counts = [maps.shape[1] for maps in self.tokens]
        rows = [uniforms(self.batch.seed + i, counts) for i in range(len(self.batch.labels))]
        return [np.stack(scale) for scale in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Reference:
    """What artifacts are compared with: recordings of all batches, and the free generation."""

    name: str
    settings: Settings
    recordings: list[Recording]
    free: Drawn

    @property
    def images(self) -> np.ndarray:
        return np.concatenate([recording.images for recording in self.recordings])


def prepare(
    pipeline: Pipeline,
    settings: Settings,
    smooth: bool,
    tiny: bool,
    free: Callable[[Recording], Drawn] | None,
    progress: Progress,
) -> Reference:
    """Generate and record all batches with the reference, with `smooth` sampling and `tiny` decoder if it has them.

    `free`, if given, generates the images with another loop.
    """
    batches = settings.batches(pipeline.manifest.model.num_classes)
    recordings, drawn = [], []
    for i, batch in enumerate(batches):
        progress(f"drawing with {pipeline.backend.name}", i, len(batches))
        recordings.append(_record(pipeline, batch, settings.sampling, i == 0, smooth, tiny))
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
    observe: Observe | None = None,
) -> Result:
    """Generate a batch, `size` images at a time (None: all).

    With `lead`, the first `led_scales` scales (None: all) are teacher-forced with these tokens.
    """
    count = 0 if lead is None else len(lead) if led_scales is None else led_scales
    keep = None if lead is None else [np.full_like(maps, k < count, bool) for k, maps in enumerate(lead)]
    return pipeline.generate(
        batch.labels,
        batch.seed,
        keep=keep,
        kept_tokens=lead,
        batch=size or len(batch.labels),
        on_scale=on_scale,
        sampling=sampling,
        observe=observe,
    )


class _Enough(Exception):
    """Ends a generation when the scale that is wanted has run."""


def smoothly(pipeline: Pipeline, batch: Batch, sampling: Sampling, tokens: Maps) -> Smooth:
    """Generate a batch by smooth sampling; also mix each scale alone, with the earlier scales forced to `tokens`."""
    sampling = replace(sampling, smooth=True)
    f_hats: list[np.ndarray] = []

    def observe(run: StageRun) -> None:
        if run.graph == SMOOTH_BRIDGE and run.scale == len(f_hats):
            f_hats.append(run.outputs[F_HAT_OUT])
            raise _Enough

    for k in range(len(tokens)):
        with suppress(_Enough):
            generate(pipeline, batch, sampling, tokens, led_scales=k, observe=observe)
    return Smooth(f_hats, generate(pipeline, batch, sampling).images)


def _record(
    pipeline: Pipeline, batch: Batch, sampling: Sampling, with_keys: bool, smooth: bool, tiny: bool
) -> Recording:
    """Generate freely, and record the results of every stage."""
    logits: list[np.ndarray] = []
    condition: dict[str, np.ndarray] = {}
    made: list[Outputs] = [{} for _ in pipeline.manifest.scales]

    imitated: list[np.ndarray] = []

    def on_scale(view: ScaleView) -> None:
        logits.append(view.logits())
        if tiny and view.last:
            imitated.append(view.backend.decode(preview=True))

    def observe(run: StageRun) -> None:
        if run.graph == CONDITION:
            condition.update(run.outputs)
        elif run.graph == TRANSFORMER and run.scale is not None:
            kept = [name for name in run.outputs if with_keys and name != LOGITS]
            made[run.scale][run.graph] = {name: run.outputs[name] for name in kept}
        elif run.scale is not None:
            made[run.scale][run.graph] = dict(run.outputs)

    result = generate(pipeline, batch, sampling, on_scale=on_scale, observe=observe)
    encoded = None
    if ENCODER in pipeline.manifest.graphs:
        encoded = np.concatenate(pipeline.encode(result.images), axis=1)
    mixed = smoothly(pipeline, batch, sampling, result.tokens) if smooth else None
    images = result.images, imitated[0] if tiny else None
    return Recording(batch, result.tokens, logits, condition, made, *images, encoded, mixed)


def _join(parts: Sequence[Drawn]) -> Drawn:
    def maps(field: str) -> Maps:
        return [np.concatenate(scale) for scale in zip(*(getattr(part, field) for part in parts), strict=True)]

    return Drawn(np.concatenate([part.images for part in parts]), maps("tokens"), maps("logits"))


def _batched(manifest: Manifest) -> dict[tuple[str, str], Tensor]:
    return {(name, spec.name): spec for name, graph in manifest.graphs.items() for spec in graph.outputs}


def _taken(spec: Tensor, values: np.ndarray, pictures: range, total: int) -> np.ndarray:
    """Return the values of these images. An axis 2B holds the conditional half of all images, then the other half."""
    axis = next(i for i, size in enumerate(spec.shape) if size in ("B", "2B"))
    twice = [total + i for i in pictures] if spec.shape[axis] == "2B" else []
    return values.take([*pictures, *twice], axis)
