"""The VAR transformer, with keys and values as inputs and outputs. Parameter names are those of published checkpoints.

Tensors are token-major, x (L, B, C) and K/V (S, B, H, D), so that new keys and values are written directly after those
in the KV cache. D is the size of a head, 64 in the published models. B counts the conditional and the unconditional
half together (2B columns in guided generation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint.recipe import Recipe

MAX_LOG_SCALE = math.log(100)  # upper limit of the learnt attention temperature, with attn_l2_norm


class Attention(nn.Module):
    """Self-attention over the tokens of this scale and, through the KV cache, of all earlier scales."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        width, heads = recipe.width, recipe.heads
        self.heads, self.head_size = heads, recipe.head_size
        self.l2_norm = recipe.attn_l2_norm
        if self.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, past_k: Tensor, past_v: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return out (L, B, C) and the new k and v (L, B, H, D) for x (L, B, C), past k and v (S, B, H, D).

        The mask (L, S + L), 0 or -inf, is added to the scores.
        """
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3 * self.heads, self.head_size))
        qk, v = qkv.split((2 * self.heads, self.heads), dim=2)  # (L, B, 2H, D), (L, B, H, D)
        if self.l2_norm:  # q and k as one tensor: normalised apart, they cost an engine one more kernel in each block
            temperature = self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp().view(self.heads, 1)
            qk = F.normalize(qk, dim=-1) * torch.cat((temperature, torch.ones_like(temperature)))
        q, k = qk.chunk(2, dim=2)  # each (L, B, H, D)
        if not self.l2_norm:
            q = q * (0.25 / math.sqrt(self.head_size))
        all_k = torch.cat((past_k, k))  # (S + L, B, H, D)
        all_v = torch.cat((past_v, v))
        q, all_k, all_v = (t.permute(1, 2, 0, 3) for t in (q, all_k, all_v))  # (B, H, L or S + L, D)
        out = attention(q, all_k, all_v, mask)  # (B, H, L, D)
        return self.proj(out.permute(2, 0, 1, 3).flatten(2)), k, v


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with q (B, H, L, D), already scaled, to k and v (B, H, S, D), mask (L, S) or None -> (B, H, L, D)."""
    if mask is None and torch.compiler.is_exporting():  # SDPA would put shape arithmetic into the graph
        return (q @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


class FeedForward(nn.Module):
    def __init__(self, recipe: Recipe):
        super().__init__()
        self.fc1 = nn.Linear(recipe.width, recipe.hidden)
        self.fc2 = nn.Linear(recipe.hidden, recipe.width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return result


class Normalized(nn.LayerNorm):
    """LayerNorm over channels without affine parameters: AdaLN provides them."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe.width, eps=recipe.norm_eps, elementwise_affine=False)


class Block(nn.Module):
    """One transformer block, modulated by AdaLN. With shared AdaLN its only own AdaLN parameter is `ada_gss`."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        width = recipe.width
        self.norm = Normalized(recipe)
        self.attn = Attention(recipe)
        self.ffn = FeedForward(recipe)
        if recipe.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, condition: Tensor, shared: Tensor | None) -> Tensor:
        """Return gamma1, gamma2, scale1, scale2, shift1, shift2 as (B, 6, C).

        condition (B, C), shared (B, 6C) or None.
        """
        result: Tensor
        if shared is not None:
            result = shared.unflatten(-1, (6, -1)) + self.ada_gss[0]
        else:
            result = self.ada_lin(condition).unflatten(-1, (6, -1))
        return result

    def forward(
        self, x: Tensor, modulation: Tensor, past_k: Tensor, past_v: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next x (L, B, C) and the new k and v (L, B, H, D).

        x (L, B, C), modulation (6, B, C) with 1 added to the scales.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation.unbind(0)  # each (B, C)
        attended, k, v = self.attn(self.norm(x) * scale1 + shift1, past_k, past_v, mask)
        x = x + gamma1 * attended
        x = x + gamma2 * self.ffn(self.norm(x) * scale2 + shift2)
        return x, k, v


class HeadNorm(nn.Module):
    """AdaLN before the classifier head."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.norm = Normalized(recipe)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(recipe.width, 2 * recipe.width))


class VAR(nn.Module):
    """The next-scale prediction transformer (Tian et al., 2024, section 3), written for inference first.

    `condition` runs once per image and `forward` once per scale. `embed` makes the next input from the image so far.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        width = recipe.width
        self.recipe = recipe
        self.word_embed = nn.Linear(recipe.code_size, width)
        self.class_emb = nn.Embedding(recipe.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, recipe.scales[0].tokens, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, recipe.tokens, width))
        self.lvl_embed = nn.Embedding(len(recipe.patch_nums), width)
        if recipe.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.depth))
        self.head_nm = HeadNorm(recipe)
        self.head = nn.Linear(width, recipe.vocab_size)

    def positions(self) -> Tensor:
        """Return the position embedding plus the scale embedding of every token (T, C)."""
        levels = [self.lvl_embed.weight[k].expand(scale.tokens, -1) for k, scale in enumerate(self.recipe.scales)]
        return self.pos_1LC[0] + torch.cat(levels)

    def condition(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute everything that depends on the labels (B,) int64 alone.

        Returns modulation (depth, 6, B, C) and head modulation (2, B, C), both with 1 added to their scales, and the
        input of the first scale x (L, B, C).
        """
        condition = self.class_emb(labels)  # (B, C)
        shared = self.shared_ada_lin(condition) if self.recipe.shared_aln else None
        per_block = torch.stack(
            [b.modulation(condition, shared) for b in cast("list[Block]", self.blocks)]
        )  # (depth, B, 6, C)
        one = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]).view(6, 1, 1)
        modulation = per_block.transpose(1, 2) + one
        head = self.head_nm.ada_lin(condition).unflatten(-1, (2, -1)).transpose(0, 1)
        head_modulation = head + torch.tensor([1.0, 0.0]).view(2, 1, 1)
        first = self.recipe.scales[0].tokens
        x = condition + (self.pos_start[0] + self.positions()[:first]).unsqueeze(1)  # (L, B, C)
        return modulation, head_modulation, x

    def forward(
        self,
        x: Tensor,
        modulation: Tensor | Sequence[Tensor],
        head_modulation: Tensor,
        past_k: Sequence[Tensor],
        past_v: Sequence[Tensor],
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run one scale: x (L, B, C) -> logits (L, B, V), and for each block the new k and v (L, B, H, D).

        `past_k` and `past_v` hold (S, B, H, D) for each block. `mask` (L, S + L) is for training, where all scales run
        at once; within a scale every token sees all others.
        """
        new_k, new_v = [], []
        for i, block in enumerate(self.blocks):
            x, k, v = block(x, modulation[i], past_k[i], past_v[i], mask)
            new_k.append(k)
            new_v.append(v)
        scale, shift = head_modulation.unbind(0)  # (B, C)
        return self.head(self.head_nm.norm(x) * scale + shift), new_k, new_v

    def embed(self, features: Tensor, positions: Tensor) -> Tensor:
        """Return the input of the next scale (L, B, C): features (L, B, Z) of the image so far, positions (L, C)."""
        result: Tensor = self.word_embed(features) + positions.unsqueeze(1)
        return result
