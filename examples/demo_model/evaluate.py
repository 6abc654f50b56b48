"""Measure the quality of a demo model on its exported bundle: the figures of docs/demo-model.md.

python -m examples.demo_model.evaluate --bundle build/var_demo/fp32
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from examples.demo_model.classes import CLASSES
from examples.demo_model.classifier import EmojiClassifier, load_classifier, predict
from examples.demo_model.data import EmojiSet, load_emoji, plain, split
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import checkpoint_weights, load_models
from export.model.reference import generate
from export.verify.draws import Parting
from runtime.cli import reports_errors
from runtime.images import grid, write_png
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from runtime.uniforms import uniforms

Settings = dict[str, float]  # cfg, top_k, top_p


def as_bytes(pictures: Tensor) -> np.ndarray:
    """Convert images (N, 3, H, W) in [-1, 1] to (N, H, W, 3) uint8."""
    return ((pictures * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def as_pictures(images: np.ndarray) -> Tensor:
    """Convert images (N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruct(pipeline: Pipeline, images: np.ndarray) -> np.ndarray:
    """Encode images (N, H, W, 3) uint8 to tokens and decode them again: every token is kept, none is drawn."""
    tokens = pipeline.encode(images)
    keep = [np.ones_like(scale, bool) for scale in tokens]
    return pipeline.generate([pipeline.manifest.model.num_classes] * len(images), keep=keep, kept_tokens=tokens).images


def reconstruction_psnr(pipeline: Pipeline, held_out: EmojiSet) -> np.ndarray:
    """Return the PSNR (N,) in dB between held-out renders and their reconstructions."""
    images = as_bytes(plain(torch.from_numpy(held_out.images)))
    error = (reconstruct(pipeline, images).astype(float) - images) / 255
    return -10 * np.log10(np.maximum((error**2).mean((1, 2, 3)), 1e-10))


def real_accuracy(classifier: EmojiClassifier, held_out: EmojiSet) -> float:
    """Return the share of labelled held-out renders that the classifier recognises."""
    labels = torch.from_numpy(held_out.labelled.labels)
    return (predict(classifier, plain(torch.from_numpy(held_out.labelled.images))) == labels).float().mean().item()


def recognised(
    pipeline: Pipeline, classifier: EmojiClassifier, per_class: int, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Generate images of every class.

    Returns the share of each class's images that the classifier recognises, (classes,), and the images.
    """
    labels = [label for label in range(len(CLASSES)) for _ in range(per_class)]
    images = pipeline.generate(labels, **settings).images  # type: ignore[arg-type]
    hits = predict(classifier, as_pictures(images)).numpy() == np.array(labels)
    return hits.reshape(len(CLASSES), per_class).mean(1), images


def agreement(pipeline: Pipeline, pictures: int, settings: Settings) -> Parting:
    """Draw that many images with PyTorch and with the runtime, and return where they start to differ."""
    recipe = Recipe.load(pipeline.manifest.model.name)
    labels = [i % recipe.num_classes for i in range(pictures)]
    counts = [scale.tokens for scale in recipe.scales]
    draws = [np.stack(rows) for rows in zip(*(uniforms(seed, counts) for seed in range(pictures)), strict=True)]
    models = load_models(recipe, checkpoint_weights(recipe, None, None))
    sampling = Sampling(settings["cfg"], int(settings["top_k"]), settings["top_p"])
    reference = generate(*models, labels, draws, sampling)
    parting = Parting(reference.tokens, reference.logits, draws, sampling)
    pipeline.generate(labels, **settings, on_scale=parting)  # type: ignore[arg-type]
    return parting


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(path_type=Path), default=Path("build/var_demo/fp32"))
@click.option("--per-class", default=32, help="Number of images to generate of each class.")
@click.option("--cfg", default=4.0)
@click.option("--top-k", default=900)
@click.option("--top-p", default=0.95)
@click.option(
    "--pictures", type=click.Path(path_type=Path), help="PNG of the generated images to write, one class per row."
)
@reports_errors
def main(bundle: Path, per_class: int, pictures: Path | None, **settings: float) -> None:
    """Measure a demo model and print the figures as Markdown tables."""
    pipeline, classifier = Pipeline(bundle), load_classifier()
    _, held_out = split(load_emoji())
    psnr = reconstruction_psnr(pipeline, held_out)
    shares, images = recognised(pipeline, classifier, per_class, settings)
    parting = agreement(pipeline, 64, settings)
    rows = {
        f"VQVAE: PSNR of {len(psnr)} held-out renders, mean": f"{psnr.mean():.2f} dB",
        "classifier: accuracy on held-out renders": f"{real_accuracy(classifier, held_out):.1%}",
        f"generated pictures recognised ({images.shape[0]})": f"{shares.mean():.1%}",
        "of 64 pictures, equal tokens in PyTorch and runtime": f"{parting.equal.sum()}",
        "logits of the two, largest difference and relative error": (
            f"{parting.error.largest:.1e}, {parting.error.relative:.1e}"
        ),
    }
    click.echo("| figure | value |\n|---|---|")
    for name, value in rows.items():
        click.echo(f"| {name} | {value} |")
    click.echo("\n| class | recognised |\n|---|---|")
    for row, share in zip(CLASSES, shares, strict=True):
        click.echo(f"| {row.names} | {share:.0%} |")
    if pictures:
        first = images.reshape(-1, per_class, *images.shape[1:])[:, :12]
        write_png(pictures, grid(first.reshape(-1, *images.shape[1:]), columns=first.shape[1]))


if __name__ == "__main__":
    main()
