"""Whether an export fits here, in memory and on disk: asked before the work, not found out in its course."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import empty_models
from runtime.errors import SettingsError
from runtime.memory import MEMINFO, available_memory

MEMORY_OF_TOOLS = 0.5e9  # bytes: PyTorch, the traced graphs
COPIES_OF_A_TENSOR = 4  # of the largest: as read, checked, transposed, written. Peaks: docs/benchmarks/cpu.md
GRAPHS_SHARE = 0.02  # of the weights' bytes


def check_room(recipe: Recipe, out: Path, meminfo: Path = MEMINFO) -> None:
    """Raises SettingsError, with what is needed and what is there, unless the bundle `out` can be made."""
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    needed = weight_bytes(recipe) * (1 + GRAPHS_SHARE)
    if (free := shutil.disk_usage(parent).free) < needed:
        raise SettingsError(
            f"--out {out}: the bundle needs {needed / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB; free some space"
        )
    needed = memory_bytes(recipe)
    available = available_memory(meminfo)
    if available is not None and available < needed:
        raise SettingsError(
            f"{recipe.name}: the export needs {needed / 1e9:.2f} GB of memory, {available / 1e9:.2f} GB are available;"
            " close other programs"
        )


def weight_bytes(recipe: Recipe) -> int:
    """Bytes of all weights of VAR and VQVAE in float32."""
    return sum(_tensor_bytes(recipe))


def memory_bytes(recipe: Recipe) -> float:
    """Bytes an export holds at most: weights pass through one by one, so the largest counts and not their sum."""
    return MEMORY_OF_TOOLS + COPIES_OF_A_TENSOR * max(_tensor_bytes(recipe))


def _tensor_bytes(recipe: Recipe) -> list[int]:
    return [4 * tensor.numel() for model in empty_models(recipe) for tensor in model.state_dict().values()]
