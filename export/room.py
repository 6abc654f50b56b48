"""Check before an export that this machine has the memory and the disk space that it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from export import sizes
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import empty_models
from runtime.errors import SettingsError
from runtime.memory import MEMINFO, available_memory

MEMORY_OF_TOOLS = 0.5e9  # bytes: PyTorch, the traced graphs
COPIES_OF_A_TENSOR = 4  # the largest tensor as read, checked, transposed, written. Peaks: docs/benchmarks/cpu.md


def check_room(recipe: Recipe, out: Path, meminfo: Path = MEMINFO) -> None:
    """Raise SettingsError unless memory and disk suffice for the bundle `out`; it says what is needed and available."""
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    needed: float = sizes.bundle(recipe.model, sizes.FP32)
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


def memory_bytes(recipe: Recipe) -> float:
    """Return the most bytes that an export holds. It reads weights one by one, so the largest counts, not their sum."""
    tensors = (tensor for model in empty_models(recipe) for tensor in model.state_dict().values())
    largest: int = max(4 * tensor.numel() for tensor in tensors)
    return MEMORY_OF_TOOLS + COPIES_OF_A_TENSOR * largest
