"""Weights, read tensor by tensor: from published checkpoint files (local or downloaded), or from a formula."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.checkpoint.download import download
from export.checkpoint.file import FLOATS, MARKS, NAMES, CheckpointError, CheckpointFile, Part, read_checkpoint
from export.checkpoint.pickled import Stored
from export.checkpoint.recipe import Recipe
from export.checkpoint.settings import agree, phi_names, settings_of, told_by_trainer, written
from export.model import VAR, VQVAE
from runtime.files.atomic import sha256

HOME = "VAR_CHECKPOINTS"  # environment variable: the folder with checkpoint files

# Buffers in the published files that are computed from the recipe, or that only training uses.
UNUSED_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV")


@dataclass(frozen=True)
class Weights:
    """All tensors of a VAR and its VQVAE by their published names, and where they come from."""

    readers: dict[str, Callable[[], np.ndarray]]
    source: dict[str, Any]

    def read(self, name: str) -> np.ndarray:
        """Read the tensor `name` as float32. Raises CheckpointError if it holds NaN or infinity."""
        tensor = np.ascontiguousarray(self.readers[name](), dtype=np.float32)
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{name}: holds NaN or infinite values; the checkpoint is damaged, download it again")
        return tensor

    def sha256_of(self, module: nn.Module) -> str:
        """Return the SHA-256 of a module's tensors: name, shape and float32 values of each, in the order of names.

        So it depends neither on the kind of the checkpoint file nor on the precision of a bundle made from it.
        """
        digest = hashlib.sha256()
        for name in sorted(module.state_dict()):
            tensor = self.read(name)
            digest.update(f"{name} {tensor.shape}\n".encode())
            digest.update(tensor.astype("<f4", copy=False).data)
        return digest.hexdigest()

    def load_into(self, module: nn.Module) -> None:
        """Load the tensors of a VAR or VQVAE into `module`."""
        state = {name: torch.from_numpy(self.read(name)) for name in module.state_dict()}
        module.load_state_dict(state, strict=True, assign=True)


def empty_models(recipe: Recipe) -> tuple[VAR, VQVAE]:
    """Return VAR and VQVAE on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return VAR(recipe).eval(), VQVAE(recipe).eval()


def load_models(recipe: Recipe, weights: Weights) -> tuple[VAR, VQVAE]:
    """Return VAR and VQVAE in float32 on the CPU, ready for inference."""
    var, vqvae = empty_models(recipe)
    for module in (var, vqvae):
        weights.load_into(module)
        module.requires_grad_(False)
    return var, vqvae


def checkpoint_weights(recipe: Recipe, var_file: Path | None, vae_file: Path | None) -> Weights:
    """Return the weights in the two checkpoint files. A file that is not given is searched (see `find`).

    If only one file is given and it holds both models, it serves for both. Raises CheckpointError.
    """
    given = {"var": var_file, "vae": vae_file}
    opened: dict[Path, CheckpointFile] = {}

    def opened_file(path: Path) -> CheckpointFile:
        if path not in opened:
            opened[path] = read_checkpoint(path)
        return opened[path]

    readers: dict[str, Callable[[], np.ndarray]] = {}
    source: dict[str, Any] = {}
    for (kind, other), model in zip((("var", "vae"), ("vae", "var")), empty_models(recipe), strict=True):
        both = given[kind] is None and (beside := given[other]) is not None and opened_file(beside).part(kind)
        path = find(recipe, kind, given[other] if both else given[kind])
        part = opened_file(path).part(kind)
        if part is None:
            raise CheckpointError(_without(opened_file(path), kind, other))
        check(path, part, opened_file(path).settings, model, recipe)
        for name in model.state_dict():
            readers[name] = _reader(path, name, part.tensors[name])
        within = {"within": part.where} if part.where else {}
        source[f"{kind}_checkpoint"] = {"file": path.name, "sha256": sha256(path), **within}
    return Weights(readers, source)


def _without(file: CheckpointFile, kind: str, other: str) -> str:
    """Return the error text for a file without a VAR or a VQVAE."""
    if file.part(other):
        return (
            f"{file.path}: expected a {NAMES[kind]}, found a {NAMES[other]};"
            f" give it as --{other}-checkpoint, and the other file as --{kind}-checkpoint"
        )
    return f"{file.path}: holds no {NAMES[kind]}: no tensor's name ends in {MARKS[kind]}; give another file"


def _reader(path: Path, name: str, tensor: Stored) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        assert tensor.read is not None
        try:
            return tensor.read().float().numpy()
        except Exception as error:
            raise CheckpointError(f"{path}: {name}: damaged: {error!s:.100}; download it again") from None

    return read


def formula_weights(recipe: Recipe, seed: int) -> Weights:
    """Return weights computed from the tensors' names, so that any size can be tried without a download.

    They are normal noise at the usual scale of each layer, drawn from Philox(key = crc32(name) + seed · 2³²).
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
    embeddings = ("class_emb.weight", "lvl_embed.weight", "pos_start", "pos_1LC", "quantize.embedding.weight")
    values: np.ndarray
    if name.endswith("scale_mul_1H11"):
        values = np.float32(np.log(4)) + np.float32(0.1) * noise
    elif name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm_out.weight")):
        values = 1 + np.float32(0.1) * noise
    elif name.endswith("bias") or len(shape) == 1:
        values = np.float32(0.1) * noise
    elif name in embeddings or name.endswith("ada_gss"):
        values = np.float32(0.5) * noise
    else:
        values = noise / np.float32(np.sqrt(np.prod(shape[1:])))
    return values


def find(recipe: Recipe, kind: str, given: Path | None) -> Path:
    """Return the checkpoint file of `kind` (var or vae).

    It is the one `given`, else the first of: shipped with the recipe, in $VAR_CHECKPOINTS, on the hub. Raises
    CheckpointError, which says where the file was looked for.
    """
    if given is not None:
        if not os.path.exists(given):
            raise CheckpointError(f"--{kind}-checkpoint: no file {given}")
        return given
    name = getattr(recipe, f"{kind}_checkpoint")
    folders = [recipe.folder / recipe.checkpoints] if recipe.checkpoints else []
    folders += [Path(os.environ[HOME])] if os.environ.get(HOME) else []
    for folder in folders:
        if os.path.isfile(folder / name):
            result: Path = folder / name
            return result
    looked = ", ".join([*map(str, folders), *([] if os.environ.get(HOME) else [f"${HOME} (not set)"])])
    help_text = (
        f"put {name} into a folder and set {HOME} to it, give --{kind}-checkpoint FILE, or try --random-weights 0"
    )
    if recipe.hub is None:
        raise CheckpointError(f"{recipe.name}: found no {name} in {looked}; {help_text}")
    return download(recipe.hub, name, f"not in {looked}", help_text)


def check(path: Path, part: Part, settings: Mapping[str, Any], model: nn.Module, recipe: Recipe) -> None:
    """Raise CheckpointError unless the settings in the file equal the recipe's, and its tensors are the model's.

    `settings` are the trainer's arguments in the file.
    """
    where = f"{path}: not a checkpoint of {type(model).__name__} for recipe {recipe.name}"
    _check_settings(where, part, settings, recipe)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := [name for name in shapes if name not in part.tensors]:
        raise CheckpointError(f"{where}: {len(missing)} tensors are missing, first {missing[0]}")
    if unknown := [name for name in part.tensors if name not in (*shapes, *UNUSED_BUFFERS)]:
        raise CheckpointError(f"{where}: {len(unknown)} tensors are not in the model, first {unknown[0]:.100}")
    for name, shape in shapes.items():
        tensor = part.tensors[name]
        if tensor.read is None or tensor.dtype not in FLOATS:
            kind = tensor.odd or f"of type {str(tensor.dtype).removeprefix('torch.')}"
            raise CheckpointError(f"{path}: {name}: expected a dense floating-point tensor, found one {kind}")
        if tensor.shape != shape:
            raise CheckpointError(f"{where}: {name}: expected shape {shape}, found {tensor.shape}")


def _check_settings(where: str, part: Part, settings: Mapping[str, Any], recipe: Recipe) -> None:
    try:
        told = {**told_by_trainer(settings), **settings_of(part.tensors)}
    except Exception as error:
        raise CheckpointError(f"{where}: damaged: {error!s:.100}; download it again") from None
    for setting, found in told.items():
        if not agree(recipe, setting, found):
            values = f"{setting} = {written(getattr(recipe, setting))}, found {written(found)}"
            raise CheckpointError(f"{where}: expected {values}; change the recipe or choose another --model")
    phis, scales = len(phi_names(part.tensors)), len(recipe.patch_nums)
    if told.get("share_quant_resi") == 0 and phis != scales:
        raise CheckpointError(
            f"{where}: share_quant_resi = 0: expected a phi convolution for each of {scales} scales, found {phis};"
            " training with other v_patch_nums or with default_qresi_counts is not supported"
        )
    if phis and not recipe.phi_count:
        raise CheckpointError(f"{where}: quant_resi = 0 means no phi convolutions, found {phis}; change the recipe")
