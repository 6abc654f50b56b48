"""The command python -m export: export a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from runtime import limits
from runtime.cli import FILE, Number, batch_sizes, command, reports_errors, warn
from runtime.files.outputs import EXPORTED, check_directory
from runtime.optional import require
from runtime.progress import progress_bar

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # files from which --model reads a recipe


@command()
@click.option(
    "--model", required=True, help="Model to export: the name of a recipe, a recipe file (.toml), or a checkpoint."
)
@click.option("--out", type=FILE, help="Bundle directory to write.")
@click.option("--var-checkpoint", type=FILE, help="File of the transformer weights (.pth, .safetensors).")
@click.option("--vae-checkpoint", type=FILE, help="File of the VQVAE weights (.pth, .safetensors).")
@click.option("--tiny-decoder", type=FILE, help="File of a tiny decoder to add, from examples.tiny_decoder.distill.")
@click.option(
    "--random-weights",
    metavar="SEED",
    type=Number(int, limits.STORED_SEED),
    help="Use random weights of this seed instead of checkpoints.",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", help="Precision of weights and arithmetic."
)
@click.option("--batches", default="1", help="Batch sizes of the static graphs for each scale, such as 1,8.")
@click.option("--smooth", is_flag=True, help="Add the graph that generate --smooth needs.")
@reports_errors
def main(
    model: str,
    out: Path | None,
    var_checkpoint: Path | None,
    vae_checkpoint: Path | None,
    tiny_decoder: Path | None,
    random_weights: int | None,
    precision: str,
    batches: str,
    smooth: bool,
) -> None:
    """Export a VAR checkpoint to a bundle: ONNX graphs, one weight file, manifest.

    Checkpoints that are not given are searched beside the recipe, then in $VAR_CHECKPOINTS, then on the model hub.
    With a checkpoint as --model the recipe is derived from it and printed; with --out it is exported too.
    """
    if random_weights is not None and (var_checkpoint or vae_checkpoint):
        raise click.UsageError("--random-weights takes the place of both checkpoints; give one or the other.")
    read_off = Path(model).suffix.lower() in CHECKPOINTS
    if read_off and (var_checkpoint or random_weights is not None):
        raise click.UsageError("--model: a checkpoint is the transformer's weights already; give no others.")
    if read_off and out is None:
        from export.checkpoint.recipe_text import recipe_text

        click.echo(recipe_text(Path(model), vae_checkpoint), nl=False)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    sizes = sorted(batch_sizes(batches))
    require("export", "torch", "onnx", "onnxscript", "onnx_ir")
    check_directory(out, EXPORTED)  # before a download

    from export.bundle import export_bundle
    from export.checkpoint.recipe import Recipe
    from export.checkpoint.tiny_decoder import shipped, with_tiny_decoder
    from export.checkpoint.weights import checkpoint_weights, formula_weights

    if read_off:
        from export.checkpoint.recipe_text import recipe_of, recipe_text

        var_checkpoint = Path(model)
        recipe = recipe_of(var_checkpoint, vae_checkpoint)
        click.echo(recipe_text(var_checkpoint, vae_checkpoint), nl=False, err=True)
    else:
        recipe = Recipe.load(model)
    if random_weights is None:
        weights = checkpoint_weights(recipe, var_checkpoint, vae_checkpoint)
    else:
        weights = formula_weights(recipe, random_weights)
    if (tiny := tiny_decoder or shipped(recipe, weights)) is not None:
        weights = with_tiny_decoder(weights, recipe, tiny)
    with progress_bar() as progress:
        options = {"precision": precision, "batches": sizes, "smooth": smooth}
        export_bundle(recipe, weights, out, precision, sizes, options, smooth, progress, warn)
    size = sum(file.stat().st_size for file in out.iterdir())
    click.echo(f"{out}: {recipe.name} {precision}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
