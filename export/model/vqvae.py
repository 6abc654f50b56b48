"""The VQVAE around the quantizer: encoder and decoder (the VQGAN architecture of Esser et al., 2021)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint.recipe import Recipe
from export.model.quantizer import Quantizer


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        result: Tensor = (self.nin_shortcut(x) if "nin_shortcut" in self._modules else x) + h
        return result


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of a map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, 3, channels, height * width).unbind(1)  # each (B, c, HW)
        weights = ((q.transpose(1, 2) @ k) * channels**-0.5).softmax(dim=-1)  # (B, HW, HW)
        out = v @ weights.transpose(1, 2)  # (B, c, HW)
        result: Tensor = x + self.proj_out(out.view(batch, channels, height, width))
        return result


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return result


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as the checkpoints were trained
        return result


class Level(nn.Module):
    """The residual blocks of one resolution, then a resize to the next. At the lowest, attention follows each block."""

    def __init__(self, channels: list[int], attention: bool, resize: dict[str, nn.Module]):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(channels))
        self.attn = nn.ModuleList(AttentionBlock(c) for c in channels[1:] if attention)
        self.resize = list(
            resize
        )  # at most one: `downsample` or `upsample`; in the checkpoints it is named beside the blocks, not among them
        for name, module in resize.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in self.resize:
            x = self.get_submodule(name)(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return result


class Encoder(nn.Module):
    def __init__(self, recipe: Recipe):
        super().__init__()
        widths = [recipe.ch * m for m in recipe.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, recipe.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = recipe.ch
        for i, width in enumerate(widths):
            resize: dict[str, nn.Module] = {"downsample": Downsample(width)} if i != last else {}
            self.down.append(Level([channels] + [width] * recipe.num_res_blocks, i == last, resize))
            channels = width
        self.mid = Middle(channels)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, recipe.code_size, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        result: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return result


class Decoder(nn.Module):
    def __init__(self, recipe: Recipe):
        super().__init__()
        widths = [recipe.ch * m for m in recipe.ch_mult]
        last = len(widths) - 1
        channels = widths[last]
        self.conv_in = nn.Conv2d(recipe.code_size, channels, 3, padding=1)
        self.mid = Middle(channels)
        levels = []
        for i in range(last, -1, -1):
            resize: dict[str, nn.Module] = {"upsample": Upsample(widths[i])} if i != 0 else {}
            levels.append(Level([channels] + [widths[i]] * (recipe.num_res_blocks + 1), i == last, resize))
            channels = widths[i]
        self.up = nn.ModuleList(reversed(levels))  # checkpoints number the levels from the finest
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        result: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return result


class VQVAE(nn.Module):
    """The VQVAE: images to multi-scale tokens, and back."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.encoder = Encoder(recipe)
        self.decoder = Decoder(recipe)
        self.quantize = Quantizer(recipe)
        self.quant_conv = self._quant_conv(recipe)
        self.post_quant_conv = self._quant_conv(recipe)

    @staticmethod
    def _quant_conv(recipe: Recipe) -> nn.Conv2d:
        kernel = recipe.quant_conv_ks
        return nn.Conv2d(recipe.code_size, recipe.code_size, kernel, padding=kernel // 2)

    def features(self, image: Tensor) -> Tensor:
        """Encode an image (B, 3, H, W) in [-1, 1] to features (B, Z, P, P) before quantization."""
        result: Tensor = self.quant_conv(self.encoder(image))
        return result

    def decode(self, f_hat: Tensor) -> Tensor:
        """Decode f_hat (B, Z, P, P) to an image (B, 3, H, W) in [-1, 1], not clamped: values may overshoot."""
        result: Tensor = self.decoder(self.post_quant_conv(f_hat))
        return result

    def encode(self, image: Tensor) -> list[Tensor]:
        """Encode an image (B, 3, H, W) in [-1, 1] to tokens (B, p²) per scale."""
        return self.quantize.tokenize(self.features(image))

    def decode_tokens(self, tokens: list[Tensor]) -> Tensor:
        """Decode tokens (B, p²) per scale to an image (B, 3, H, W), not clamped."""
        return self.decode(self.quantize.f_hat(tokens))
