"""Where training runs, and in which precision."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def autocast(device: torch.device, enabled: bool | None = None) -> torch.autocast:
    """bfloat16 autocast, by default wherever the hardware multiplies bfloat16 faster than float32."""
    if enabled is None:
        enabled = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
