"""Train the VAR transformer: all scales in one pass, each conditioned on the true tokens of the earlier scales.

The last scale has most of the tokens and is learnt first, so half of the steps leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.demo_model.device import autocast
from examples.demo_model.loop import Stage
from export.checkpoint.recipe import Recipe
from export.model.quantizer import Quantizer
from export.model.transformer import VAR

_LABEL_DROPOUT = 0.1  # share of images without label, which train the unconditional half of guidance
_INPUT_DROPOUT = 0.1
_COARSE_SHARE = 0.5  # share of the steps that train all scales but the last


class VARStage(Stage):
    """The transformer with initial weights, and the attention mask over its scales."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.var = VAR(recipe)
        initialise(self.var)
        level = torch.cat([torch.full((scale.tokens,), k) for k, scale in enumerate(recipe.scales)])  # (T,)
        unseen = level[:, None] < level[None, :]  # (T, T): a token sees its own scale and all earlier ones
        self.register_buffer("mask", torch.zeros(unseen.shape).masked_fill(unseen, -math.inf), persistent=False)

    def loss(self, tokens: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the cross-entropy of tokens (B, T), given `teacher_features` (T - 1, B, Z) and labels (B,)."""
        dropped = torch.rand(labels.shape, device=labels.device) < _LABEL_DROPOUT
        labels = labels.masked_fill(dropped, self.recipe.num_classes)
        last = self.recipe.scales[-1].offset
        if torch.rand(()) < _COARSE_SHARE:
            tokens, features = tokens[:, :last], features[: last - 1]
        surprise = _cross_entropy(self._logits(features, labels), tokens)
        figures = {"coarse": surprise[:last].detach().mean().item()}
        if len(surprise) > last:
            figures["fine"] = surprise[last:].detach().mean().item()
        return surprise.mean(), figures

    @torch.no_grad()
    def validate(self, tokens: Tensor, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Return cross-entropy and accuracy on held-out images."""
        logits = self._logits(features, labels)
        correct = (logits.argmax(-1) == tokens.T).float().mean().item()
        return {"loss": _cross_entropy(logits, tokens).mean().item(), "accuracy": correct}

    def _logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (L, B, V) f32 of the first L tokens for features (L - 1, B, Z) and labels (B,)."""
        with torch.device(labels.device), autocast(labels.device):
            modulation, head_modulation, first = self.var.condition(labels)
            later = self.var.embed(features, self.var.positions()[1 : len(features) + 1])  # (L - 1, B, C)
            x = F.dropout(torch.cat((first, later)), _INPUT_DROPOUT, self.training)  # (L, B, C)
            past = [x.new_zeros(0, len(labels), self.recipe.heads, self.recipe.head_size)] * self.recipe.depth
            logits, _, _ = self.var(x, modulation, head_modulation, past, past, self.mask[: len(x), : len(x)])
        return logits.float()


def _cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy (T, B) of logits (T, B, V) and tokens (B, T).

    The arrays are flattened, because over a strided axis the loss takes longer than the model.
    """
    return F.cross_entropy(logits.flatten(0, 1), tokens.T.flatten(), reduction="none").view(logits.shape[:2])


@torch.no_grad()
def teacher_features(quantizer: Quantizer, tokens: Sequence[Tensor]) -> Tensor:
    """Return the features (T - 1, B, Z) that the inputs of all scales but the first are embedded from.

    `tokens` are (B, p²) for every scale.
    """
    f_hat, inputs = torch.zeros(()), []
    for k, chosen in enumerate(tokens[:-1]):
        f_hat = f_hat.to(chosen.device) + quantizer.contribution(k, quantizer.lookup(chosen))
        inputs.append(quantizer.next_features(k + 1, f_hat))
    return torch.cat(inputs)


@torch.no_grad()
def initialise(var: VAR) -> None:
    """Initialise the weights like those of an ordinary pre-norm transformer, with AdaLN near the identity."""
    width, depth = var.recipe.width, var.recipe.depth
    for module in var.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=math.sqrt(1 / width / 3))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for positions in (var.pos_start, var.pos_1LC):
        nn.init.trunc_normal_(positions, std=math.sqrt(1 / width / 3))
    for block in var.blocks:
        block.attn.proj.weight /= math.sqrt(2 * depth)
        block.ffn.fc2.weight /= math.sqrt(2 * depth)
        block.ada_lin[-1].weight *= 0.5
        block.ada_lin[-1].bias[: 2 * width] = 1.0  # gamma1, gamma2
    var.head_nm.ada_lin[-1].weight *= 0.5
    var.head.weight *= 0.02
