"""Every ONNX graph of a bundle: what it computes, and the names, dtypes and shapes of its inputs and outputs.

The names are those of `runtime.bundle.names`. Symbolic axes: B batch, 2B the conditional and then the unconditional
half, L tokens of the scale, L_next tokens of the next scale, S tokens of all earlier scales.

Graphs report NaN and infinity: tokens drawn from such logits are -1, the encoder's tokens of an image with such
features are -1, and the decoder's `finite` is false. The check is a sum and costs almost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint.recipe import Recipe
from export.graphs.signature import Signature
from export.model import VAR, VQVAE, sampler
from export.model.tiny_decoder import TinyDecoder
from runtime.bundle import names
from runtime.bundle.manifest import Tensor as TensorSpec


@dataclass(frozen=True)
class Graph(Signature):
    """One graph to export: `module` maps `inputs` to `outputs`."""

    module: nn.Module


def all_graphs(
    recipe: Recipe, var: VAR, vqvae: VQVAE, smooth: bool = False, tiny: TinyDecoder | None = None
) -> Iterator[Graph]:
    """Yield the graphs of a bundle in the order of their use.

    With `smooth` the bridge of smooth sampling is one of them, with `tiny` the tiny decoder.
    """
    yield condition(recipe, var)
    yield transformer(recipe, var)
    yield bridge(recipe, var, vqvae)
    if smooth:
        yield bridge_smooth(recipe, var, vqvae)
    yield decoder(recipe, vqvae)
    if tiny is not None:
        yield tiny_decoder(recipe, tiny)
    yield encoder(recipe, vqvae)


def condition(recipe: Recipe, var: VAR) -> Graph:
    return Graph(names.CONDITION, (TensorSpec(names.LABELS, "int64", ("B",)),), _conditioning(recipe), Condition(var))


def transformer(recipe: Recipe, var: VAR) -> Graph:
    x = TensorSpec(names.X, "float32", ("L", "2B", recipe.width))
    # One input for each block. With one tensor for all blocks, an engine compiles each block's offset into its kernels,
    # so that every block needs its own kernels.
    blocks = [TensorSpec(names.modulation_of(i), "float32", (6, "2B", recipe.width)) for i in range(recipe.depth)]
    head_modulation = _conditioning(recipe)[1]
    head = recipe.heads, recipe.head_size
    caches = names.caches(recipe.depth)
    past = [TensorSpec(names.past(*cache), "float32", ("S", "2B", *head)) for cache in caches]
    new = [TensorSpec(names.new(*cache), "float32", ("L", "2B", *head)) for cache in caches]
    logits = TensorSpec(names.LOGITS, "float32", ("L", "2B", recipe.vocab_size))
    return Graph(names.TRANSFORMER, (x, *blocks, head_modulation, *past), (logits, *new), Step(var))


def bridge(recipe: Recipe, var: VAR, vqvae: VQVAE) -> Graph:
    uniforms = TensorSpec(names.UNIFORMS, "float32", ("B", "L"))
    inputs, outputs = _bridge_tensors(recipe, uniforms)
    return Graph(names.BRIDGE, inputs, outputs, Bridge(var, vqvae))


def bridge_smooth(recipe: Recipe, var: VAR, vqvae: VQVAE) -> Graph:
    noise = TensorSpec(names.NOISE, "float32", ("B", "L", recipe.vocab_size))
    sharpness, temperature = (TensorSpec(name, "float32", (1,)) for name in (names.SHARPNESS, names.TEMPERATURE))
    inputs, outputs = _bridge_tensors(recipe, noise, sharpness, temperature)
    return Graph(names.SMOOTH_BRIDGE, inputs, outputs, SmoothBridge(var, vqvae))


def _bridge_tensors(recipe: Recipe, *drawing: TensorSpec) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a bridge; `drawing` are the inputs of its way to draw tokens."""
    pixels = recipe.grid**2
    f_hat = ("B", recipe.code_size, recipe.grid, recipe.grid)
    inputs = (
        TensorSpec(names.LOGITS, "float32", ("L", "2B", recipe.vocab_size)),
        TensorSpec(names.F_HAT, "float32", f_hat),
        *drawing,
        TensorSpec(names.GUIDANCE, "float32", (1,)),
        TensorSpec(names.TOP_K, "int64", (1,)),
        TensorSpec(names.TOP_P, "float32", (1,)),
        TensorSpec(names.KEEP, "bool", ("B", "L")),
        TensorSpec(names.KEPT_TOKENS, "int32", ("B", "L")),
        TensorSpec(names.UPSAMPLE, "float32", ("L", pixels)),
        TensorSpec(names.PHI, "int64", (1,)),
        TensorSpec(names.DOWNSAMPLE, "float32", (pixels, "L_next")),
        TensorSpec(names.NEXT_POSITIONS, "int64", ("L_next",)),
    )
    outputs = (
        TensorSpec(names.DRAWN, "int32", ("B", "L")),
        TensorSpec(names.TOKENS, "int32", ("B", "L")),
        TensorSpec(names.F_HAT_OUT, "float32", f_hat),
        TensorSpec(names.X_NEXT, "float32", ("L_next", "2B", recipe.width)),
    )
    return inputs, outputs


def decoder(recipe: Recipe, vqvae: VQVAE) -> Graph:
    return Graph(names.DECODER, *_decoder_tensors(recipe), Decoder(vqvae))


def tiny_decoder(recipe: Recipe, tiny: TinyDecoder) -> Graph:
    return Graph(names.TINY_DECODER, *_decoder_tensors(recipe), ImitatedDecoder(tiny))


def _decoder_tensors(recipe: Recipe) -> tuple[tuple[TensorSpec], tuple[TensorSpec, TensorSpec]]:
    f_hat = TensorSpec(names.F_HAT, "float32", ("B", recipe.code_size, recipe.grid, recipe.grid))
    return (f_hat,), (_image(recipe), TensorSpec(names.FINITE, "bool", ("B",)))


def encoder(recipe: Recipe, vqvae: VQVAE) -> Graph:
    tokens = TensorSpec(names.TOKENS, "int32", ("B", recipe.tokens))
    return Graph(names.ENCODER, (_image(recipe),), (tokens,), Encoder(vqvae))


def _conditioning(recipe: Recipe) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    return (
        TensorSpec(names.MODULATION, "float32", (recipe.depth, 6, "2B", recipe.width)),
        TensorSpec(names.HEAD_MODULATION, "float32", (2, "2B", recipe.width)),
        TensorSpec(names.X, "float32", (recipe.scales[0].tokens, "2B", recipe.width)),
    )


def _image(recipe: Recipe) -> TensorSpec:
    return TensorSpec(names.IMAGE, "uint8", ("B", recipe.image_size, recipe.image_size, 3))


class Condition(nn.Module):
    """Labels to everything that is constant over the scales, and to the input of the first scale."""

    def __init__(self, var: VAR):
        super().__init__()
        self.var = var

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # A label is at most num_classes, so the maximum is num_classes everywhere, without shape arithmetic. Not clamp:
        # engines clip floats only.
        unconditional = torch.maximum(labels, torch.tensor(self.var.recipe.num_classes))
        return self.var.condition(torch.cat((labels, unconditional)))  # (2B,)


class Step(nn.Module):
    """One scale of the transformer. Its arguments are flat: x, modulations, head modulation, all past k, all past v."""

    def __init__(self, var: VAR):
        super().__init__()
        self.var = var

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        depth = self.var.recipe.depth
        modulation, head_modulation, past = others[:depth], others[depth], others[depth + 1 :]
        logits, new_k, new_v = self.var(x, modulation, head_modulation, past[:depth], past[depth:])
        return logits, *new_k, *new_v


class Bridge(nn.Module):
    """Everything between two steps: guidance, sampling, codebook, f_hat, the next input.

    Whatever differs between scales is an input: both resizes as matrices over flattened maps, the index of the phi
    convolution, the positions of the next tokens. So one graph serves all scales.
    """

    def __init__(self, var: VAR, vqvae: VQVAE):
        super().__init__()
        self.var = var
        self.vqvae = vqvae

    def forward(
        self,
        logits: Tensor,
        f_hat: Tensor,
        uniforms: Tensor,
        guidance: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        keep: Tensor,
        kept_tokens: Tensor,
        upsample: Tensor,
        phi: Tensor,
        downsample: Tensor,
        next_positions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        guided = sampler.guided(logits, guidance)  # (L, B, V)
        drawn = self._told(guided, sampler.drawn(sampler.filtered(guided, top_k, top_p), uniforms.T))  # (B, L)
        tokens = torch.where(keep, kept_tokens, drawn)
        codes = self.vqvae.quantize.embedding(torch.maximum(tokens, torch.tensor(0, dtype=torch.int32)))  # (B, L, Z)
        return drawn, tokens, *self._add(codes, f_hat, upsample, phi, downsample, next_positions)

    def _told(self, guided: Tensor, tokens: Tensor) -> Tensor:
        """Return tokens (L, B) as (B, L) int32, with -1 where the guided logits (L, B, V) hold NaN or infinity."""
        return torch.where(sampler.finite(guided, (-1,)), tokens.to(torch.int32), -1).T

    def _add(
        self, codes: Tensor, f_hat: Tensor, upsample: Tensor, phi: Tensor, downsample: Tensor, next_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return f_hat with codes (B, L, Z) added, and the next input (L_next, 2B, C) made from it."""
        upsampled = codes.transpose(1, 2) @ upsample  # (B, Z, P²)
        f_hat = f_hat + self._phi(upsampled.unflatten(2, f_hat.shape[2:]), phi)
        features = (f_hat.flatten(2) @ downsample).permute(2, 0, 1)  # (L_next, B, Z)
        x_next = self.var.embed(features, self.var.positions().index_select(0, next_positions))  # (L_next, B, C)
        return f_hat, torch.cat((x_next, x_next), dim=1)

    def _phi(self, h: Tensor, index: Tensor) -> Tensor:
        """Apply the phi convolution `index` to h (B, Z, P, P). Engines need constant weights, so all n are computed."""
        phis, share = self.vqvae.quantize.phis(), self.vqvae.quantize.recipe.quant_resi
        if not phis:  # read the index all the same: engines drop an input that nothing reads
            return h.unsqueeze(1).index_select(1, index).squeeze(1)
        weight, bias = (torch.cat([getattr(phi, name) for phi in phis]) for name in ("weight", "bias"))
        convolved = F.conv2d(h, weight, bias, padding=1).unflatten(1, (len(phis), -1))  # (B, n, Z, P, P)
        result: Tensor = (1 - share) * h + share * convolved.index_select(1, index).squeeze(1)
        return result


class SmoothBridge(Bridge):
    """A bridge that adds a mixture of codes, weighted by the softmax of logits plus Gumbel noise, not a token's code.

    This is the "more smooth" sampling of the published demo. The noise (B, L, V) is an input, because no two engines
    generate the same random numbers.
    """

    def forward(  # type: ignore[override]
        self,
        logits: Tensor,
        f_hat: Tensor,
        noise: Tensor,
        sharpness: Tensor,
        temperature: Tensor,
        guidance: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        keep: Tensor,
        kept_tokens: Tensor,
        upsample: Tensor,
        phi: Tensor,
        downsample: Tensor,
        next_positions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        guided = sampler.guided(logits, guidance)  # (L, B, V)
        weights = sampler.smoothed(guided, noise.transpose(0, 1), sharpness, temperature, top_k, top_p)
        drawn = self._told(guided, guided.argmax(-1))  # (B, L): for callers that want tokens; the image is mixed
        tokens = torch.where(keep, kept_tokens, drawn)
        codebook = self.vqvae.quantize.embedding
        mixed = (weights @ codebook.weight).transpose(0, 1)  # (B, L, Z)
        codes = torch.where(keep.unsqueeze(-1), codebook(kept_tokens), mixed)
        return drawn, tokens, *self._add(codes, f_hat, upsample, phi, downsample, next_positions)


class Decoder(nn.Module):
    """f_hat to images as bytes, and for each whether its pixels were finite (B,)."""

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(self, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        return _as_bytes(self.vqvae.decode(f_hat))


class ImitatedDecoder(nn.Module):
    """The same from the tiny decoder. The name of its attribute is the prefix of its weights in the weight file."""

    def __init__(self, tiny: TinyDecoder):
        super().__init__()
        self.tiny_decoder = tiny

    def forward(self, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        return _as_bytes(self.tiny_decoder(f_hat))


def _as_bytes(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (B, H, W, 3) uint8 of pixels (B, 3, H, W) in [-1, 1], and whether each is finite (B,)."""
    finite = sampler.finite(pixels, (1, 2, 3))
    image = pixels.clamp(-1, 1) * 0.5 + 0.5
    return (image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8), finite  # engines want the cast last


class Encoder(nn.Module):
    """Images as bytes to the tokens of all scales, one scale after the other."""

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(self, image: Tensor) -> Tensor:
        # Contiguous: with channels-last maps PyTorch's GroupNorm on the CPU is off by 4e-3, which changes tokens.
        pixels = image.to(torch.float32).permute(0, 3, 1, 2).contiguous() / 255 * 2 - 1
        features = self.vqvae.features(pixels)
        tokens = torch.cat(self.vqvae.quantize.tokenize(features), dim=1).to(torch.int32)
        return torch.where(sampler.finite(features, (1, 2, 3)).unsqueeze(1), tokens, -1)
