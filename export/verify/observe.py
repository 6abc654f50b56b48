"""The real runtime loop, with a look at tensors inside its graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from runtime.backends.arrays import Array
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.ort_session import Session
from runtime.bundle.manifest import Manifest, Tensor

OnValues = Callable[[str, int, Mapping[str, np.ndarray]], None]  # graph, scale (0 where there is one), tensor -> values


class ObservingBackend(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU that shows `on_values` the tensors `observed`, by graph, after every run.

    The arrays are the same each time: they hold what is shown until the next run.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        observed: Mapping[str, Mapping[str, tuple[int | str, ...]]],
        on_values: OnValues,
    ) -> None:
        self._observed, self.on_values = observed, on_values
        self._buffers: dict[tuple[str, str], np.ndarray] = {}
        super().__init__(bundle, manifest)

    def _open(self, graph: str) -> Session:
        tensors = self._observed.get(graph, {})
        if not tensors:
            return super()._open(graph)
        listed = self._manifest.graphs[graph]
        path = self._bundle / listed.file
        model = onnx.load(path, load_external_data=False)
        model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in tensors)
        wider = replace(
            listed, outputs=(*listed.outputs, *(Tensor(name, "float32", shape) for name, shape in tensors.items()))
        )
        session = Session(self._bundle, wider, self._threads, content=model.SerializeToString())
        plain = session.bind

        def bind(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
            sizes = {
                axis: size
                for specs, arrays in ((listed.inputs, inputs), (listed.outputs, outputs))
                for spec in specs
                for axis, size in zip(spec.shape, arrays[spec.name].shape, strict=True)
                if isinstance(axis, str)
            }
            shapes = {n: tuple(sizes[a] if isinstance(a, str) else a for a in shape) for n, shape in tensors.items()}
            found = {name: self._buffer(graph, name, shape) for name, shape in shapes.items()}
            run = plain(inputs, {**outputs, **found})
            scale = next((k for k, s in enumerate(self._manifest.scales) if s.tokens == sizes.get("L")), 0)

            def run_and_show() -> None:
                run()
                self.on_values(graph, scale, found)

            return run_and_show

        session.bind = bind  # type: ignore[method-assign]
        return session

    def _buffer(self, graph: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One for all scales: as large as the largest needs."""
        by_token = "L" in self._observed[graph][name]
        size = math.prod(shape)
        largest = size // shape[0] * self._manifest.scales[-1].tokens if by_token else size
        held = self._buffers.get((graph, name))
        if held is None or held.size < largest:
            held = self._buffers[graph, name] = np.zeros(largest, np.float32)
        return held[:size].reshape(shape)
