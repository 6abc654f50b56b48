"""Read settings of a recipe from a checkpoint: from its tensors' names and shapes, and from its trainer's arguments."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from export.checkpoint.pickled import Stored
from export.checkpoint.recipe import Recipe
from runtime.limits import SIZE, TOKENS

BLOCK = re.compile(r"blocks\.(\d{1,6})\.")
SCALES = 64  # the most scales that a manifest may have
SIDES = re.compile(r"\d{1,5}([-_]\d{1,5}){,63}")  # "1_2_3_4"
UNTOLD = {  # settings that no tensor shows -> the names that trainers give them
    "heads": ("num_heads", "heads"),
    "norm_eps": ("norm_eps",),
    "quant_resi": ("quant_resi",),
    "using_znorm": ("using_znorm",),
    "patch_nums": ("patch_nums", "pn"),
}


def settings_of(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Return the settings that the tensors of a VAR or a VQVAE show, by their names in a recipe.

    Damaged checkpoints raise errors of any type.
    """
    told = _of_var(tensors) if "pos_1LC" in tensors else _of_vqvae(tensors)
    return {setting: value for setting, value in told.items() if value is not None}


def told_by_trainer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that only a trainer's arguments show. Values of a wrong type are left out."""
    told = {
        setting: _converted(setting, settings[name])
        for setting, names in UNTOLD.items()
        for name in reversed(names)
        if name in settings
    }
    return {setting: value for setting, value in told.items() if value is not None}


def agree(recipe: Recipe, setting: str, found: Any) -> bool:
    """Return whether the recipe has this value of a setting; two `mlp_ratio` are equal if the MLP is equally wide."""
    if setting == "mlp_ratio":
        result: bool = round(recipe.width * found) == recipe.hidden
        return result
    if isinstance(found, float):
        return math.isclose(getattr(recipe, setting), found, rel_tol=1e-6)
    return bool(getattr(recipe, setting) == found)


def written(value: Any) -> str:
    """Return a setting as TOML."""
    return repr(value) if isinstance(value, float) else json.dumps(list(value) if isinstance(value, tuple) else value)


def _of_var(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    width, hidden = _size(tensors, "pos_1LC", 2), _size(tensors, "blocks.0.ffn.fc1.weight", 0)
    classes = _size(tensors, "class_emb.weight", 0)
    return {
        "depth": 1 + max((int(found[1]) for name in tensors if (found := BLOCK.match(name))), default=-1),
        "width": width,
        "attn_l2_norm": "blocks.0.attn.scale_mul_1H11" in tensors,
        "heads": _size(tensors, "blocks.0.attn.scale_mul_1H11", 1),
        "mlp_ratio": hidden / width if hidden and width else None,
        "shared_aln": "shared_ada_lin.1.weight" in tensors,
        "patch_nums": _patch_nums(tensors),
        "num_classes": classes and classes - 1,
        "vocab_size": _size(tensors, "head.weight", 0),
        "code_size": _size(tensors, "word_embed.weight", 1),
    }


def _of_vqvae(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    ch = _size(tensors, "encoder.conv_in.weight", 0)
    widths: list[int] = []
    while width := _size(tensors, f"encoder.down.{len(widths)}.block.0.conv1.weight", 0):
        widths.append(width)
    blocks = 0
    while f"encoder.down.0.block.{blocks}.conv1.weight" in tensors:
        blocks += 1
    phis = phi_names(tensors)
    shared = None if not phis else 0 if phis[0].count(".") == 3 and phis[0].split(".")[2].isdecimal() else len(phis)
    return {
        "vocab_size": _size(tensors, "quantize.embedding.weight", 0),
        "code_size": _size(tensors, "quantize.embedding.weight", 1),
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths) if ch and widths else None,
        "num_res_blocks": blocks or None,
        "quant_conv_ks": _size(tensors, "quant_conv.weight", 2),
        "quant_resi": None if phis else 0.0,
        "share_quant_resi": shared,
    }


def phi_names(tensors: Mapping[str, Stored]) -> list[str]:
    """Return the names of the phi convolutions' weights."""
    return [name for name in tensors if name.startswith("quantize.quant_resi.") and name.endswith(".weight")]


def _size(tensors: Mapping[str, Stored], name: str, axis: int) -> int | None:
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else None


def _patch_nums(tensors: Mapping[str, Stored]) -> tuple[int, ...] | None:
    """Return the sides of the scales, from `lvl_1L`: the number of the scale that each token belongs to."""
    levels = tensors.get("lvl_1L")
    if levels is None or levels.read is None:
        return None
    if math.prod(levels.shape) > TOKENS:
        raise ValueError(f"lvl_1L has more than {TOKENS} tokens")
    values = levels.read().flatten().tolist()
    if not all(type(level) is int and 0 <= level < SCALES for level in values):
        raise ValueError(f"lvl_1L holds other numbers than those of at most {SCALES} scales")
    counts = [values.count(level) for level in range(max(values, default=0) + 1)]
    sides = tuple(math.isqrt(count) for count in counts)
    expected = [level for level, side in enumerate(sides) for _ in range(side * side)]
    if values != expected:
        raise ValueError("lvl_1L does not number the tokens of growing square scales")
    return sides


def _converted(setting: str, value: Any) -> Any:
    if setting == "patch_nums":
        if isinstance(value, str) and SIDES.fullmatch(value):
            return tuple(map(int, re.split("[-_]", value)))
        is_list = isinstance(value, (list, tuple)) and 0 < len(value) <= SCALES
        return tuple(value) if is_list and all(type(side) is int and side in SIZE for side in value) else None
    if setting == "using_znorm":
        return bool(value) if type(value) in (bool, int) else None
    if setting == "heads":
        return value if type(value) is int and value in SIZE else None
    return abs(float(value)) if type(value) in (int, float) and abs(value) in SIZE else None
