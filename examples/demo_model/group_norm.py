"""GroupNorm with a fast backward pass for channels_last on the CPU. PyTorch's own took half of each training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        out, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, height * width, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)  # mean, rstd: (B, groups)
        return out

    @staticmethod
    def backward(ctx, dy: Tensor):  # dy (B, C, H, W)
        x, weight, mean, rstd = ctx.saved_tensors
        batch, channels, height, width = x.shape
        per_group = channels // mean.shape[1]

        def spread(value: Tensor) -> Tensor:  # (B, groups) f32 -> (B, C, 1, 1)
            return value.repeat_interleave(per_group, 1).view(batch, channels, 1, 1).to(x.dtype)

        normal = torch.addcmul(spread(-mean * rstd), x, spread(rstd))  # (B, C, H, W)
        sum_dy = dy.sum((2, 3)).float()  # (B, C), each image's part of the gradient of the bias
        sum_dyn = (dy * normal).sum((2, 3)).float()  # (B, C), the same for the weight
        # dx = rstd (gamma dy - mean(gamma dy) - normal mean(gamma dy normal)), with means over a group
        gamma, size = weight.float(), per_group * height * width
        offset = (gamma * sum_dy).view(batch, -1, per_group).sum(2) / -size * rstd  # (B, groups)
        slope = (gamma * sum_dyn).view(batch, -1, per_group).sum(2) / -size * rstd
        dx = torch.addcmul(spread(offset), normal, spread(slope))
        dx.addcmul_(dy, spread(rstd) * weight.view(1, channels, 1, 1))
        d_weight, d_bias = sum_dyn.sum(0), sum_dy.sum(0)
        return dx, d_weight, d_bias, None, None


class FastGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` with affine parameters, for (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)


def use_fast_group_norm(model: nn.Module) -> None:
    """Turn every GroupNorm of `model` into FastGroupNorm, with the same parameters."""
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FastGroupNorm
