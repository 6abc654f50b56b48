"""The generation in PyTorch, with the weights the bundle was made of. Of all the runtime only this needs `export`."""

from __future__ import annotations

import ctypes
import dataclasses
import platform
from pathlib import Path

import numpy as np
import torch

from export.checkpoint import CheckpointError, Weights, checkpoint_weights, empty_models, formula_weights, load_models
from export.model import VAR, VQVAE
from export.recipe import RECIPES, Recipe
from export.reference import generate

from ..manifest import Manifest
from ..pipeline import Maps
from ..uniforms import uniforms
from .compare import Draw
from .report import Settings

EAGER, COMPILED = "PyTorch eager", "torch.compile"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def pytorch_rivals(
    manifest: Manifest, label: int, settings: Settings, threads: int, checkpoints: tuple[Path | None, Path | None]
) -> tuple[dict[str, Draw], dict[str, str]]:
    """Eager and compiled PyTorch with this many threads, by name; and the reason for one that is left out.

    Raises CheckpointError if the bundle's weights are not to be had.
    """
    torch.set_num_threads(threads)
    _keep_freed_memory()
    recipe = recipe_of(manifest)
    var, vqvae = load_models(recipe, _weights(recipe, manifest, *checkpoints))
    draws = {EAGER: _draw(var, vqvae, label, settings)}
    compiled = _draw(*_compiled(recipe, var, vqvae), label, settings)
    try:
        compiled(1)
    except Exception as error:  # a compiler that is missing or fails: each stage of torch.compile raises its own
        return draws, {COMPILED: f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.120}"}
    return draws | {COMPILED: compiled}, {}


def _keep_freed_memory() -> None:
    """Tells glibc not to return what is freed to the system.

    With two engines in a process it otherwise does so in every run and faults the pages in again: PyTorch alone does
    not suffer it, beside the runtime it took 18 % of its time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe the bundle was made with. One that is not shipped has no place of its own to look for checkpoints."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    sizes = {name: value for name, value in dataclasses.asdict(manifest.model).items() if name in fields}
    if (RECIPES / f"{manifest.model.name}.toml").is_file():
        return dataclasses.replace(Recipe.load(manifest.model.name), **sizes)
    source = manifest.provenance.source
    files = {kind: source.get(kind, {}).get("file", f"{kind}.pth") for kind in ("var_checkpoint", "vae_checkpoint")}
    return Recipe(**sizes, **files)


def _weights(recipe: Recipe, manifest: Manifest, var_file: Path | None, vae_file: Path | None) -> Weights:
    """The weights that the provenance names. Raises CheckpointError if those found are others."""
    source = manifest.provenance.source
    if "random_weights" in source:
        return formula_weights(recipe, source["random_weights"])
    if "var_checkpoint" not in source:
        raise CheckpointError("--compare pytorch: the manifest's provenance does not say what the weights were made of")
    weights = checkpoint_weights(recipe, var_file, vae_file)
    for kind, found in weights.source.items():
        expected = source.get(kind, {}).get("sha256", "nothing")
        if found["sha256"] != expected:
            raise CheckpointError(
                f"{found['file']}: not what the bundle was made of: expected SHA-256 {expected:.12}…,"
                f" found {found['sha256']:.12}…; give --{kind.replace('_', '-')} FILE"
            )
    return weights


def _compiled(recipe: Recipe, var: VAR, vqvae: VQVAE) -> tuple[VAR, VQVAE]:
    """The same models on the same memory, with blocks and decoder compiled when they first run."""
    twins = empty_models(recipe)
    for twin, model in zip(twins, (var, vqvae), strict=True):
        twin.load_state_dict(model.state_dict(), assign=True)
        twin.requires_grad_(False)
    for block in twins[0].blocks:
        block.compile(dynamic=True)  # one compilation serves all blocks and scales
    twins[1].decoder.compile()
    return twins


def _draw(var: VAR, vqvae: VQVAE, label: int, settings: Settings) -> Draw:
    counts = [scale.tokens for scale in var.recipe.scales]

    def draw(batch: int) -> Maps:
        seeds = range(settings.seed, settings.seed + batch)
        numbers = [np.stack(maps) for maps in zip(*(uniforms(seed, counts) for seed in seeds), strict=True)]  # (B, p²)
        labels = [label] * batch
        return generate(var, vqvae, labels, numbers, settings.cfg, settings.top_k, settings.top_p).tokens

    return draw
