"""Measure how near one bundle comes to another, scale by scale, with the tokens of the reference.

Both are teacher-forced with the tokens that the reference drew: an error shows where it occurs, and does not compound.
Coarse scales have few tokens an image, so more images are generated up to them than up to the fine scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from export.verify.interval import Estimate, share_interval
from runtime.base_pipeline import BasePipeline, Maps, ScaleView
from runtime.bundle.manifest import Manifest
from runtime.errors import SettingsError
from runtime.progress import Progress, silent
from runtime.sampling import Sampling

BATCH = 16
GOLDEN = 0.618  # of the classes: the step from the label of an image to the next, so that few images visit many
SAMPLING = Sampling()


@dataclass
class ScaleFidelity:
    """The differences of the logits of one scale, after guidance and before filtering."""

    side: int
    agreeing: int = 0  # tokens with the same most probable value
    tokens: int = 0
    square_error: float = 0.0  # summed over tokens and vocabulary
    values: int = 0
    divergence: float = 0.0  # KL(reference || candidate) in nats, summed over tokens
    image_kl: list[float] = field(default_factory=list)  # the KL of a token in each image
    miss_margins: list[float] = field(default_factory=list)  # the reference's best logit minus its second, at misses
    largest_error: float = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Add the logits expected and found, both (B, L, V)."""
        error = found.astype(np.float64) - expected
        same = expected.argmax(-1) == found.argmax(-1)  # (B, L)
        self.agreeing += int(same.sum())
        self.tokens += same.size
        self.square_error += float((error**2).sum())
        self.values += error.size
        self.largest_error = max(self.largest_error, float(np.abs(error).max()))
        p, q = _log_softmax(expected), _log_softmax(found)
        divergence = (np.exp(p) * (p - q)).sum(-1)  # (B, L)
        self.divergence += float(divergence.sum())
        self.image_kl += divergence.mean(-1).tolist()
        best = np.partition(expected[~same], -2, axis=-1)[:, -2:]
        self.miss_margins += (best[:, 1] - best[:, 0]).tolist()

    @property
    def agreement(self) -> float:
        return self.agreeing / self.tokens

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the agreement (Wilson)."""
        return share_interval(self.agreeing, self.tokens)

    @property
    def kl(self) -> float:
        """The KL of a token: the mean KL divergence of this scale's tokens, in nats."""
        return self.divergence / self.tokens

    @property
    def logit_error(self) -> float:
        """The root mean square error of the logits."""
        return math.sqrt(self.square_error / self.values)

    @property
    def widest_miss(self) -> float:
        """The largest margin of a miss (a token that does not agree), in units of the logit error; 0 without misses."""
        return max(self.miss_margins, default=0.0) / self.logit_error if self.miss_margins else 0.0


@dataclass(frozen=True)
class Fidelity:
    """The differences of all scales, and of images decoded from the reference's tokens."""

    scales: list[ScaleFidelity]
    psnr: float  # dB, of the images that were generated completely; infinite if equal

    @property
    def kl(self) -> float:
        """The KL of a token: the mean KL divergence of the tokens of all scales, in nats.

        It depends on how many tokens of each scale are compared.
        """
        return sum(scale.divergence for scale in self.scales) / sum(scale.tokens for scale in self.scales)

    @property
    def kl_of_scales(self) -> float:
        """The mean KL of the scales: each scale's KL of a token counts alike, in nats. Budgets are of this one."""
        return sum(scale.kl for scale in self.scales) / len(self.scales)

    @property
    def deviations(self) -> np.ndarray:
        """How far each image moves `kl_of_scales` from its mean, (images,) in nats; they sum to 0.

        An image moves all its scales together, so these are the independent parts of the error of the mean.
        """
        moved = np.zeros(len(self.scales[0].image_kl))
        for scale in self.scales:  # the images of a fine scale are the first of those of a coarser one
            kl = np.array(scale.image_kl)
            moved[: len(kl)] += (kl - kl.mean()) / len(kl) / len(self.scales)
        return moved

    @property
    def images(self) -> int:
        """The number of images compared at every scale."""
        return len(self.scales[-1].image_kl)

    @property
    def estimate(self) -> Estimate:
        """The mean KL of the scales, with its 95 % interval over images."""
        return Estimate.of(self.kl_of_scales, self.deviations, self.images)

    @property
    def agreement(self) -> float:
        """The share of the tokens of all scales that agree."""
        return sum(scale.agreeing for scale in self.scales) / sum(scale.tokens for scale in self.scales)


@dataclass(frozen=True)
class Batch:
    """A batch of images of the reference, up to the last scale that is compared."""

    labels: list[int]
    seed: int
    tokens: Maps
    logits: list[np.ndarray]  # (B, L, V) by scale
    images: np.ndarray | None  # None unless all scales were generated


@dataclass(frozen=True)
class Teacher:
    """What the reference generated. Its tokens are forced on the candidates, so that errors do not compound."""

    sides: tuple[int, ...]
    depth: int
    batches: list[Batch]
    sampling: Sampling

    @classmethod
    def draw(
        cls,
        reference: BasePipeline,
        tokens: int = 2000,
        seed: int = 0,
        sizes: Sequence[int] = (BATCH,),
        progress: Progress = silent,
        images: int = 1,
        sampling: Sampling = SAMPLING,
    ) -> Teacher:
        """Generate at least `tokens` tokens and `images` images of every scale, over all classes.

        The first scale depends only on the class, so it needs every class once and no more. `sizes` are the batch sizes
        that the candidates support. A `top_k` larger than the vocabulary keeps all tokens.
        """
        model = reference.manifest.model
        sampling = replace(sampling, top_k=_kept(sampling.top_k, model.vocab_size))
        pictures = [max(images, math.ceil(tokens / side**2)) for side in model.patch_nums]
        pictures[0] = max(pictures[1], min(pictures[0], model.num_classes + 1))
        step = _label_step(model.num_classes + 1)
        batches = []
        for batch in _batches(pictures[0], sizes):
            last = max(k for k, count in enumerate(pictures) if count > batch.start)
            labels = [i * step % (model.num_classes + 1) for i in batch]
            drawn = _logits(reference, labels, seed + batch.start, last, None, sampling)
            batches.append(Batch(labels, seed + batch.start, *drawn))
            progress("drawing with the reference", batch.stop, pictures[0])
        return cls(model.patch_nums, model.depth, batches, sampling)

    def compare(
        self,
        candidate: BasePipeline,
        progress: Progress = silent,
        sampling: Sampling | None = None,
    ) -> Fidelity:
        """Return the fidelity of `candidate` to the reference. Raises SettingsError if the models differ.

        `sampling` replaces the settings of the reference, for instance by those of a shortcut. The draft of a
        `DraftedPipeline` must be of the reference's model.
        """
        model = (candidate.draft or candidate).manifest.model
        if model.patch_nums != self.sides or model.depth != self.depth:
            raise SettingsError(f"{model.name}: the reference is another model; compare bundles of one model")
        scales = [ScaleFidelity(side) for side in self.sides]
        squares, values, sampling = 0.0, 0, sampling or self.sampling
        for i, batch in enumerate(self.batches):
            last = len(batch.logits) - 1
            _, found, images = _logits(candidate, batch.labels, batch.seed, last, batch.tokens, sampling)
            for scale, a, b in zip(scales, batch.logits, found, strict=False):
                scale.add(a, b)
            if batch.images is not None and images is not None:
                squares += float(((images.astype(float) - batch.images) ** 2).sum())
                values += images.size
            progress("comparing", i + 1, len(self.batches))
        return Fidelity(scales, psnr(squares / values))


def compare(
    reference: BasePipeline,
    candidate: BasePipeline,
    tokens: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
    sampling: Sampling = SAMPLING,
) -> Fidelity:
    """Compare `candidate`, teacher-forced, with `reference`; see `Teacher`. Raises SettingsError."""
    sizes = candidate.backend.batches or (BATCH,)
    teacher = Teacher.draw(reference, tokens, seed, sizes, progress, sampling=sampling)
    return teacher.compare(candidate, progress)


def psnr(mean_square: float) -> float:
    """Return the PSNR in dB of a mean squared error of bytes; infinity if it is 0."""
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf


def _batches(pictures: int, sizes: Sequence[int]) -> Iterator[range]:
    """Yield ranges of at least `pictures` images in all, in batches of the largest size up to BATCH."""
    size = max(size for size in sizes if size <= BATCH)
    for start in range(0, pictures, size):
        yield range(start, start + size)


def _label_step(count: int) -> int:
    """Return the step between the labels of images: near GOLDEN of them all, and visiting each of `count` labels."""
    return next(step for step in range(round(GOLDEN * count), 2 * count + 2) if math.gcd(step, count) == 1)


class _Enough(Exception):
    """Ends a generation after the last scale that is wanted."""


def _logits(
    pipeline: BasePipeline,
    labels: list[int],
    seed: int,
    last: int,
    teacher: Maps | None,
    sampling: Sampling,
) -> tuple[Maps, list[np.ndarray], np.ndarray | None]:
    """Return tokens and logits (B, L, V) of scales 0 to `last`, and the images if `last` is the last scale of all."""
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
            sampling=sampling,
        )
    except _Enough:
        return maps, logits, None
    return maps, logits, result.images


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def table(result: Fidelity) -> str:
    """Return the result as a Markdown table."""
    lines = [
        "| scale | tokens | top-1 agreement | 95 % interval | KL of a token | logit error (rms, max) | widest miss |",
        "|---|---|---|---|---|---|---|",
    ]
    for k, scale in enumerate(result.scales):
        low, high = scale.interval
        lines.append(
            f"| {k} ({scale.side} x {scale.side}) | {scale.tokens} | {scale.agreement:.2%} | {low:.2%} to {high:.2%} "
            f"| {scale.kl:.1e} | {scale.logit_error:.4f}, {scale.largest_error:.4f} | {scale.widest_miss:.2f} x rms |"
        )
    means = f"all scales: KL of a token {result.kl:.2g}, mean KL of the scales {result.estimate}"
    rest = f"top-1 agreement {result.agreement:.2%}; pictures from equal tokens: PSNR {result.psnr:.1f} dB"
    return "\n".join([*lines, "", f"{means}; {rest}"])


def other_settings(manifest: Manifest, sampling: Sampling) -> str:
    """Return a sentence if the bundle's calibration or budget was measured with other settings than these, or ""."""
    options = manifest.provenance.options
    known = options.get("calibration")
    if not isinstance(known, dict) or not (options.get("pictures") or options.get("budget")):
        return ""  # nothing in it was measured on images
    size = manifest.model.vocab_size
    pairs = [(name, known.get(name), getattr(sampling, name)) for name in ("cfg", "top_k", "top_p")]
    if isinstance(known.get("top_k"), int):
        pairs[1] = ("top_k", _kept(known["top_k"], size), _kept(sampling.top_k, size))
    differing = [f"{name} {found}, not {asked}" for name, found, asked in pairs if found != asked]
    return f"calibrated for {', '.join(differing)}" if differing else ""


def _kept(top_k: int | None, vocabulary: int) -> int:
    """Return how many tokens `top_k` keeps."""
    return Sampling.default_top_k(vocabulary) if top_k is None else min(top_k or vocabulary, vocabulary)
