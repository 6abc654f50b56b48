"""The reference: the model in PyTorch, written for reading. Every bundle and engine is compared with it.

It shares its modules with the exported graphs. But it resizes by interpolation, filters by sorting and sums in float64,
where the graphs use matrices, bisection and block sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.model import VAR, VQVAE, sampler
from export.model.tiny_decoder import TinyDecoder
from runtime.backends.base import Observe, OnStage, Plan, StageRun
from runtime.bundle import names
from runtime.errors import BundleError
from runtime.sampling import Sampling


@dataclass(frozen=True)
class Generation:
    """N images, with their tokens and logits per scale."""

    images: np.ndarray  # (N, H, W, 3) uint8
    tokens: list[np.ndarray]  # K arrays (N, p²) int32
    logits: list[np.ndarray]  # K arrays (N, p², V) float32 after guidance


class PyTorchBackend:
    """A backend (see `runtime.backends.base.Backend`) that runs the reference. It does not time its stages.

    An observer sees the tensors that exist here: no resize matrices, and no next input after the last scale.
    """

    name = "PyTorch"
    batches: tuple[int, ...] | None = None
    launches_whole = False

    def __init__(self, var: VAR, vqvae: VQVAE, tiny: TinyDecoder | None = None) -> None:
        self.var, self.vqvae, self.tiny = var, vqvae, tiny

    def check(self, sampling: Sampling) -> None:
        if sampling.decoder_graph == names.TINY_DECODER and self.tiny is None:
            raise BundleError(f"{self.var.recipe.name}: no tiny decoder was loaded; give its file")

    @torch.inference_mode()
    def begin(
        self,
        labels: np.ndarray,
        sampling: Sampling,
        on_stage: OnStage | None = None,
        observe: Observe | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.check(sampling)
        recipe, count = self.var.recipe, len(labels)
        self._sampling, self._observe = sampling, observe
        self._labels = torch.cat((torch.from_numpy(labels), torch.full((count,), recipe.num_classes)))
        conditioned = self.var.condition(self._labels)
        self._x = conditioned[-1]
        outputs = dict(zip((names.MODULATION, names.HEAD_MODULATION, names.X), conditioned, strict=True))
        self._show(names.CONDITION, None, {names.LABELS: torch.from_numpy(labels)}, outputs)
        empty = [torch.zeros(0, 2 * count, recipe.heads, recipe.head_size)] * recipe.depth
        self._past_k, self._past_v = empty, empty
        self._f_hat = torch.zeros(count, recipe.code_size, recipe.grid, recipe.grid)
        self._drawn: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []

    @torch.inference_mode()
    def step(
        self, k: int, randoms: np.ndarray, keep: np.ndarray | None = None, kept_tokens: np.ndarray | None = None
    ) -> None:
        sampling, scales = self._sampling, len(self.var.recipe.scales)
        modulation, head_modulation, _ = self.var.condition(self._labels)  # at every scale, as the published code does
        past = self._past_k, self._past_v
        self._logits, new_k, new_v = self.var(self._x, modulation, head_modulation, *past)  # (L, 2N, V)
        self._show_transformer(k, modulation, head_modulation, past, (new_k, new_v))
        self._past_k, self._past_v = (
            [torch.cat(pair) for pair in zip(old, new, strict=True)]
            for old, new in zip(past, (new_k, new_v), strict=True)
        )
        logits = guided(self._logits, sampling.guidance(k, scales))  # (N, L, V)
        distribution = probabilities(logits, sampling.tokens_kept, sampling.top_p)
        numbers = torch.from_numpy(randoms)  # uniforms; noise, if smooth
        drawn = logits.argmax(-1).to(torch.int32) if sampling.smooth else draw(distribution, numbers)
        drawn = torch.where(sampler.finite(logits, (-1,)), drawn, -1)
        kept = None if keep is None else torch.from_numpy(np.array(keep))
        tokens = drawn if kept is None else torch.where(kept, torch.from_numpy(np.array(kept_tokens)), drawn)
        self._drawn.append(drawn.numpy())
        self._tokens.append(tokens.numpy())
        codes = self.vqvae.quantize.embedding(tokens.clamp_min(0))  # (N, L, Z)
        if sampling.smooth:
            mixed = self._mixed(k, logits.masked_fill(distribution == 0, -torch.inf), numbers)
            codes = mixed if kept is None else torch.where(kept.unsqueeze(-1), codes, mixed)
        inputs = {names.LOGITS: self._logits, names.F_HAT: self._f_hat}
        self._add(k, codes)
        outputs = {names.DRAWN: drawn, names.TOKENS: tokens, names.F_HAT_OUT: self._f_hat}
        following = {} if k + 1 == scales else {names.X_NEXT: self._x}
        if sampling.smooth:
            self._show(names.SMOOTH_BRIDGE, k, inputs | {names.NOISE: numbers}, outputs | following)
        else:
            self._show(names.BRIDGE, k, inputs | {names.UNIFORMS: numbers}, outputs | following)

    def _mixed(self, k: int, logits: Tensor, noise: Tensor) -> Tensor:
        """Mix codes (N, L, Z) by Gumbel-softmax of logits (N, L, V), -inf where a filter removed them, and noise."""
        sampling, scales = self._sampling, len(self.var.recipe.scales)
        noised = logits * sampling.sharpness(k, scales) + noise
        return (noised / sampling.temperature(k, scales)).softmax(-1) @ self.vqvae.quantize.embedding.weight

    def _add(self, k: int, codes: Tensor) -> None:
        """Add the codes (N, p², Z) of scale k to f_hat, and compute the next input from it."""
        recipe, quantize = self.var.recipe, self.vqvae.quantize
        side = recipe.scales[k].side
        h = codes.transpose(1, 2).unflatten(2, (side, side))  # (N, Z, p, p)
        if side != recipe.grid:
            h = F.interpolate(h, size=(recipe.grid, recipe.grid), mode="bicubic")
        self._f_hat = self._f_hat + quantize.smoothed(k, h)
        if k + 1 < len(recipe.scales):
            following = recipe.scales[k + 1]
            features = F.interpolate(self._f_hat, size=(following.side, following.side), mode="area")
            positions = self.var.positions()[following.offset :][: following.tokens]
            x = self.var.embed(features.flatten(2).permute(2, 0, 1), positions)
            self._x = x.repeat(1, 2, 1)  # (L, 2N, C)

    def drawn(self, k: int) -> np.ndarray:
        return self._drawn[k]

    def tokens(self, k: int) -> np.ndarray:
        return self._tokens[k]

    def logits(self) -> np.ndarray:
        result: np.ndarray = self._logits.numpy()
        return result

    @torch.inference_mode()
    def decode(self, preview: bool = False) -> np.ndarray:
        wanted = preview or self._sampling.decoder_graph == names.TINY_DECODER
        tiny = self.tiny if wanted else None
        pixels = tiny(self._f_hat) if tiny is not None else self.vqvae.decode(self._f_hat)  # (N, 3, H, W)
        self._finite = sampler.finite(pixels, (1, 2, 3)).numpy()
        images = ((pixels.clamp(-1, 1) * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        for i in range(len(images)):
            made = {names.IMAGE: images[i : i + 1], names.FINITE: torch.from_numpy(self._finite[i : i + 1])}
            self._show(
                names.DECODER if tiny is None else names.TINY_DECODER, None, {names.F_HAT: self._f_hat[i : i + 1]}, made
            )
        return images.numpy()

    def finite(self) -> np.ndarray:
        return self._finite

    def free_batches(self) -> None: ...

    def close(self) -> None: ...

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).float().permute(0, 3, 1, 2).contiguous() / 255 * 2 - 1
        features = self.vqvae.features(pixels)
        tokens = torch.cat(self.vqvae.quantize.tokenize(features), dim=1).to(torch.int32)
        return torch.where(sampler.finite(features, (1, 2, 3)).unsqueeze(1), tokens, -1).numpy()

    def _show_transformer(
        self,
        k: int,
        modulation: Tensor,
        head_modulation: Tensor,
        past: tuple[list[Tensor], list[Tensor]],
        new: tuple[list[Tensor], list[Tensor]],
    ) -> None:
        caches = names.caches(self.var.recipe.depth)  # keys, then values
        blocks = {names.modulation_of(i): values for i, values in enumerate(modulation)}
        old = {names.past(*cache): values for cache, values in zip(caches, [*past[0], *past[1]], strict=True)}
        made = {names.new(*cache): values for cache, values in zip(caches, [*new[0], *new[1]], strict=True)}
        inputs = {names.X: self._x, **blocks, names.HEAD_MODULATION: head_modulation, **old}
        self._show(names.TRANSFORMER, k, inputs, {names.LOGITS: self._logits, **made})

    def _show(self, graph: str, scale: int | None, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        if self._observe:
            read, made = ({name: tensor.numpy() for name, tensor in held.items()} for held in (inputs, outputs))
            self._observe(StageRun(graph, scale, read, made))


def generate(
    var: VAR,
    vqvae: VQVAE,
    labels: Sequence[int],
    uniforms: Sequence[np.ndarray],
    sampling: Sampling,
) -> Generation:
    """Generate one image per label; `uniforms` are K arrays (N, p²) in [0, 1)."""
    backend = PyTorchBackend(var, vqvae)
    backend.begin(np.array(labels, np.int64), sampling)
    logits = []
    for k, numbers in enumerate(uniforms):
        backend.step(k, numbers)
        t = sampling.guidance(k, len(uniforms))
        logits.append(guided(torch.from_numpy(backend.logits()), t).numpy())
    tokens = [backend.tokens(k) for k in range(len(uniforms))]
    return Generation(backend.decode(), tokens, logits)


def guided(logits: Tensor, t: float) -> Tensor:
    """Apply classifier-free guidance to logits (L, 2N, V) -> (N, L, V)."""
    conditional, unconditional = logits.transpose(0, 1).chunk(2)
    return (1 + t) * conditional - t * unconditional


def probabilities(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the float64 distribution (..., V) after top-k, then top-p (0 = all), by sorting, as they are defined."""
    logits = logits.double()
    if top_k > 0:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    distribution = logits.softmax(-1)
    if top_p > 0:
        descending, order = distribution.sort(-1, descending=True)
        before = descending.cumsum(-1) - descending  # mass of all likelier tokens
        removed = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        distribution = distribution.masked_fill(removed, 0)
        distribution = distribution / distribution.sum(-1, keepdim=True)
    return distribution


def draw(distribution: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens (...) int32 from a distribution (..., V) with uniforms (...)."""
    cumulative = distribution.cumsum(-1)
    u = uniforms.double().unsqueeze(-1) * cumulative[..., -1:]
    exceeds = (cumulative > u) & (distribution > 0)
    return exceeds.to(torch.uint8).argmax(-1).to(torch.int32)  # argmax returns the first
