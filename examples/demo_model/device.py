"""Choose the device and the precision of the training."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the GPU if there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def autocast(device: torch.device, enabled: bool | None = None) -> torch.autocast:
    """Return bfloat16 autocast, by default enabled if the hardware multiplies bfloat16 faster than float32."""
    if enabled is None:
        enabled = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
