"""What all backends do the same way: run the stages of a `Wiring`, and bring to numpy what is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..bundle.manifest import Manifest
from ..errors import BundleError
from ..sampling import Sampling
from .arrays import Arrays
from .base import OnStage, Outputs
from .wiring import SMOOTH_BRIDGE, Stage, Wiring


class Batch(Protocol):
    """The stages of one batch size, ready to run on their arrays."""

    wiring: Wiring
    arrays: Arrays
    latest: int  # the scale stepped last, -1 before the first

    def begin(self, labels: np.ndarray, on_stage: OnStage | None) -> None: ...

    def step(self, k: int) -> None: ...

    def decode(self) -> np.ndarray: ...

    def finite(self) -> np.ndarray: ...

    def free(self) -> None:
        """Gives back what the garbage collector does not."""


B = TypeVar("B", bound=Batch)


class WiredBackend(ABC, Generic[B]):
    """See `Backend`; what differs from engine to engine is `_prepare`, which readies a batch size."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._batch: B | None = None

    @abstractmethod
    def _prepare(self, size: int, smooth: bool) -> B: ...

    def begin(self, labels: np.ndarray, on_stage: OnStage | None = None, smooth: bool = False) -> None:
        wanted = len(labels), smooth
        if self._batch is None or (self._batch.wiring.size, self._batch.wiring.smooth) != wanted:
            if self._batch:
                self._batch.free()
            self._batch = None  # the arrays of the other kind first
            if smooth and SMOOTH_BRIDGE not in self._manifest.graphs:
                advice = "make onnx SMOOTH=1 exports the bundle with it"
                raise BundleError(f"{self._manifest.model.name}: no graph for smooth sampling; {advice}")
            self._batch = self._prepare(*wanted)
        self._batch.begin(labels, on_stage)

    def step(
        self,
        k: int,
        randoms: np.ndarray,
        guidance: float,
        sampling: Sampling,
        keep: np.ndarray | None = None,
        kept_tokens: np.ndarray | None = None,
    ) -> None:
        self.batch.wiring.set_scale(k, randoms, guidance, sampling, keep, kept_tokens)
        self.batch.step(k)

    def drawn(self, k: int) -> np.ndarray:
        return self.batch.arrays.download(self.batch.wiring.drawn[k])

    def tokens(self, k: int) -> np.ndarray:
        return self.batch.arrays.download(self.batch.wiring.tokens[k])

    def logits(self) -> np.ndarray:
        rows = self._manifest.scales[self.batch.latest].tokens
        return self.batch.arrays.download(self.batch.wiring.logits[:rows])

    def decode(self) -> np.ndarray:
        return self.batch.decode()

    def finite(self) -> np.ndarray:
        return self.batch.finite()

    def started(self) -> dict[str, np.ndarray]:
        """What condition has just made; the first scale's step overwrites some of it."""
        return self._downloaded(self.batch.wiring.condition)

    def outputs(self, k: int) -> Outputs:
        """Graph -> tensor -> what the stages of scale k, just stepped, made."""
        return {stage.graph: self._downloaded(stage) for stage in self.batch.wiring.steps[k]}

    def _downloaded(self, stage: Stage) -> dict[str, np.ndarray]:
        return {name: self.batch.arrays.download(array) for name, array in stage.outputs.items()}

    @property
    def batch(self) -> B:
        """The batch that was begun: its arrays are what the stages see."""
        assert self._batch is not None, "begin comes first"
        return self._batch
