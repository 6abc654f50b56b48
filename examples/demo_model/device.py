"""Choose the device and the precision of the training."""

from __future__ import annotations

import torch

from runtime.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """Return the device called `name`, one of DEVICES. "auto" is the GPU if there is one, else the CPU.

    Raises SettingsError if PyTorch sees no GPU for "cuda".
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def autocast(device: torch.device, enabled: bool | None = None) -> torch.autocast:
    """Return bfloat16 autocast, by default enabled if the hardware multiplies bfloat16 faster than float32."""
    if enabled is None:
        fast = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every version of torch.cpu
        enabled = device.type == "cuda" or any(getattr(torch.cpu, name, bool)() for name in fast)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
