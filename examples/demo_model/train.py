"""Train the demo models stage by stage. A training that was interrupted resumes when its command is run again.

python -m examples.demo_model.train vqvae --minutes 42
python -m examples.demo_model.train decoder --minutes 10
python -m examples.demo_model.train tokens
python -m examples.demo_model.train var --steps 5000
python -m examples.demo_model.train var --steps 4000 --model small.toml
python -m examples.demo_model.train pack
"""

from __future__ import annotations

import copy
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
from examples.demo_model.device import DEVICES, pick_device
from examples.demo_model.group_norm import use_fast_group_norm
from examples.demo_model.loop import Batch, Budget, Settings, Stage, begin, load_average, train
from examples.demo_model.sampling import Sampler
from examples.demo_model.tokens import TokenSet, encode_augmented, encode_plain
from examples.demo_model.var_stage import VARStage, teacher_features
from examples.demo_model.vqvae_stage import VQVAEStage
from export.checkpoint.recipe import RECIPES, Recipe
from export.checkpoint.weights import checkpoint_weights, load_models
from export.model.vqvae import VQVAE
from runtime.bundle.classes import CLASS_LISTS
from runtime.cli import reports_errors
from runtime.errors import SettingsError
from runtime.files.atomic import sha256

RECIPE = "var_demo"
TOKENS = "tokens.safetensors"
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
    images: TokenSet,
    held_out: TokenSet,
    budget: Budget,
    checkpoint: Path,
    device: torch.device,
    batch: int = 32,
    seed: int = 0,
    origin: str = "",
) -> VARStage:
    """Train the transformer on tokens of the VQVAE, whose checkpoint has the hash `origin`."""
    torch.manual_seed(seed)
    quantizer, images, held_out = vqvae.quantize.to(device), images.to(device), held_out.to(device)

    def example(drawn: TokenSet) -> Batch:
        scales = drawn.tokens.split([scale.tokens for scale in recipe.scales], 1)
        return drawn.tokens, teacher_features(quantizer, scales), drawn.labels

    def draw(generator: torch.Generator) -> Batch:
        return example(images.draw(batch, generator))

    settings = Settings(learning_rate=1e-3, weight_decay=0.05, seed=seed)
    stage = VARStage(recipe).to(device)
    return train(stage, draw, example(held_out), budget, settings, checkpoint, click.echo, origin)


def load_vqvae(recipe: Recipe, checkpoint: Path) -> VQVAE:
    """Load the averaged VQVAE from a checkpoint of the first stage, rounded to float16 as `pack` stores it."""
    stage = VQVAEStage(recipe)
    _load_average(stage, checkpoint, "vqvae")
    return stage.vqvae.half().float().eval()


def _load_average(stage: Stage, checkpoint: Path, command: str, origin: str = "") -> None:
    """Load the averaged weights of a checkpoint, which `command` writes, into `stage`. Raises SettingsError."""
    if not checkpoint.exists():
        raise SettingsError(f"{checkpoint}: not found; run `python -m examples.demo_model.train {command}` first")
    load_average(stage, checkpoint, origin)


def _load_decoder(vqvae: VQVAE, checkpoint: Path) -> DecoderStage:
    """Return the stage in `checkpoint`. Raises SettingsError if it was trained with another VQVAE than `vqvae`."""
    stage = DecoderStage(copy.deepcopy(vqvae))
    _load_average(stage, checkpoint, "decoder")
    if not _make_equal_tokens(stage.vqvae, vqvae):
        raise SettingsError(f"{checkpoint}: of another VQVAE than vqvae.pt; remove it and train the decoder again")
    return stage


def _make_equal_tokens(vqvae: VQVAE, other: VQVAE) -> bool:
    """Return whether two VQVAEs differ in their decoders only."""
    expected = other.state_dict()
    return all(
        torch.equal(tensor, expected[name])
        for name, tensor in vqvae.state_dict().items()
        if name.split(".")[0] not in ("decoder", "post_quant_conv")
    )


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


def _set_threads(context: click.Context, option: click.Parameter, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


_device_option = click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Device to train on."
)
_threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    callback=_set_threads,
    expose_value=False,
    help="Number of CPU threads [default: one per core]. Give 1 while other work uses the cores.",
)


def _stage_options(command: Callable) -> Callable:
    for option in (
        _model_option,
        click.option(
            "--minutes",
            type=click.FloatRange(min=0, min_open=True),
            help="Minutes to train; the schedule ends with them.",
        ),
        click.option(
            "--steps", type=click.IntRange(min=1), help="Number of steps to train; the schedule ends with them."
        ),
        _device_option,
        _threads_option,
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
    """Train the demo models: vqvae, decoder, tokens, var, then pack."""


@main.command("vqvae")
@_stage_options
@reports_errors
def vqvae_command(name: str, steps: int | None, minutes: float | None, device: str, seed: int, folder: Path) -> None:
    """Train the VQVAE. If FOLDER/vqvae.pt exists, the training resumes from it."""
    budget, where = _budget(steps, minutes), pick_device(device)
    train_vqvae(Recipe.load(name), load_emoji(), budget, folder / "vqvae.pt", where, seed=seed)


@main.command("decoder")
@_stage_options
@reports_errors
def decoder_command(name: str, steps: int | None, minutes: float | None, device: str, seed: int, folder: Path) -> None:
    """Fine-tune the decoder of FOLDER/vqvae.pt. Its tokens do not change, so `var` may run before, after or beside."""
    budget, where = _budget(steps, minutes), pick_device(device)
    vqvae = load_vqvae(Recipe.load(name), folder / "vqvae.pt")
    if (folder / "decoder.pt").exists():
        _load_decoder(vqvae, folder / "decoder.pt")
    train_decoder(vqvae, load_emoji(), budget, folder / "decoder.pt", where, seed=seed)


@main.command("tokens")
@_model_option
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=40_000,
    show_default=True,
    help="Number of augmented emoji to encode.",
)
@_device_option
@_threads_option
@click.option("--seed", default=0, show_default=True)
@_folder_option
@reports_errors
def tokens_command(name: str, images: int, device: str, seed: int, folder: Path) -> None:
    """Encode augmented emoji with FOLDER/vqvae.pt, for every `var` that is trained on it."""
    where = pick_device(device)
    vqvae = _on(load_vqvae(Recipe.load(name), folder / "vqvae.pt"), where)
    digest = sha256(folder / "vqvae.pt")  # before the images are encoded: it may be trained further meanwhile
    trained, _ = split(load_emoji())
    encode_augmented(vqvae, trained.labelled, images, where, seed, click.echo).save(folder / TOKENS, digest)


@main.command("var")
@_stage_options
@reports_errors
def var_command(name: str, steps: int | None, minutes: float | None, device: str, seed: int, folder: Path) -> None:
    """Train the transformer of a recipe. If FOLDER/RECIPE.pt exists, the training resumes from it."""
    budget, where = _budget(steps, minutes), pick_device(device)
    recipe = Recipe.load(name)
    vqvae = _on(load_vqvae(recipe, folder / "vqvae.pt"), where)
    origin = sha256(folder / "vqvae.pt")
    images = TokenSet.load(folder / TOKENS, origin, recipe.tokens)
    _, held_out = split(load_emoji())
    encoded = encode_plain(vqvae, *pictures_and_labels(held_out.labelled, where))
    checkpoint = folder / f"{recipe.name}.pt"
    train_var(recipe, vqvae, images, encoded, budget, checkpoint, where, seed=seed, origin=origin)


def _on(vqvae: VQVAE, device: torch.device) -> VQVAE:
    return vqvae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


@main.command("pack")
@_model_option
@_folder_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True, help="Folder of the weights."
)
@reports_errors
def pack_command(name: str, folder: Path, out: Path) -> None:
    """Write the averaged weights of a recipe as float16 safetensors, and the class names."""
    recipe = Recipe.load(name)
    decoder = _load_decoder(load_vqvae(recipe, folder / "vqvae.pt"), folder / "decoder.pt")
    stage = VARStage(recipe)
    _load_average(stage, folder / f"{recipe.name}.pt", f"var --model {name}", sha256(folder / "vqvae.pt"))
    pack(decoder.vqvae, out / recipe.vae_checkpoint)
    pack(stage.var, out / recipe.var_checkpoint)
    CLASS_FILE.write_text("".join(f"{row.names}\n" for row in CLASSES), encoding="utf-8")


@main.command("unpack")
@_model_option
@_folder_option
@reports_errors
def unpack_command(name: str, folder: Path) -> None:
    """Write checkpoints from the shipped weights of a recipe, to train them further. None that exists is replaced."""
    recipe = Recipe.load(name)
    var, vqvae = load_models(recipe, checkpoint_weights(recipe, None, None))
    checkpoint = folder / "vqvae.pt"
    if checkpoint.exists() and not _make_equal_tokens(load_vqvae(recipe, checkpoint), vqvae):
        raise SettingsError(f"{checkpoint}: another VQVAE than the shipped one; give another --folder")
    trained_vqvae, trained_var = VQVAEStage(recipe), VARStage(recipe)
    trained_vqvae.vqvae.load_state_dict(vqvae.state_dict())
    trained_vqvae.usage.fill_(1.0)  # no code is dead
    trained_var.var.load_state_dict(var.state_dict())
    for stage, file in ((trained_vqvae, "vqvae"), (DecoderStage(vqvae), "decoder"), (trained_var, recipe.name)):
        path = folder / f"{file}.pt"
        if path.exists():
            click.echo(f"{path}: exists, kept")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            begin(stage, path, sha256(checkpoint) if stage is trained_var else "")


if __name__ == "__main__":
    main()
