"""Where weights come from: published checkpoint files, found or downloaded, or a formula. Read tensor by tensor."""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import nn

from export.model import VAR, VQVAE
from export.recipe import Recipe
from runtime.errors import VarEdgeError
from runtime.files import sha256

HOME = "VAR_CHECKPOINTS"  # environment variable: folder that holds checkpoint files

# Buffers of the published files that follow from the recipe, or that only training uses.
UNUSED_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV")


class CheckpointError(VarEdgeError):
    """A checkpoint is missing, unreadable, or of another model."""


@dataclass(frozen=True)
class Weights:
    """All tensors of a VAR and its VQVAE by their published names, and where they came from."""

    readers: dict[str, Callable[[], np.ndarray]]
    source: dict[str, Any]

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` as float32. Raises CheckpointError if it holds NaN or infinity."""
        tensor = np.ascontiguousarray(self.readers[name](), dtype=np.float32)
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{name}: holds NaN or infinite values; the checkpoint is damaged, download it again")
        return tensor

    def load_into(self, module: nn.Module) -> None:
        """Fills a VAR or VQVAE with its tensors."""
        state = {name: torch.from_numpy(self.read(name)) for name in module.state_dict()}
        module.load_state_dict(state, strict=True, assign=True)


def empty_models(recipe: Recipe) -> tuple[VAR, VQVAE]:
    """VAR and VQVAE on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return VAR(recipe).eval(), VQVAE(recipe).eval()


def load_models(recipe: Recipe, weights: Weights) -> tuple[VAR, VQVAE]:
    """VAR and VQVAE in float32 on the CPU, ready for inference."""
    var, vqvae = empty_models(recipe)
    for module in (var, vqvae):
        weights.load_into(module)
        module.requires_grad_(False)
    return var, vqvae


def checkpoint_weights(recipe: Recipe, var_file: Path | None, vae_file: Path | None) -> Weights:
    """The weights in the two checkpoint files; those not given are looked for (see `find`). Raises CheckpointError."""
    readers: dict[str, Callable[[], np.ndarray]] = {}
    source: dict[str, Any] = {}
    for kind, file, model in zip(("var", "vae"), (var_file, vae_file), empty_models(recipe), strict=True):
        path = find(recipe, kind, file)
        tensors = read_file(path)
        check(path, {name: shape for name, (shape, _) in tensors.items()}, model, recipe)
        readers |= {name: tensors[name][1] for name in model.state_dict()}
        source[f"{kind}_checkpoint"] = {"file": path.name, "sha256": sha256(path)}
    return Weights(readers, source)


def formula_weights(recipe: Recipe, seed: int) -> Weights:
    """Weights by a formula over the tensors' names: any size can be tried without a download.

    Normal noise at the usual scale of such a layer, drawn from Philox(key = crc32(name) + seed · 2³²).
    """

    def reader(name: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        return lambda: _formula(name, shape, seed)

    models = empty_models(recipe)
    shapes = {name: tuple(tensor.shape) for model in models for name, tensor in model.state_dict().items()}
    return Weights({name: reader(name, shape) for name, shape in shapes.items()}, {"random_weights": seed})


def _formula(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if name.endswith("zero_k_bias"):
        return np.zeros(shape, np.float32)
    key = zlib.crc32(name.encode()) + (seed << 32)
    noise = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
    if name.endswith("scale_mul_1H11"):
        return np.float32(np.log(4)) + np.float32(0.1) * noise
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm_out.weight")):
        return 1 + np.float32(0.1) * noise
    if name.endswith("bias") or len(shape) == 1:
        return np.float32(0.1) * noise
    embeddings = ("class_emb.weight", "lvl_embed.weight", "pos_start", "pos_1LC", "quantize.embedding.weight")
    if name in embeddings or name.endswith("ada_gss"):
        return np.float32(0.5) * noise
    return noise / np.float32(np.sqrt(np.prod(shape[1:])))


def find(recipe: Recipe, kind: str, given: Path | None) -> Path:
    """The checkpoint file of `kind` (var or vae): given, shipped with the recipe, in $VAR_CHECKPOINTS, or from the hub.

    Raises CheckpointError, saying where the file was looked for.
    """
    if given is not None:
        if not given.is_file():
            raise CheckpointError(f"--{kind}-checkpoint: no file {given}")
        return given
    name = getattr(recipe, f"{kind}_checkpoint")
    folders = [recipe.folder / recipe.checkpoints] if recipe.checkpoints else []
    folders += [Path(os.environ[HOME])] if os.environ.get(HOME) else []
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = ", ".join([*map(str, folders), *([] if os.environ.get(HOME) else [f"${HOME} (not set)"])])
    help_text = (
        f"put {name} into a folder and set {HOME} to it, give --{kind}-checkpoint FILE, or try --random-weights 0"
    )
    if recipe.hub is None:
        raise CheckpointError(f"{recipe.name}: found no {name} in {looked}; {help_text}")
    return _download(recipe.hub, name, f"not in {looked}", help_text)


def _download(hub: str, name: str, looked: str, help_text: str) -> Path:
    """From the model hub, with progress, resuming what an earlier try began."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when it is imported

    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub, name))
    except Exception as error:  # the hub client passes on whatever its transport raises
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.120}"
    raise CheckpointError(f"{name}: {looked}, and the model hub {hub} does not give it ({reason}); {help_text}")


Tensors = dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]


def read_file(path: Path) -> Tensors:
    """Name -> shape and reader of every tensor in a .safetensors or PyTorch file. Raises CheckpointError."""
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: no readable checkpoint, truncated or of another kind ({first_line:.120}); download it again"
        ) from None


def _read_safetensors(path: Path) -> Tensors:
    file = safetensors.safe_open(path, framework="pt")

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: file.get_tensor(name).float().numpy()

    return {name: (tuple(file.get_slice(name).get_shape()), reader(name)) for name in file.keys()}  # noqa: SIM118


def _read_pickle(path: Path) -> Tensors:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        state = torch.load(path, map_location="cpu", weights_only=True)  # files older than torch 1.6 cannot be mapped
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("expected a plain state_dict of tensors")

    def reader(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        return lambda: tensor.float().numpy()

    return {name: (tuple(tensor.shape), reader(tensor)) for name, tensor in state.items()}


def check(path: Path, found: dict[str, tuple[int, ...]], model: nn.Module, recipe: Recipe) -> None:
    """Raises CheckpointError unless every tensor of the file is used, and none is missing or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    where = f"{path}: not a checkpoint of {type(model).__name__} for recipe {recipe.name}"
    depth = 1 + max((int(name.split(".")[1]) for name in found if name.startswith("blocks.")), default=-1)
    if isinstance(model, VAR) and depth != recipe.depth:
        raise CheckpointError(f"{where}: expected depth {recipe.depth}, found {depth} blocks; choose another --model")
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"{where}: {len(missing)} tensors are missing, first {missing[0]}")
    if unknown := [name for name in found if name not in expected and name not in UNUSED_BUFFERS]:
        raise CheckpointError(f"{where}: {len(unknown)} tensors have no place in the model, first {unknown[0]}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{where}: {name}: expected shape {shape}, found {found[name]}")
