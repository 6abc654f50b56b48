"""Compare INT8 bundles of the demo model with its FP32 bundle: the figures of docs/int8.md.

python -m examples.demo_model.compare build/var_demo/fp32 build/var_demo/int8 build/var_demo/int8-cpu
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from examples.demo_model.classes import CLASSES
from examples.demo_model.classifier import EmojiClassifier, load_classifier
from examples.demo_model.evaluate import as_pictures
from export.verify.fidelity import Teacher, other_settings
from export.verify.interval import Z95, Estimate, share_interval, t95
from runtime.base_pipeline import BasePipeline
from runtime.bundle.manifest import Manifest
from runtime.cli import reports_errors
from runtime.images import grid, write_png
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling

SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.5)  # as in docs/demo-model.md
GROUPS = 20  # of images, of which a jackknife leaves out one after the other


@dataclass(frozen=True)
class Judged:
    """The classifier's view of a set of images."""

    features: np.ndarray  # (N, 192): the inputs of its last layer
    right: np.ndarray  # (N,) bool: whether it recognises the image's class

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


@torch.no_grad()
def judged(classifier: EmojiClassifier, images: np.ndarray, labels: np.ndarray) -> Judged:
    """Classify images (N, 64, 64, 3) uint8, and compare with their labels (N,)."""
    features = torch.cat([classifier.stages(part).mean((2, 3)) for part in as_pictures(images).split(256)])
    return Judged(features.numpy(), classifier.head(features).argmax(1).numpy() == labels)


def drop(base: Judged, found: Judged) -> Estimate:
    """Return how many points of accuracy are lost, with the interval over images. Image i of both has one seed."""
    lost = 100 * (base.right.astype(float) - found.right)
    return Estimate(float(lost.mean()), Z95 * float(lost.std(ddof=1)) / math.sqrt(len(lost)))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features (N, F), taken as Gaussians (Heusel et al., 2017)."""
    mean_a, mean_b, cov_a, cov_b = a.mean(0), b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the square root of cov_a cov_b is the sum of the roots of its eigenvalues, which are real and >= 0.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * roots)


def frechet_ratio(found: Judged, base: Judged, other: Judged) -> Estimate:
    """Return the distance of `found` from `other` relative to that of `base`, with its interval (a jackknife).

    Groups of images, at the same places in all three sets, are left out in turn.
    """

    def ratio(chosen: np.ndarray) -> float:
        far, near = (frechet_distance(images.features[chosen], other.features[chosen]) for images in (found, base))
        return far / near

    group = np.arange(len(other.features)) % GROUPS
    without = np.array([ratio(group != i) for i in range(GROUPS)])
    error = math.sqrt((GROUPS - 1) / GROUPS * float(((without - without.mean()) ** 2).sum()))
    return Estimate(ratio(group >= 0), t95(GROUPS - 1) * error)


def draw(pipeline: BasePipeline, labels: np.ndarray, seed: int, sampling: Sampling = SAMPLING) -> np.ndarray:
    """Draw images (N, 64, 64, 3) uint8 of `labels` (N,); image i has the seed `seed` + i."""
    return pipeline.generate(labels.tolist(), seed, sampling=sampling, batch=16).images


@click.command(context_settings={"show_default": True})
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidates", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--per-class", default=70, help="Number of images of each class.")
@click.option("--tokens", default=2000, help="Number of tokens compared at every scale.")
@click.option(
    "--pictures", type=click.Path(path_type=Path), help="PNG to write: one row per bundle, the same seed in a column."
)
@reports_errors
def main(reference: Path, candidates: tuple[Path, ...], per_class: int, tokens: int, pictures: Path | None) -> None:
    """Compare bundles of the demo model with the FP32 bundle REFERENCE, and print the results as Markdown.

    The nearest bundle by KL comes first. KL and the Fréchet distance judge; accuracy tells apart only what differs by
    more than its interval.
    """
    classifier, teacher = load_classifier(), Teacher.draw(Pipeline(reference), tokens)
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    images = {path: draw(Pipeline(path), labels, 0) for path in (reference, *candidates)}
    base = judged(classifier, images[reference], labels)
    other = judged(classifier, draw(Pipeline(reference), labels, len(labels)), labels)  # FP32 with other seeds
    own = frechet_distance(base.features, other.features)
    between = 100 * (base.accuracy - other.accuracy)
    click.echo(
        f"{len(labels)} images per bundle, drawn with {settings_text(SAMPLING)}; "
        f"KL for {settings_text(teacher.sampling)}.\n"
        f"{reference}: accuracy {_share(base)}, with other seeds {_share(other)}, {abs(between):.1f} points apart; "
        f"Fréchet distance between the two {own:.3f}.\n"
    )
    click.echo(
        "| bundle | KL of a token | mean KL of the scales | Fréchet distance to FP32 of other seeds, of FP32's own "
        "| PSNR | accuracy | drop in points |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    results = {path: teacher.compare(Pipeline(path)) for path in candidates}
    nearest_first = sorted(candidates, key=lambda path: results[path].kl_of_scales)
    for path in nearest_first:
        found, fidelity = judged(classifier, images[path], labels), results[path]
        ratio = frechet_ratio(found, base, other)
        verdict = "farther" if ratio.value - ratio.margin > 1 else "as near"
        click.echo(
            f"| {path} | {fidelity.kl:.4f} | {fidelity.estimate} | {ratio}: {verdict} | {fidelity.psnr:.1f} dB "
            f"| {_share(found)} | {drop(base, found)} |"
        )
    sides = [f"{scale.side} x {scale.side}" for scale in results[candidates[0]].scales]
    click.echo(f"\n| top-1 agreement | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}")
    for path in nearest_first:
        cells = [f"{scale.agreement:.1%} of {scale.tokens}" for scale in results[path].scales]
        click.echo(f"| {path} | {' | '.join(cells)} |")
    for path in candidates:
        if note := other_settings(Manifest.load(path, verify=False), SAMPLING):
            click.echo(f"\n{path}: {note}, with which the images are drawn.")
    if pictures:
        chosen = range(0, len(labels), per_class * 3)
        rows = np.concatenate([found[list(chosen)] for found in images.values()])
        write_png(pictures, grid(rows, columns=len(chosen)))


def _share(found: Judged) -> str:
    low, high = share_interval(int(found.right.sum()), len(found.right))
    return f"{found.accuracy:.1%} ({low:.1%} to {high:.1%})"


def settings_text(sampling: Sampling) -> str:
    return f"cfg {sampling.cfg:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"


if __name__ == "__main__":
    main()
