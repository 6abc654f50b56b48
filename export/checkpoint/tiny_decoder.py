"""Read the file of a tiny decoder, which `examples.tiny_decoder.distill` writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from export.checkpoint.file import CheckpointError
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import Weights, empty_models
from export.model.tiny_decoder import TinyDecoder
from runtime.bundle.manifest import TINY_SOURCE, VQVAE_SHA256, Manifest
from runtime.bundle.weight_file import read_header
from runtime.files.atomic import sha256

PREFIX = "tiny_decoder."  # of its tensors in a bundle's weight file


def empty_tiny_decoder(recipe: Recipe) -> TinyDecoder:
    """Return a tiny decoder on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return TinyDecoder(recipe.model).eval()


def shipped(recipe: Recipe, weights: Weights) -> Path | None:
    """Return the file of the tiny decoder that is shipped with the recipe; None if it is not of these weights."""
    if recipe.tiny_decoder is None or recipe.checkpoints is None:
        return None
    path = recipe.folder / recipe.checkpoints / recipe.tiny_decoder
    return path if _imitated(path) == weights.sha256_of(empty_models(recipe)[1]) else None


def tiny_decoder_of(manifest: Manifest | None, recipe: Recipe, weights: Weights, file: Path | None) -> Path | None:
    """Return the file that a bundle's tiny decoder was made of: `file`, or the shipped one, or None if it is neither.

    None too without a bundle that has one. Raises CheckpointError for a `file` that it was not made of.
    """
    if manifest is None:
        return None
    expected = manifest.provenance.tiny_decoder_sha256
    if file is None:
        found = shipped(recipe, weights)
        return found if found is not None and sha256(found) == expected else None
    if os.path.isfile(file) and sha256(file) != expected:
        raise CheckpointError(
            f"{file}: not what the bundle's tiny decoder was made of: expected SHA-256 {expected or 'none':.12}…,"
            f" found {sha256(file):.12}…"
        )
    return file


def load_tiny_decoder(weights: Weights, recipe: Recipe, path: Path) -> TinyDecoder:
    """Return the tiny decoder in the file `path` in float32, ready for inference. Raises CheckpointError."""
    read, tiny = with_tiny_decoder(weights, recipe, path).read, empty_tiny_decoder(recipe)
    tiny.load_state_dict(
        {name: torch.from_numpy(read(PREFIX + name)) for name in tiny.state_dict()}, strict=True, assign=True
    )
    return tiny.requires_grad_(False)


def with_tiny_decoder(weights: Weights, recipe: Recipe, path: Path) -> Weights:
    """Return `weights` and those of the tiny decoder in the file `path`. Raises CheckpointError."""
    if not os.path.isfile(path):
        raise CheckpointError(f"--tiny-decoder: no file {path}")
    found = read_header(path, CheckpointError)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_tiny_decoder(recipe).state_dict().items()}
    floats = all(tensor.dtype in ("F16", "F32") for tensor in found.values())
    if not floats or {name: tensor.shape for name, tensor in found.items()} != shapes:
        advice = "python -m examples.tiny_decoder.distill makes one"
        raise CheckpointError(f"{path}: not a tiny decoder for the sizes of {recipe.name}; {advice}")
    if _imitated(path) != weights.sha256_of(empty_models(recipe)[1]):
        raise CheckpointError(f"{path}: imitates the decoder of another VQVAE; distil one from a bundle of this model")

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with safe_open(path, framework="numpy") as file:
                tensor: np.ndarray = file.get_tensor(name)
            return tensor

        return read

    source = {TINY_SOURCE: {"file": path.name, "sha256": sha256(path)}}
    return Weights(
        weights.readers | {PREFIX + name: reader(name) for name in shapes},
        weights.source | source,
    )


def _imitated(path: Path) -> str | None:
    """Return the hash of the VQVAE whose decoder a file imitates, or None if it does not say."""
    try:
        with safe_open(path, framework="numpy") as file:
            found: str | None = (file.metadata() or {}).get(VQVAE_SHA256)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    return found
