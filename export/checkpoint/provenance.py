"""Find the recipe and the weights that a bundle was made from, by its manifest."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from export.checkpoint.file import CheckpointError
from export.checkpoint.recipe import RECIPES, Recipe
from export.checkpoint.weights import Weights, checkpoint_weights, formula_weights
from runtime.bundle.manifest import Manifest


def recipe_of(manifest: Manifest) -> Recipe:
    """Return the recipe of the bundle. If it is not a shipped recipe, it names no folder or hub for checkpoints."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    sizes = {name: value for name, value in dataclasses.asdict(manifest.model).items() if name in fields}
    if os.path.isfile(RECIPES / f"{manifest.model.name}.toml"):
        return dataclasses.replace(Recipe.load(manifest.model.name), **sizes)
    source = manifest.provenance.source
    files = {kind: source.get(kind, {}).get("file", f"{kind}.pth") for kind in ("var_checkpoint", "vae_checkpoint")}
    return Recipe(**sizes, **files)


def weights_of(manifest: Manifest, var_file: Path | None = None, vae_file: Path | None = None) -> Weights:
    """Return the weights that the provenance names; files that are not given are searched. Raises CheckpointError."""
    recipe, source = recipe_of(manifest), manifest.provenance.source
    if "random_weights" in source:
        return formula_weights(recipe, source["random_weights"])
    if "var_checkpoint" not in source:
        raise CheckpointError("the manifest's provenance does not say what the weights were made of")
    weights = checkpoint_weights(recipe, var_file, vae_file)
    for kind, found in weights.source.items():
        expected = source.get(kind, {}).get("sha256", "nothing")
        if found["sha256"] != expected:
            raise CheckpointError(
                f"{found['file']}: not what the bundle was made of: expected SHA-256 {expected:.12}…,"
                f" found {found['sha256']:.12}…; give --{kind.replace('_', '-')} FILE"
            )
    return weights
