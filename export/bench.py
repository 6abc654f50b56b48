"""Generation in PyTorch for `runtime.bench --compare pytorch`, with the weights that the bundle was made from."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import numpy as np
import torch

from export.checkpoint.provenance import recipe_of, weights_of
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import empty_models, load_models
from export.model import VAR, VQVAE
from export.model.reference import generate
from runtime.base_pipeline import Maps
from runtime.bench.compare import Draw
from runtime.bench.report import Settings
from runtime.bundle.manifest import Manifest
from runtime.sampling import Sampling
from runtime.uniforms import uniforms

EAGER, COMPILED = "PyTorch eager", "torch.compile"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def pytorch_rivals(
    manifest: Manifest, label: int, settings: Settings, threads: int, checkpoints: tuple[Path | None, Path | None]
) -> tuple[dict[str, Draw], dict[str, str]]:
    """Return eager and compiled PyTorch with this many threads, by name; and by name why one is left out.

    Raises CheckpointError if the bundle's weights cannot be found.
    """
    torch.set_num_threads(threads)
    _keep_freed_memory()
    recipe = recipe_of(manifest)
    var, vqvae = load_models(recipe, weights_of(manifest, *checkpoints))
    draws = {EAGER: _draw(var, vqvae, label, settings)}
    compiled = _draw(*_compiled(recipe, var, vqvae), label, settings)
    try:
        compiled(1)
    except Exception as error:  # no compiler, or it fails: each stage of torch.compile raises its own type
        return draws, {COMPILED: f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.120}"}
    return draws | {COMPILED: compiled}, {}


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the system.

    With two engines in a process, glibc otherwise returns memory in every run, and the next run faults the pages in
    again. That took 18 % of PyTorch's time beside the runtime; PyTorch alone is not affected.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _compiled(recipe: Recipe, var: VAR, vqvae: VQVAE) -> tuple[VAR, VQVAE]:
    """Return copies of the models that share their memory; blocks and decoder are compiled when they first run."""
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
    sampling = Sampling(settings.cfg, settings.top_k, settings.top_p)

    def draw(batch: int) -> Maps:
        seeds = range(settings.seed, settings.seed + batch)
        numbers = [np.stack(maps) for maps in zip(*(uniforms(seed, counts) for seed in seeds), strict=True)]  # (B, p²)
        labels = [label] * batch
        return generate(var, vqvae, labels, numbers, sampling).tokens

    return draw
