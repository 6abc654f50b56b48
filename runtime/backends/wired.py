"""The common part of all backends: run the stages of a `Wiring`, and copy the requested arrays to numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..bundle.manifest import Manifest
from ..bundle.names import SMOOTH_BRIDGE
from ..errors import BundleError
from ..sampling import Sampling
from .arrays import Array, Arrays
from .base import Observe, OnStage, StageRun
from .wiring import Stage, Wiring

Ran = Callable[[Stage], None]  # called with each stage as soon as it has run


class Batch(Protocol):
    """The stages of one batch size, ready to run on their arrays."""

    wiring: Wiring
    arrays: Arrays
    latest: int  # the scale of the latest step, -1 before the first

    def begin(self, labels: np.ndarray, on_stage: OnStage | None, ran: Ran | None) -> None: ...

    def step(self, k: int) -> None: ...

    def decode(self) -> np.ndarray: ...

    def finite(self) -> np.ndarray: ...

    def free(self) -> None:
        """Release the resources that the garbage collector does not."""


B = TypeVar("B", bound=Batch)


class WiredBackend(ABC, Generic[B]):
    """A `Backend` on a `Wiring`. Each engine implements `_prepare`, which sets up a batch size, and `encode`."""

    name: str
    batches: tuple[int, ...] | None

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest  # the manifest of the graphs that run: with engines, that of the engines
        self._batch: B | None = None
        self._sampling = Sampling()

    @abstractmethod
    def _prepare(self, size: int, smooth: bool) -> B: ...

    @abstractmethod
    def encode(self, images: np.ndarray) -> np.ndarray: ...

    def begin(
        self, labels: np.ndarray, sampling: Sampling, on_stage: OnStage | None = None, observe: Observe | None = None
    ) -> None:
        wanted = len(labels), sampling.smooth
        if self._batch is None or (self._batch.wiring.size, self._batch.wiring.smooth) != wanted:
            self._forget_batch()  # frees its arrays before new ones are allocated
            if sampling.smooth and SMOOTH_BRIDGE not in self.manifest.graphs:
                advice = "make onnx SMOOTH=1 exports the bundle with it"
                raise BundleError(f"{self.manifest.model.name}: no graph for smooth sampling; {advice}")
            self._batch = self._prepare(*wanted)
        self._sampling = sampling
        self._batch.begin(labels, on_stage, None if observe is None else _shown(observe, self._batch.arrays))

    def step(
        self, k: int, randoms: np.ndarray, keep: np.ndarray | None = None, kept_tokens: np.ndarray | None = None
    ) -> None:
        self._begun.wiring.set_scale(k, randoms, self._sampling, keep, kept_tokens)
        self._begun.step(k)

    def drawn(self, k: int) -> np.ndarray:
        return self._begun.arrays.download(self._begun.wiring.drawn[k])

    def tokens(self, k: int) -> np.ndarray:
        return self._begun.arrays.download(self._begun.wiring.tokens[k])

    def logits(self) -> np.ndarray:
        rows = self.manifest.scales[self._begun.latest].tokens
        return self._begun.arrays.download(self._begun.wiring.logits[:rows])

    def decode(self) -> np.ndarray:
        return self._begun.decode()

    def finite(self) -> np.ndarray:
        return self._begun.finite()

    def _forget_batch(self) -> None:
        if self._batch:
            self._batch.free()
        self._batch = None

    @property
    def _begun(self) -> B:
        assert self._batch is not None, "begin comes first"
        return self._batch


class _Tensors(Mapping[str, np.ndarray]):
    """The arrays of a stage by name, each downloaded when it is looked up."""

    def __init__(self, held: Mapping[str, Array], arrays: Arrays) -> None:
        self._held, self._arrays = held, arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays.download(self._held[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def _shown(observe: Observe, arrays: Arrays) -> Ran:
    """Return a callback that shows each stage that has run to `observe`."""

    def ran(stage: Stage) -> None:
        inputs, outputs = _Tensors(stage.inputs, arrays), _Tensors(stage.outputs, arrays)
        observe(StageRun(stage.graph, stage.scale, inputs, outputs))

    return ran
