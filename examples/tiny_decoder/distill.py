"""Distil the decoder of a bundle into a tiny decoder. The bundle's own rollouts are the data; no data set is needed.

python -m examples.tiny_decoder.distill build/var_demo/fp32 --minutes 15 --out tiny.safetensors
python -m export --model var_demo --tiny-decoder tiny.safetensors --out build/var_demo/fp32
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from examples.demo_model.device import DEVICES, pick_device
from examples.demo_model.loop import Batch, Budget, Settings, train
from examples.tiny_decoder.rollouts import rollouts
from examples.tiny_decoder.stage import TinyDecoderStage
from runtime.bundle.manifest import VQVAE_SHA256, WEIGHTS
from runtime.cli import FILE, command, reports_errors
from runtime.errors import SettingsError
from runtime.files.atomic import atomic_file
from runtime.files.outputs import check_target
from runtime.pipeline import Pipeline
from runtime.progress import progress_bar

BUILD = Path("build/tiny_decoder")
HELD_OUT = 16  # of this many rollouts one is held out
BATCH = 32
LEARNING_RATE = 1e-3


@command()
@click.argument("bundle", type=FILE)
@click.option("--out", type=FILE, required=True, help="File of the tiny decoder to write (.safetensors).")
@click.option("--images", type=click.IntRange(min=64), default=4096, help="Images to generate as training data.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Minutes to train; the schedule ends with them."
)
@click.option("--steps", type=click.IntRange(min=1), help="Number of steps to train; the schedule ends with them.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Device to train on.")
@click.option("--backend", default="auto", help="Backend that generates the images.")
@click.option("--folder", type=FILE, default=BUILD, help="Folder of rollouts and checkpoints.")
@reports_errors
def main(
    bundle: Path,
    out: Path,
    images: int,
    minutes: float | None,
    steps: int | None,
    device: str,
    backend: str,
    folder: Path,
) -> None:
    """Train a tiny decoder for BUNDLE. An interrupted run resumes when the command is run again."""
    if (steps is None) == (minutes is None):
        raise click.UsageError("Expected one of '--steps' and '--minutes'.")
    check_target(out, ".safetensors", sources=(bundle,))
    where = pick_device(device)
    with Pipeline(bundle, backend) as pipeline, progress_bar() as progress:
        model, vqvae = pipeline.manifest.model, pipeline.manifest.vqvae_sha256
        if vqvae is None:
            raise SettingsError(f"{bundle}: does not say which VQVAE it has; export it again")
        folder /= f"{model.name}-{pipeline.manifest.files[WEIGHTS].sha256:.12}"  # rollouts belong to one bundle
        f_hat, decoded = rollouts(pipeline, images, folder / "rollouts", progress)
    torch.manual_seed(0)  # of the first weights, so that equal runs have equal results
    stage = distil(TinyDecoderStage(model), f_hat, decoded, Budget(steps, minutes), folder / "tiny.pt", where)
    weights = stage.tiny_decoder.cpu().state_dict()
    with atomic_file(out) as file:
        file.write(save({name: tensor.half().contiguous() for name, tensor in weights.items()}, {VQVAE_SHA256: vqvae}))
    click.echo(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def distil(
    stage: TinyDecoderStage,
    f_hat: np.ndarray,
    decoded: np.ndarray,
    budget: Budget,
    checkpoint: Path,
    device: torch.device,
) -> TinyDecoderStage:
    """Train `stage` on f_hat (2N, Z, P, P) float32 and images (2N, H, W, 3) uint8; see `rollouts` for their order.

    The last sixteenth of the rollouts is held out.
    """
    held_out = len(f_hat) // HELD_OUT // 2 * 2
    inputs, targets = torch.from_numpy(f_hat), torch.from_numpy(decoded)

    def pairs(rows: Tensor | slice) -> Batch:
        images = targets[rows].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return inputs[rows].to(device), images

    def draw(generator: torch.Generator) -> Batch:
        return pairs(torch.randint(len(inputs) - held_out, (BATCH,), generator=generator))

    settings = Settings(learning_rate=LEARNING_RATE, weight_decay=0.0)
    stage = stage.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = train(stage, draw, pairs(slice(-held_out, None)), budget, settings, checkpoint, click.echo)
    assert isinstance(trained, TinyDecoderStage)
    return trained


if __name__ == "__main__":
    main()
