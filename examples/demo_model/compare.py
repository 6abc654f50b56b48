"""Compare INT8 bundles of the demo model with its FP32 bundle: the figures of docs/int8.md.

python -m examples.demo_model.compare build/var_demo/fp32 build/var_demo/int8 build/var_demo/int8-cpu
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from examples.demo_model.classes import CLASSES
from examples.demo_model.classifier import EmojiClassifier, load_classifier
from examples.demo_model.evaluate import as_pictures
from export.verify.fidelity import Teacher
from runtime.images import grid, write_png
from runtime.pipeline import Pipeline

SETTINGS = {"cfg": 5.0, "top_k": 300, "top_p": 0.9}  # as in docs/demo-model.md


@dataclass(frozen=True)
class Judged:
    """The classifier's view of a set of images."""

    features: np.ndarray  # (N, 192): the inputs of its last layer
    accuracy: float


@torch.no_grad()
def judged(classifier: EmojiClassifier, images: np.ndarray, labels: np.ndarray) -> Judged:
    """Classify images (N, 64, 64, 3) uint8, and compare with their labels (N,)."""
    features = torch.cat([classifier.stages(part).mean((2, 3)) for part in as_pictures(images).split(256)])
    found = classifier.head(features).argmax(1).numpy()
    return Judged(features.numpy(), float((found == labels).mean()))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features (N, F), taken as Gaussians (Heusel et al., 2017)."""
    mean_a, mean_b, cov_a, cov_b = a.mean(0), b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the square root of cov_a cov_b is the sum of the roots of its eigenvalues, which are real and >= 0.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * roots)


def draw(bundle: Path, labels: np.ndarray, seed: int) -> np.ndarray:
    """Draw images (N, 64, 64, 3) uint8 of `labels` (N,); image i has the seed `seed` + i."""
    return Pipeline(bundle).generate(labels.tolist(), seed, **SETTINGS, batch=16).images  # type: ignore[arg-type]


@click.command(context_settings={"show_default": True})
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidates", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--per-class", default=70, help="Number of images of each class.")
@click.option("--tokens", default=2000, help="Number of tokens compared at every scale.")
@click.option(
    "--pictures", type=click.Path(path_type=Path), help="PNG to write: one row per bundle, the same seed in a column."
)
def main(reference: Path, candidates: tuple[Path, ...], per_class: int, tokens: int, pictures: Path | None) -> None:
    """Compare bundles of the demo model with the FP32 bundle REFERENCE, and print the results as Markdown."""
    classifier, teacher = load_classifier(), Teacher.draw(Pipeline(reference), tokens)
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    images = {path: draw(path, labels, 0) for path in (reference, *candidates)}
    base = judged(classifier, images[reference], labels)
    other = judged(classifier, draw(reference, labels, len(labels)), labels)  # FP32 with other seeds
    own = frechet_distance(base.features, other.features)
    click.echo(
        f"{len(labels)} images per bundle. {reference}: accuracy {base.accuracy:.1%}, with other seeds ", nl=False
    )
    click.echo(f"{other.accuracy:.1%}; Fréchet distance between the two {own:.3f}.\n")
    click.echo(
        "| bundle | accuracy | drop | Fréchet distance to FP32 of other seeds | of FP32's own | KL of a token "
        "| mean KL of the scales | PSNR |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    agreements = []
    for path in candidates:
        found, fidelity = judged(classifier, images[path], labels), teacher.compare(Pipeline(path))
        distance = frechet_distance(found.features, other.features)
        click.echo(
            f"| {path} | {found.accuracy:.1%} | {100 * (base.accuracy - found.accuracy):+.1f} points | {distance:.3f} "
            f"| {distance / own:.2f}x | {fidelity.kl:.4f} | {fidelity.kl_of_scales:.4f} | {fidelity.psnr:.1f} dB |"
        )
        cells = [f"{scale.agreement:.1%} of {scale.tokens}" for scale in fidelity.scales]
        agreements.append(f"| {path} | {' | '.join(cells)} |")
    sides = [f"{scale.side} x {scale.side}" for scale in fidelity.scales]
    click.echo(f"\n| top-1 agreement | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}")
    click.echo("\n".join(agreements))
    if pictures:
        chosen = range(0, len(labels), per_class * 3)
        rows = np.concatenate([found[list(chosen)] for found in images.values()])
        write_png(pictures, grid(rows, columns=len(chosen)))


if __name__ == "__main__":
    main()
