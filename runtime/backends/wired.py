"""The common part of all backends: run the stages of a `Wiring`, and copy the requested arrays to numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..bundle.manifest import Manifest
from ..bundle.names import DRAWN, FINITE, IMAGE, REQUIRED_GRAPHS, SMOOTH_BRIDGE, TINY_DECODER, TOKENS
from ..errors import BundleError, with_room
from ..sampling import Sampling
from .arrays import Array, Arrays
from .base import Observe, OnStage, Plan, StageRun
from .wiring import Stage, Wiring

# How many kinds of batches (smooth sampling, number of guided scales) stay prepared, the newest: else those of every
# number of guided scales that was ever drawn would stay until memory runs out.
KINDS_KEPT = 3

Ran = Callable[[Stage], None]  # called with each stage as soon as it has run
Kind = tuple[bool, int]  # smooth sampling, and the number of guided scales
Shape = tuple[int, Kind]  # what a batch is prepared for: its size and kind


class Batch(Protocol):
    """The stages of one batch size on their arrays."""

    wiring: Wiring
    arrays: Arrays
    latest: int  # the scale of the latest step, -1 before the first

    def prepare(self, plan: Plan, whole: bool, decoder: str) -> None:
        """Do now what would disturb or delay the drawing of the plan, and allocate what it needs.

        `whole` is whether the image is started as one in `decode`, and `decoder` the graph of its decoder.
        """

    def begin(self, on_stage: OnStage | None, ran: Ran | None, whole: bool) -> None:
        """Start drawing; `whole` as for `prepare`. The labels of the wiring must not change before."""

    def step(self, k: int) -> None: ...

    def decode(self, decoder: str) -> None:
        """Run this decoder's graph, and bring the results of the wiring to the host."""

    def report(self) -> None:
        """Tell `on_stage` the times that it has not heard yet. All work that was queued must have finished."""

    def free(self) -> None:
        """Wait for the work that is queued, and release the memory."""


B = TypeVar("B", bound=Batch)


class WiredBackend(ABC, Generic[B]):
    """A `Backend` on a `Wiring`. Each engine implements `_new_batch`, which sets up a batch size, and `encode`."""

    name: str
    batches: tuple[int, ...] | None
    launches_whole = False
    keeps_batches = False  # whether all batch sizes of the newest kinds stay prepared, or only the latest batch

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest  # the manifest of the graphs that run: with engines, that of the engines
        self._batches: dict[Shape, B] = {}
        self._kinds: list[Kind] = []  # the newest last
        self._batch: B | None = None
        self._decoded = False
        self._sampling = Sampling()

    @property
    def _drawing_graphs(self) -> list[str]:
        """The graphs to load at once: those that every bundle has, and the tiny decoder if there is one."""
        return [*REQUIRED_GRAPHS, *({TINY_DECODER} & self.manifest.graphs.keys())]

    @abstractmethod
    def _new_batch(self, arrays: Arrays, size: int, kind: Kind) -> B: ...

    @abstractmethod
    def _arrays(self) -> Arrays: ...

    @abstractmethod
    def encode(self, images: np.ndarray) -> np.ndarray: ...

    def check(self, sampling: Sampling) -> None:
        if sampling.smooth and SMOOTH_BRIDGE not in self.manifest.graphs:
            advice = "make onnx SMOOTH=1 exports the bundle with it"
            raise BundleError(f"{self.manifest.model.name}: no graph for smooth sampling; {advice}")
        if sampling.decoder_graph not in self.manifest.graphs:
            advice = "export it with --tiny-decoder FILE, which examples.tiny_decoder.distill makes"
            raise BundleError(f"{self.manifest.model.name}: no tiny decoder in this bundle; {advice}")

    def begin(
        self,
        labels: np.ndarray,
        sampling: Sampling,
        on_stage: OnStage | None = None,
        observe: Observe | None = None,
        plan: Plan | None = None,
    ) -> None:
        self._batch, self._decoded = None, False
        self.check(sampling)
        plan = plan or Plan(len(self.manifest.scales), image=True, asked=True)
        # The noise of smooth sampling is large: it is made for one scale while the scale before is drawn.
        whole = plan.whole and on_stage is None and observe is None and not sampling.smooth
        self._sampling = sampling
        self._batch = batch = self._prepared((len(labels), (sampling.smooth, sampling.scales_guided)), plan, whole)
        batch.arrays.wait()  # a run that was stopped may still read the settings that are written now
        batch.wiring.set_labels(labels)
        batch.begin(on_stage, None if observe is None else _shown(observe, batch.arrays), whole)

    def step(
        self, k: int, randoms: np.ndarray, keep: np.ndarray | None = None, kept_tokens: np.ndarray | None = None
    ) -> None:
        self._decoded = False
        self._begun.wiring.set_scale(k, randoms, self._sampling, keep, kept_tokens)
        self._begun.step(k)

    def drawn(self, k: int) -> np.ndarray:
        return self._result(k, DRAWN)

    def tokens(self, k: int) -> np.ndarray:
        return self._result(k, TOKENS)

    def logits(self) -> np.ndarray:
        rows = self.manifest.scales[self._begun.latest].tokens
        return self._begun.arrays.download(self._begun.wiring.logits[:rows])

    def decode(self, preview: bool = False) -> np.ndarray:
        tiny = preview and TINY_DECODER in self.manifest.graphs
        self._begun.decode(TINY_DECODER if tiny else self._sampling.decoder_graph)
        self._decoded = True
        self._begun.report()
        return self._result(-1, IMAGE)

    def finite(self) -> np.ndarray:
        return self._result(-1, FINITE)[:, 0]

    def free_batches(self) -> None:
        self._batch = None
        while self._batches:
            self._batches.popitem()[1].free()

    def close(self) -> None:
        self.free_batches()

    def _result(self, part: int, name: str) -> np.ndarray:
        """Return a copy of an array of the wiring's results. After `decode` they are on the host already."""
        results = self._begun.wiring.results
        if not self._decoded:
            downloaded = self._begun.arrays.download(results.stages[part][name])
            self._begun.report()  # a draft ends without `decode`
            return downloaded
        copied: np.ndarray = results.host[part][name].copy()
        return copied

    def _prepared(self, wanted: Shape, plan: Plan, whole: bool) -> B:
        """Return the batch of this shape, ready to draw.

        If memory runs out, all that is held is freed and it is tried again. Raises OutOfMemoryError.
        """
        if not self.keeps_batches and wanted not in self._batches:
            self.free_batches()  # before new arrays are allocated
        self._free_oldest_kind(wanted[1])
        return with_room(self._room, lambda: self._prepare(wanted, plan, whole))

    @property
    def _room(self) -> Callable[[], None] | None:
        """What frees the memory of batches; None if none is held."""
        return self.free_batches if self._batches else None

    def _free_oldest_kind(self, wanted: Kind) -> None:
        """Free the batches of the kind that was not drawn for the longest time if there are more than are kept."""
        self._kinds = [*(kind for kind in self._kinds if kind != wanted), wanted][-KINDS_KEPT:]
        for shape in [shape for shape in self._batches if shape[1] not in self._kinds]:
            self._batches.pop(shape).free()

    def _prepare(self, wanted: Shape, plan: Plan, whole: bool) -> B:
        batch, arrays = self._batches.get(wanted), None
        try:
            if batch is None:
                arrays = self._arrays()
                batch = self._new_batch(arrays, *wanted)
            batch.prepare(plan, whole, self._sampling.decoder_graph)
        except BaseException:
            # The traceback of the error would keep the memory for as long as someone looks at it.
            self._batches.pop(wanted, None)
            if batch is not None:
                batch.free()
            elif arrays is not None:
                arrays.free()
            raise
        self._batches[wanted] = batch
        return batch

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
