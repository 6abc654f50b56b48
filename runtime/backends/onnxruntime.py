"""ONNX Runtime on the CPU: arrays are allocated once for a batch size, and graphs work on them in place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ..errors import BundleError, SettingsError
from ..manifest import WEIGHTS, Manifest
from ..sampling import Sampling
from .base import OnStage
from .ort_session import Session

GRAPHS = ("condition", "transformer", "bridge", "decoder")

Arrays = dict[str, np.ndarray]


class OnnxRuntimeBackend:
    """See `Backend`."""

    def __init__(self, bundle: Path, manifest: Manifest, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise SettingsError(f"threads: expected 1 or more, found {threads}")
        self.name = "onnxruntime" + (f" with {threads} thread(s)" if threads else "")
        self._bundle, self._manifest, self._threads = bundle, manifest, threads
        self._sessions = {name: self._open(name) for name in GRAPHS}
        self._constants = _bridge_constants(bundle, manifest)
        self._batch: _Batch | None = None

    def begin(self, labels: np.ndarray, on_stage: OnStage | None = None) -> None:
        if self._batch is None or self._batch.size != len(labels):
            self._batch = None  # frees the arrays of the other size first
            self._batch = _Batch(len(labels), self._manifest, self._sessions, self._constants)
        self._batch.begin(labels, on_stage)

    def step(
        self,
        k: int,
        uniforms: np.ndarray,
        guidance: float,
        sampling: Sampling,
        keep: np.ndarray | None = None,
        kept_tokens: np.ndarray | None = None,
    ) -> None:
        batch = self._begun()
        batch.guidance[:], batch.top_k[:], batch.top_p[:] = guidance, sampling.top_k, sampling.top_p
        batch.uniforms[k][:] = uniforms
        batch.keep[k][:] = False if keep is None else keep
        batch.kept_tokens[k][:] = 0 if kept_tokens is None else kept_tokens
        batch.run(k)

    def drawn(self, k: int) -> np.ndarray:
        return self._begun().drawn[k].copy()

    def tokens(self, k: int) -> np.ndarray:
        return self._begun().tokens[k].copy()

    def logits(self) -> np.ndarray:
        batch = self._begun()
        return batch.logits[: self._manifest.scales[batch.latest].tokens].copy()

    def decode(self) -> np.ndarray:
        batch, side = self._begun(), self._manifest.model.image_size
        f_hat = batch.f_hat_after(batch.latest)
        images = np.empty((batch.size, side, side, 3), np.uint8)
        # One by one: together they take as long, and hold the activations of all of them at once.
        with batch.timed("decoder", None):
            for i in range(batch.size):
                self._sessions["decoder"].bind({"f_hat": f_hat[i : i + 1]}, {"image": images[i : i + 1]})()
        return images

    def encode(self, images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images)
        tokens = np.empty((len(images), self._manifest.model.tokens), np.int32)
        for i in range(len(images)):
            self._encoder.bind({"image": images[i : i + 1]}, {"tokens": tokens[i : i + 1]})()
        return tokens

    @cached_property
    def _encoder(self) -> Session:
        # Only editing needs it, so only editing pays for it.
        if "encoder" not in self._manifest.graphs:
            raise BundleError(f"{self._bundle}: this bundle has no encoder; export it again with one")
        return self._open("encoder")

    def _open(self, graph: str) -> Session:
        return Session(self._bundle, self._manifest.graphs[graph], self._threads)

    def _begun(self) -> _Batch:
        assert self._batch is not None, "begin comes first"
        return self._batch


class _Batch:
    """All arrays of one batch size, with every stage bound to them: a picture allocates nothing.

    Token-major arrays are as long as the largest scale needs; a smaller one uses the first rows. The past
    keys and values are the first rows of caches for all T tokens, and the new ones go right behind them.
    """

    def __init__(self, size: int, manifest: Manifest, sessions: dict[str, Session], constants: list[Arrays]) -> None:
        model, scales = manifest.model, manifest.scales
        rows, columns = scales[-1].tokens, 2 * size
        self.size = size
        self.latest = -1  # the scale stepped last
        self._on_stage: OnStage | None = None

        self.labels = np.empty(size, np.int64)  # (B,)
        self.guidance, self.top_p = np.empty(1, np.float32), np.empty(1, np.float32)
        self.top_k = np.empty(1, np.int64)
        self.uniforms = [np.empty((size, scale.tokens), np.float32) for scale in scales]
        self.keep = [np.empty((size, scale.tokens), bool) for scale in scales]
        self.kept_tokens, self.drawn, self.tokens = (
            [np.empty((size, scale.tokens), np.int32) for scale in scales] for _ in range(3)
        )
        self.logits = np.empty((rows, columns, model.vocab_size), np.float32)  # (L, 2B, V)
        # Two by turns: a graph may write an output before it has read all of its input.
        f_hat_shape = (size, model.code_size, model.grid, model.grid)  # (B, Z, P, P)
        self._f_hat = [np.empty(f_hat_shape, np.float32) for _ in range(2)]

        x = np.empty((rows, columns, model.width), np.float32)  # (L, 2B, C)
        modulation = {
            "modulation": np.empty((model.depth, 6, columns, model.width), np.float32),
            "head_modulation": np.empty((2, columns, model.width), np.float32),
        }
        cache_shape = (model.tokens, columns, model.heads, model.width // model.heads)  # (T, 2B, H, 64)
        names = [f"{kind}_{block:02}" for kind in "kv" for block in range(model.depth)]
        self.caches = {name: np.empty(cache_shape, np.float32) for name in names}
        self._condition = sessions["condition"].bind({"labels": self.labels}, {**modulation, "x": x[:1]})
        self._stages = []
        for k, scale in enumerate(scales):
            start, end = scale.offset, scale.offset + scale.tokens
            transformer = sessions["transformer"].bind(
                {"x": x[: scale.tokens], **modulation}
                | {f"past_{name}": cache[:start] for name, cache in self.caches.items()},
                {"logits": self.logits[: scale.tokens]}
                | {f"new_{name}": cache[start:end] for name, cache in self.caches.items()},
            )
            bridge = sessions["bridge"].bind(
                {
                    "logits": self.logits[: scale.tokens],
                    "f_hat": self._f_hat[k % 2],
                    "uniforms": self.uniforms[k],
                    "guidance": self.guidance,
                    "top_k": self.top_k,
                    "top_p": self.top_p,
                    "keep": self.keep[k],
                    "kept_tokens": self.kept_tokens[k],
                    **constants[k],
                },
                {
                    "drawn": self.drawn[k],
                    "tokens": self.tokens[k],
                    "f_hat_out": self.f_hat_after(k),
                    "x_next": x[: len(constants[k]["next_positions"])],
                },
            )
            self._stages.append({"transformer": transformer, "bridge": bridge})

    def begin(self, labels: np.ndarray, on_stage: OnStage | None) -> None:
        self.latest = -1
        self._on_stage = on_stage
        self.labels[:] = labels
        self._f_hat[0].fill(0)
        with self.timed("condition", None):
            self._condition()

    def run(self, k: int) -> None:
        for name, stage in self._stages[k].items():
            with self.timed(name, k):
                stage()
        self.latest = k

    @contextmanager
    def timed(self, stage: str, scale: int | None) -> Iterator[None]:
        """Tells `on_stage`, if there is one, how long the block took."""
        start = time.perf_counter()
        yield
        if self._on_stage:
            self._on_stage(stage, scale, time.perf_counter() - start)

    def f_hat_after(self, k: int) -> np.ndarray:
        """(B, Z, P, P)"""
        return self._f_hat[(k + 1) % 2]


def _bridge_constants(bundle: Path, manifest: Manifest) -> list[Arrays]:
    """The bridge's inputs that depend on the scale only. Raises BundleError if the weight file lacks one."""
    constants = []
    with safe_open(bundle / WEIGHTS, framework="numpy") as weights:
        names = set(weights.keys())
        for k, scale in enumerate(manifest.scales):
            # The last scale has no next one: it computes the input of scale 1 once more, which nobody reads.
            following = manifest.scales[(k + 1) % len(manifest.scales) or 1]
            wanted = {"upsample": scale.upsample, "downsample": following.downsample}
            if missing := [name for name in wanted.values() if name not in names]:
                raise BundleError(f"{bundle / WEIGHTS}: has no tensor {missing[0]}; export the bundle again")
            arrays = {key: weights.get_tensor(name) for key, name in wanted.items()}
            arrays["phi"] = np.array([scale.phi], np.int64)
            arrays["next_positions"] = following.offset + np.arange(following.tokens, dtype=np.int64)
            constants.append(arrays)
    return constants
