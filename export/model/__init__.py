"""The model in PyTorch: VAR transformer, multi-scale quantizer, VQVAE."""

from export.model.transformer import VAR
from export.model.vqvae import VQVAE

__all__ = ["VAR", "VQVAE"]
