"""The model in PyTorch, written for reading: what every bundle and engine is compared against.

It shares the modules with the exported graphs, but resizes by interpolation, filters by sorting and sums in float64,
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
from runtime.backends.base import OnStage, Outputs
from runtime.backends.wiring import SMOOTH_BRIDGE
from runtime.sampling import Sampling


@dataclass(frozen=True)
class Generation:
    """N pictures, their tokens and logits per scale."""

    images: np.ndarray  # (N, H, W, 3) uint8
    tokens: list[np.ndarray]  # K arrays (N, p²) int32
    logits: list[np.ndarray]  # K arrays (N, p², V) float32 after guidance


class PyTorchBackend:
    """See `runtime.backends.base.Backend`; it tells no stage's time."""

    name = "PyTorch"
    batches: tuple[int, ...] | None = None

    def __init__(self, var: VAR, vqvae: VQVAE) -> None:
        self.var, self.vqvae = var, vqvae

    @torch.inference_mode()
    def begin(self, labels: np.ndarray, on_stage: OnStage | None = None, smooth: bool = False) -> None:
        recipe, count = self.var.recipe, len(labels)
        self._count = count
        self._labels = torch.cat((torch.from_numpy(labels), torch.full((count,), recipe.num_classes)))
        self._x = self.var.condition(self._labels)[-1]
        self._bridge = SMOOTH_BRIDGE if smooth else "bridge"
        empty = [torch.zeros(0, 2 * count, recipe.heads, recipe.head_size)] * recipe.depth
        self._past_k, self._past_v = empty, empty
        self._f_hat = torch.zeros(count, recipe.code_size, recipe.grid, recipe.grid)
        self._drawn: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []

    @torch.inference_mode()
    def step(
        self,
        k: int,
        randoms: np.ndarray,
        guidance: float,
        sampling: Sampling,
        keep: np.ndarray | None = None,
        kept_tokens: np.ndarray | None = None,
    ) -> None:
        modulation, head_modulation, _ = self.var.condition(self._labels)  # at every scale, as the published code does
        past = self._past_k, self._past_v
        self._logits, self._new_k, self._new_v = self.var(self._x, modulation, head_modulation, *past)  # (L, 2N, V)
        self._past_k = [torch.cat(pair) for pair in zip(self._past_k, self._new_k, strict=True)]
        self._past_v = [torch.cat(pair) for pair in zip(self._past_v, self._new_v, strict=True)]
        logits = guided(self._logits, guidance)  # (N, L, V)
        distribution = probabilities(logits, sampling.top_k, sampling.top_p)
        uniforms = torch.from_numpy(randoms)  # noise, if smooth
        drawn = logits.argmax(-1).to(torch.int32) if sampling.smooth else draw(distribution, uniforms)
        drawn = torch.where(sampler.finite(logits, (-1,)), drawn, -1)
        kept = None if keep is None else torch.from_numpy(np.array(keep))
        tokens = drawn if kept is None else torch.where(kept, torch.from_numpy(np.array(kept_tokens)), drawn)
        self._drawn.append(drawn.numpy())
        self._tokens.append(tokens.numpy())
        codes = self.vqvae.quantize.embedding(tokens.clamp_min(0))  # (N, L, Z)
        if sampling.smooth:
            mixed = self._mixed(
                k, logits.masked_fill(distribution == 0, -torch.inf), torch.from_numpy(randoms), sampling
            )
            codes = mixed if kept is None else torch.where(kept.unsqueeze(-1), codes, mixed)
        self._add(k, codes)

    def _mixed(self, k: int, logits: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
        """Gumbel-softmax: logits (N, L, V), removed ones -inf, and noise -> codes (N, L, Z)."""
        scales = len(self.var.recipe.scales)
        noised = logits * sampling.sharpness(k, scales) + noise
        return (noised / sampling.temperature(k, scales)).softmax(-1) @ self.vqvae.quantize.embedding.weight

    def _add(self, k: int, codes: Tensor) -> None:
        """codes (N, p², Z) of scale k into f_hat, and from it the next input."""
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
    def decode(self) -> np.ndarray:
        pixels = self.vqvae.decode(self._f_hat)  # (N, 3, H, W)
        self._finite = sampler.finite(pixels, (1, 2, 3)).numpy()
        return ((pixels.clamp(-1, 1) * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def finite(self) -> np.ndarray:
        return self._finite

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).float().permute(0, 3, 1, 2).contiguous() / 255 * 2 - 1
        features = self.vqvae.features(pixels)
        tokens = torch.cat(self.vqvae.quantize.tokenize(features), dim=1).to(torch.int32)
        return torch.where(sampler.finite(features, (1, 2, 3)).unsqueeze(1), tokens, -1).numpy()

    @torch.inference_mode()
    def started(self) -> dict[str, np.ndarray]:
        """What condition makes; tensors are named as in `export.graphs.definitions`."""
        names = ("modulation", "head_modulation", "x")
        return {name: value.numpy() for name, value in zip(names, self.var.condition(self._labels), strict=True)}

    def outputs(self, k: int) -> Outputs:
        """What the stages of scale k, just stepped, made."""
        keys, values = (
            {f"new_{kind}_{block:02}": tensor.numpy() for block, tensor in enumerate(tensors)}
            for kind, tensors in (("k", self._new_k), ("v", self._new_v))
        )
        following = {} if k + 1 == len(self.var.recipe.scales) else {"x_next": self._x.numpy()}
        tokens = {"drawn": self._drawn[k], "tokens": self._tokens[k]}
        return {
            "transformer": {"logits": self._logits.numpy(), **keys, **values},
            self._bridge: {**tokens, "f_hat_out": self._f_hat.numpy(), **following},
        }


def generate(
    var: VAR,
    vqvae: VQVAE,
    labels: Sequence[int],
    uniforms: Sequence[np.ndarray],
    cfg: float,
    top_k: int,
    top_p: float,
) -> Generation:
    """Draws one picture per label; `uniforms` are K arrays (N, p²) in [0, 1)."""
    backend = PyTorchBackend(var, vqvae)
    backend.begin(np.array(labels, np.int64))
    logits = []
    for k, numbers in enumerate(uniforms):
        t = cfg * k / (len(uniforms) - 1)
        backend.step(k, numbers, t, Sampling(cfg, top_k, top_p))
        logits.append(guided(torch.from_numpy(backend.logits()), t).numpy())
    tokens = [backend.tokens(k) for k in range(len(uniforms))]
    return Generation(backend.decode(), tokens, logits)


def guided(logits: Tensor, t: float) -> Tensor:
    """Classifier-free guidance: logits (L, 2N, V) -> (N, L, V)."""
    conditional, unconditional = logits.transpose(0, 1).chunk(2)
    return (1 + t) * conditional - t * unconditional


def probabilities(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Float64 distribution (..., V) left by top-k, then top-p (0 = all): the definition, by sorting."""
    logits = logits.double()
    if top_k > 0:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    distribution = logits.softmax(-1)
    if top_p > 0:
        descending, order = distribution.sort(-1, descending=True)
        before = descending.cumsum(-1) - descending  # mass of everything likelier
        removed = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        distribution = distribution.masked_fill(removed, 0)
        distribution = distribution / distribution.sum(-1, keepdim=True)
    return distribution


def draw(distribution: Tensor, uniforms: Tensor) -> Tensor:
    """distribution (..., V), uniforms (...) -> tokens (...) int32."""
    cumulative = distribution.cumsum(-1)
    u = uniforms.double().unsqueeze(-1) * cumulative[..., -1:]
    exceeds = (cumulative > u) & (distribution > 0)
    return exceeds.to(torch.uint8).argmax(-1).to(torch.int32)  # the first
