"""Train the demo model stage by stage. A stage that was interrupted resumes when its command is run again.

python -m examples.demo_model.train vqvae --minutes 42
python -m examples.demo_model.train decoder --minutes 10
python -m examples.demo_model.train var --minutes 33
python -m examples.demo_model.train pack
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.demo_model.classes import CLASSES
from examples.demo_model.data import BUILD, EmojiSet, augment, load_emoji, plain, split
from examples.demo_model.decoder_stage import DecoderStage
from examples.demo_model.device import autocast, pick_device
from examples.demo_model.group_norm import use_fast_group_norm
from examples.demo_model.loop import Batch, Budget, Settings, Stage, train
from examples.demo_model.sampling import Sampler
from examples.demo_model.var_stage import VARStage, teacher_features
from examples.demo_model.vqvae_stage import VQVAEStage
from export.checkpoint.recipe import RECIPES, Recipe
from export.model.vqvae import VQVAE
from runtime.bundle.classes import CLASS_LISTS

RECIPE = "var_demo"
WEIGHTS = RECIPES / "demo"  # part of the package, so that --model var_demo works in every installation
CLASS_FILE = CLASS_LISTS / "emoji.txt"

PictureStage = TypeVar("PictureStage", VQVAEStage, DecoderStage)


def pictures_and_labels(emoji: EmojiSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the emoji without augmentation: images (N, 3, 64, 64) and labels (N,)."""
    return plain(torch.from_numpy(emoji.images)).to(device), torch.from_numpy(emoji.labels).to(device)


def train_vqvae(
    recipe: Recipe,
    emoji: EmojiSet,
    budget: Budget,
    checkpoint: Path,
    device: torch.device,
    batch: int = 16,
    seed: int = 0,
) -> VQVAEStage:
    """Train the VQVAE on every emoji that is not held out; 30 % of the images are recoloured."""
    torch.manual_seed(seed)
    settings = Settings(learning_rate=1e-3, weight_decay=0.01, seed=seed)
    return _train_on_pictures(VQVAEStage(recipe), emoji, 0.3, batch, budget, settings, checkpoint, device)


def train_decoder(
    vqvae: VQVAE,
    emoji: EmojiSet,
    budget: Budget,
    checkpoint: Path,
    device: torch.device,
    batch: int = 16,
    seed: int = 0,
) -> DecoderStage:
    """Train the decoder of a trained VQVAE further; 10 % of the images are recoloured."""
    torch.manual_seed(seed)
    settings = Settings(learning_rate=4e-4, weight_decay=0.01, seed=seed)
    return _train_on_pictures(DecoderStage(vqvae), emoji, 0.1, batch, budget, settings, checkpoint, device)


def _train_on_pictures(
    stage: PictureStage,
    emoji: EmojiSet,
    recolour: float,
    batch: int,
    budget: Budget,
    settings: Settings,
    checkpoint: Path,
    device: torch.device,
) -> PictureStage:
    """Train on all augmented emoji, also those of no class; `recolour` is the share that may get any hue."""
    trained, held_out = split(emoji)
    sampler = Sampler(trained, device, power=1)

    def draw(generator: torch.Generator) -> Batch:
        masters, labels, mirror = sampler.draw(batch, generator)
        return augment(masters, mirror, generator, recolour), labels

    stage = stage.to(device, memory_format=torch.channels_last)
    use_fast_group_norm(stage)
    return train(stage, draw, pictures_and_labels(held_out, device), budget, settings, checkpoint, click.echo)


def train_var(
    recipe: Recipe,
    vqvae: VQVAE,
    emoji: EmojiSet,
    budget: Budget,
    checkpoint: Path,
    device: torch.device,
    batch: int = 32,
    seed: int = 0,
) -> VARStage:
    """Train the transformer on the tokens of augmented emoji, which are encoded batch by batch."""
    torch.manual_seed(seed)
    vqvae = vqvae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    trained, held_out = (part.labelled for part in split(emoji))
    sampler = Sampler(trained, device, power=0.5)

    def draw(generator: torch.Generator) -> Batch:
        masters, labels, mirror = sampler.draw(batch, generator)
        return *tokenise(vqvae, augment(masters, mirror, generator)), labels

    pictures, labels = pictures_and_labels(held_out, device)
    stage = VARStage(recipe).to(device)
    settings = Settings(learning_rate=1e-3, weight_decay=0.05, seed=seed)
    return train(stage, draw, (*tokenise(vqvae, pictures), labels), budget, settings, checkpoint, click.echo)


@torch.no_grad()
def tokenise(vqvae: VQVAE, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, T) of images (B, 3, 64, 64), and the features (T - 1, B, Z) that predict them."""
    with autocast(pictures.device):
        features = vqvae.features(pictures.contiguous(memory_format=torch.channels_last))
    tokens = vqvae.quantize.tokenize(features.float())
    return torch.cat(tokens, 1), teacher_features(vqvae.quantize, tokens)


def load_vqvae(recipe: Recipe, checkpoint: Path) -> VQVAE:
    """Load the averaged VQVAE from a checkpoint of the first stage, rounded to float16 as `pack` stores it."""
    stage = VQVAEStage(recipe)
    _load_average(stage, checkpoint)
    return stage.vqvae.half().float().eval()


def _load_average(stage: Stage, checkpoint: Path) -> None:
    """Load the averaged weights of a checkpoint into `stage`."""
    if not checkpoint.exists():
        raise click.ClickException(f"{checkpoint}: not found; train the {checkpoint.stem} first")
    stage.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])


def pack(model: nn.Module, path: Path) -> None:
    """Write a model under its official tensor names, as float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)


_model_option = click.option(
    "--model", "name", default=RECIPE, show_default=True, help="Recipe to train: its name, or the path of a .toml file."
)
_folder_option = click.option(
    "--folder", type=click.Path(path_type=Path), default=BUILD, show_default=True, help="Folder of checkpoints."
)
_THREADS_HELP = "Number of CPU threads [default: one per core]. Give 1 while other work uses the cores."


def _set_threads(context: click.Context, option: click.Parameter, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _stage_options(command: Callable) -> Callable:
    for option in (
        _model_option,
        click.option("--minutes", type=float, help="Minutes to train; the schedule ends with them."),
        click.option("--steps", type=int, help="Number of steps to train; the schedule ends with them."),
        click.option("--device", default="auto", show_default=True, help="Device to train on: auto, cpu or cuda."),
        click.option("--threads", type=int, callback=_set_threads, expose_value=False, help=_THREADS_HELP),
        click.option("--seed", default=0, show_default=True),
        _folder_option,
    ):
        command = option(command)
    return command


def _budget(steps: int | None, minutes: float | None) -> Budget:
    if (steps is None) == (minutes is None):
        raise click.UsageError("Expected one of '--steps' and '--minutes'.")
    return Budget(steps, minutes)


@click.group()
def main() -> None:
    """Train the demo model: vqvae, var, decoder, then pack."""


@main.command("vqvae")
@_stage_options
def vqvae_command(name: str, steps: int | None, minutes: float | None, device: str, seed: int, folder: Path) -> None:
    """Train the VQVAE. If FOLDER/vqvae.pt exists, the training resumes from it."""
    budget, where = _budget(steps, minutes), pick_device(device)
    train_vqvae(Recipe.load(name), load_emoji(), budget, folder / "vqvae.pt", where, seed=seed)


@main.command("decoder")
@_stage_options
def decoder_command(name: str, steps: int | None, minutes: float | None, device: str, seed: int, folder: Path) -> None:
    """Fine-tune the decoder of FOLDER/vqvae.pt. Its tokens do not change, so `var` may run before, after or beside."""
    budget, where = _budget(steps, minutes), pick_device(device)
    vqvae = load_vqvae(Recipe.load(name), folder / "vqvae.pt")
    train_decoder(vqvae, load_emoji(), budget, folder / "decoder.pt", where, seed=seed)


@main.command("var")
@_stage_options
def var_command(name: str, steps: int | None, minutes: float | None, device: str, seed: int, folder: Path) -> None:
    """Train the transformer of a recipe. If FOLDER/RECIPE.pt exists, the training resumes from it."""
    budget, where = _budget(steps, minutes), pick_device(device)
    recipe = Recipe.load(name)
    vqvae = load_vqvae(recipe, folder / "vqvae.pt")
    train_var(recipe, vqvae, load_emoji(), budget, folder / f"{recipe.name}.pt", where, seed=seed)


@main.command("pack")
@_model_option
@_folder_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True, help="Folder of the weights."
)
def pack_command(name: str, folder: Path, out: Path) -> None:
    """Write the averaged weights of a recipe as float16 safetensors, and the class names."""
    recipe = Recipe.load(name)
    decoder = DecoderStage(load_vqvae(recipe, folder / "vqvae.pt"))
    _load_average(decoder, folder / "decoder.pt")
    pack(decoder.vqvae, out / recipe.vae_checkpoint)
    stage = VARStage(recipe)
    _load_average(stage, folder / f"{recipe.name}.pt")
    pack(stage.var, out / recipe.var_checkpoint)
    CLASS_FILE.write_text("".join(f"{row.names}\n" for row in CLASSES), encoding="utf-8")


if __name__ == "__main__":
    main()
