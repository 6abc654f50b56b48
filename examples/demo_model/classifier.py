"""A small CNN that classifies emoji. It judges the images of the demo model.

python -m examples.demo_model.classifier        # trains it and prints the held-out accuracy
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from examples.demo_model.classes import CLASSES
from examples.demo_model.data import EmojiSet, augment, load_emoji, plain, split
from examples.demo_model.device import autocast, pick_device
from examples.demo_model.sampling import Sampler
from runtime.cli import reports_errors

WEIGHTS = Path(__file__).parent / "weights/classifier.safetensors"


class EmojiClassifier(nn.Module):
    """Maps images (B, 3, 64, 64) in [-1, 1] to class scores (B, classes)."""

    def __init__(self, num_classes: int = len(CLASSES), widths: tuple[int, ...] = (32, 64, 128, 192)):
        super().__init__()
        stages = [_unit(3, widths[0], stride=2)]  # (B, 32, 32, 32)
        for inside, outside in pairwise(widths):
            stages += [_unit(inside, outside), _unit(outside, outside, stride=2)]  # halves the side
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(widths[-1], num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(images)  # (B, 192, 4, 4)
        return self.head(features.mean((2, 3)))


def _unit(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.SiLU())


def train_classifier(members: EmojiSet, steps: int, device: torch.device, batch: int = 96) -> EmojiClassifier:
    """Train on augmented renders, every class equally often."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(members, device, power=0)
    model = EmojiClassifier().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        masters, labels, mirror = sampler.draw(batch, generator)
        images = augment(masters, mirror, generator).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            scores = model(images)
        loss = F.cross_entropy(scores.float(), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            click.echo(f"classifier step {step}/{steps} loss {loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def predict(model: EmojiClassifier, images: torch.Tensor) -> torch.Tensor:
    """Return the predicted labels (B,) int64 of images (B, 3, 64, 64) in [-1, 1]."""
    return torch.cat([model(part).argmax(1) for part in images.split(256)])


def load_classifier(path: Path = WEIGHTS) -> EmojiClassifier:
    """Load the committed classifier; the weights are float16 on disk and float32 in memory."""
    model = EmojiClassifier()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=False)
    return model.eval()


def save_classifier(model: EmojiClassifier, path: Path = WEIGHTS) -> None:
    """Write the weights as float16, without the batch counters, which inference does not need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    save_file(state, path)


@click.command()
@click.option("--steps", default=1500, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True)
@reports_errors
def main(steps: int, device: str, out: Path) -> None:
    """Train the classifier and print its accuracy on held-out renders."""
    trained, held = (part.labelled for part in split(load_emoji()))
    model = train_classifier(trained, steps, pick_device(device)).cpu()
    save_classifier(model, out)
    predicted = predict(load_classifier(out), plain(torch.from_numpy(held.images)))
    labels = torch.from_numpy(held.labels)
    for label, row in enumerate(CLASSES):
        mine = predicted[labels == label]
        wrong = [CLASSES[other].names for other in mine.tolist() if other != label]
        click.echo(f"{row.names:36} {(mine == label).sum()}/{len(mine)} {', '.join(wrong)}")
    click.echo(f"held-out accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
