"""Check before an export that this machine has the memory and the disk space that it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import empty_models
from runtime.errors import SettingsError
from runtime.memory import MEMINFO, available_memory

MEMORY_OF_TOOLS = 0.5e9  # bytes: PyTorch, the traced graphs
COPIES_OF_A_TENSOR = 4  # the largest tensor as read, checked, transposed, written. Peaks: docs/benchmarks/cpu.md
GRAPHS_SHARE = 0.02  # size of the graphs as a share of the weights' size


def check_room(recipe: Recipe, out: Path, meminfo: Path = MEMINFO) -> None:
    """Raise SettingsError unless memory and disk suffice for the bundle `out`; it says what is needed and available."""
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
    """Return the size in bytes of all weights of VAR and VQVAE in float32."""
    return sum(_tensor_bytes(recipe))


def memory_bytes(recipe: Recipe) -> float:
    """Return the most bytes that an export holds. It reads weights one by one, so the largest counts, not their sum."""
    return MEMORY_OF_TOOLS + COPIES_OF_A_TENSOR * max(_tensor_bytes(recipe))


def _tensor_bytes(recipe: Recipe) -> list[int]:
    return [4 * tensor.numel() for model in empty_models(recipe) for tensor in model.state_dict().values()]
