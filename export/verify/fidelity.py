"""How near one bundle comes to another, scale by scale, with the tokens of the reference.

Teacher-forced: both see the tokens that the reference drew, so an error shows where it is made and does not compound.
Coarse scales have few tokens a picture, so more pictures pass through them than through fine ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.errors import SettingsError
from runtime.pipeline import Maps, Pipeline, ScaleView
from runtime.progress import Progress, silent

BATCH = 16
Z95 = 1.96  # normal quantile of a 95 % interval


@dataclass
class ScaleFidelity:
    """What a scale's logits, after guidance and before filtering, differ in."""

    side: int
    agreeing: int = 0  # tokens whose most probable value is the same
    tokens: int = 0
    square_error: float = 0.0  # summed over tokens and vocabulary
    values: int = 0
    divergence: float = 0.0  # KL(reference || candidate) in nats, summed over tokens
    miss_margins: list[float] = field(default_factory=list)  # the reference's best logit minus its second, where missed
    largest_error: float = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """expected and found (B, L, V): logits."""
        error = found.astype(np.float64) - expected
        same = expected.argmax(-1) == found.argmax(-1)  # (B, L)
        self.agreeing += int(same.sum())
        self.tokens += same.size
        self.square_error += float((error**2).sum())
        self.values += error.size
        self.largest_error = max(self.largest_error, float(np.abs(error).max()))
        p, q = _log_softmax(expected), _log_softmax(found)
        self.divergence += float((np.exp(p) * (p - q)).sum())
        best = np.partition(expected[~same], -2, axis=-1)[:, -2:]
        self.miss_margins += (best[:, 1] - best[:, 0]).tolist()

    @property
    def agreement(self) -> float:
        return self.agreeing / self.tokens

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the agreement."""
        n, p = self.tokens, self.agreement
        centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)

    @property
    def kl(self) -> float:
        """Mean KL divergence of a token, nats."""
        return self.divergence / self.tokens

    @property
    def logit_error(self) -> float:
        """Root mean square."""
        return math.sqrt(self.square_error / self.values)

    @property
    def widest_miss(self) -> float:
        """The largest margin of a missed token in units of the logit error; 0 without a miss."""
        return max(self.miss_margins, default=0.0) / self.logit_error if self.miss_margins else 0.0


@dataclass(frozen=True)
class Fidelity:
    """All scales, and the decoder fed with the reference's tokens."""

    scales: list[ScaleFidelity]
    psnr: float  # of the pictures that went through all scales, dB; infinite if equal

    @property
    def kl(self) -> float:
        """Mean of a token, over all scales."""
        return sum(scale.divergence for scale in self.scales) / sum(scale.tokens for scale in self.scales)

    @property
    def agreement(self) -> float:
        """Share of the tokens of all scales."""
        return sum(scale.agreeing for scale in self.scales) / sum(scale.tokens for scale in self.scales)


@dataclass(frozen=True)
class Batch:
    """Pictures drawn together by the reference: all scales up to the last that is compared."""

    labels: list[int]
    seed: int
    tokens: Maps
    logits: list[np.ndarray]  # (B, L, V) by scale
    images: np.ndarray | None  # if all scales were drawn


@dataclass(frozen=True)
class Teacher:
    """What the reference drew, to compare candidates with: its tokens lead them, so that errors do not compound."""

    sides: tuple[int, ...]
    depth: int
    batches: list[Batch]

    @classmethod
    def draw(
        cls,
        reference: Pipeline,
        tokens: int = 2000,
        seed: int = 0,
        sizes: Sequence[int] = (BATCH,),
        progress: Progress = silent,
    ) -> Teacher:
        """At least `tokens` tokens of every scale, over all classes, with the default sampling settings.

        The first scale depends on the class alone: every class comes once. `sizes` are the batches that candidates can
        draw.
        """
        model = reference.manifest.model
        pictures = [math.ceil(tokens / side**2) for side in model.patch_nums]
        pictures[0] = max(pictures[1], min(pictures[0], model.num_classes + 1))
        batches = []
        for batch in _batches(pictures[0], sizes):
            last = max(k for k, count in enumerate(pictures) if count > batch.start)
            labels = [i % (model.num_classes + 1) for i in batch]
            batches.append(
                Batch(labels, seed + batch.start, *_logits(reference, labels, seed + batch.start, last, None))
            )
            progress("drawing with the reference", batch.stop, pictures[0])
        return cls(model.patch_nums, model.depth, batches)

    def compare(self, candidate: Pipeline, progress: Progress = silent) -> Fidelity:
        """Raises SettingsError."""
        model = candidate.manifest.model
        if model.patch_nums != self.sides or model.depth != self.depth:
            raise SettingsError(f"{model.name}: not the model of the reference")
        scales = [ScaleFidelity(side) for side in self.sides]
        squares, values = 0.0, 0
        for i, batch in enumerate(self.batches):
            last = len(batch.logits) - 1
            _, found, images = _logits(candidate, batch.labels, batch.seed, last, batch.tokens)
            for scale, a, b in zip(scales, batch.logits, found, strict=False):
                scale.add(a, b)
            if batch.images is not None and images is not None:
                squares += float(((images.astype(float) - batch.images) ** 2).sum())
                values += images.size
            progress("comparing", i + 1, len(self.batches))
        return Fidelity(scales, psnr(squares / values))


def compare(
    reference: Pipeline,
    candidate: Pipeline,
    tokens: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> Fidelity:
    """`candidate` led by `reference`, see `Teacher`. Raises SettingsError."""
    teacher = Teacher.draw(reference, tokens, seed, candidate.backend.batches or (BATCH,), progress)
    return teacher.compare(candidate, progress)


def psnr(mean_square: float) -> float:
    """dB, of a mean squared error of bytes."""
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf


def _batches(pictures: int, sizes: Sequence[int]) -> Iterator[range]:
    """At least so many pictures, always as many together as the candidate draws best."""
    size = max(size for size in sizes if size <= BATCH)
    for start in range(0, pictures, size):
        yield range(start, start + size)


class _Enough(Exception):
    """Ends a generation after the last scale that is wanted."""


def _logits(
    pipeline: Pipeline, labels: list[int], seed: int, last: int, teacher: Maps | None
) -> tuple[Maps, list[np.ndarray], np.ndarray | None]:
    """Tokens and logits (B, L, V) of scales 0 to `last`, and the pictures if that is the last of all."""
    maps: Maps = []
    logits: list[np.ndarray] = []

    def on_scale(view: ScaleView) -> None:
        maps.append(view.tokens())
        logits.append(view.logits())
        if view.index == last < len(pipeline.manifest.scales) - 1:
            raise _Enough

    keep = kept = None
    if teacher is not None:
        shapes = [(len(labels), scale.tokens) for scale in pipeline.manifest.scales]
        keep = [np.ones(shape, bool) for shape in shapes]
        kept = [*teacher, *(np.zeros(shape, np.int32) for shape in shapes[len(teacher) :])]
    try:
        result = pipeline.generate(
            labels,
            seed,
            keep=keep,
            kept_tokens=kept,
            batch=len(labels),
            on_scale=on_scale,
        )
    except _Enough:
        return maps, logits, None
    return maps, logits, result.images


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def table(result: Fidelity) -> str:
    """The result as Markdown."""
    lines = [
        "| scale | tokens | top-1 agreement | 95 % interval | mean KL | logit error (rms, max) | widest miss |",
        "|---|---|---|---|---|---|---|",
    ]
    for k, scale in enumerate(result.scales):
        low, high = scale.interval
        lines.append(
            f"| {k} ({scale.side} x {scale.side}) | {scale.tokens} | {scale.agreement:.2%} | {low:.2%} to {high:.2%} "
            f"| {scale.kl:.1e} | {scale.logit_error:.4f}, {scale.largest_error:.4f} | {scale.widest_miss:.2f} x rms |"
        )
    means = f"all scales: KL {result.kl:.1e}, top-1 agreement {result.agreement:.2%}"
    return "\n".join([*lines, "", f"{means}; pictures from equal tokens: PSNR {result.psnr:.1f} dB"])
