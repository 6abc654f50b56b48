"""Writes a plan into the graphs of a bundle, as Q/DQ operations that inference engines fuse into INT8 products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from calibration.plan import DIGITS, FLOAT, INT8, Plan
from calibration.product import Product
from calibration.sites import Site, modulated_by
from calibration.target import BYTE, FLOAT32, SCALES, UNSIGNED, ZERO_POINTS, Activation, Target
from export.signature import Signature
from export.weights import Entry
from runtime.manifest import Tensor

Compute = Callable[[], np.ndarray]


class Quantizer:
    """Rewrites the graphs of one bundle; `entries` are the tensors that this adds to its weight file."""

    def __init__(
        self,
        target: Target,
        plan: Plan,
        activations: Mapping[str, Activation],
        smoothing: Mapping[str, np.ndarray],
        read: Callable[[str], np.ndarray],
        fold: bool = True,
    ) -> None:
        """With `fold` it is `condition` that smooths modulated operands, and has to be rewritten too."""
        self.entries: dict[str, Entry] = {}
        self.target, self.activations, self.read = target, activations, read
        self.fold, self._plan = fold, plan
        self.smoothing = {key: vector for key, vector in smoothing.items() if plan[key] in (INT8, DIGITS)}

    def rewrite(self, graph: Signature, model: ir.Model, sites: Sequence[Site]) -> Signature:
        """Changes `model` in place; returns its signature with the inputs that this adds."""
        by_step = [site.key for site in sites if self._plan[site.key] in (INT8, DIGITS) and graph.name == "transformer"]
        inputs = graph.inputs
        if by_step:
            kind = "uint8" if self.target.unsigned else "float32"
            inputs += (Tensor(SCALES, "float32", (len(by_step),)), Tensor(ZERO_POINTS, kind, (len(by_step),)))
            self._inputs(model.graph, len(by_step))
            found = [self.activations[f"{key} input"] for key in by_step]
            zero = "U8" if self.target.unsigned else "F32"
            self._add_entry(SCALES, "F32", np.stack([activation.scale for activation in found], 1))  # (K, sites)
            self._add_entry(ZERO_POINTS, zero, np.stack([activation.zero for activation in found], 1))
        nodes = {str(node.outputs[0].name): node for node in model.graph}
        for site in sites:
            if self._plan[site.key] != FLOAT:
                row = by_step.index(site.key) if site.key in by_step else None
                Product(self, model.graph, nodes[site.result], site, self._plan[site.key], row).rewrite()
        if graph.name == "condition" and self.fold:
            self._fold_smoothing(model.graph)
        return Signature(graph.name, inputs, graph.outputs)

    def _inputs(self, graph: ir.Graph, count: int) -> None:
        zero = UNSIGNED if self.target.unsigned else FLOAT32
        for name, dtype in ((SCALES, FLOAT32), (ZERO_POINTS, zero)):
            graph.inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([count])))

    def _add_entry(self, name: str, dtype: str, values: np.ndarray) -> None:
        self.entries[name] = Entry(name, dtype, values.shape, lambda: values)

    def _fold_smoothing(self, graph: ir.Graph) -> None:
        """Divides what modulates an operand by the operand's smoothing: `condition` computes it once a picture."""
        for i, output in enumerate(list(graph.outputs)):
            assert output.shape is not None
            factors = np.ones([axis if isinstance(axis, int) else 1 for axis in output.shape], np.float32)
            for key, vector in self.smoothing.items():
                made_by = modulated_by(key)
                if made_by and made_by[0] == output.name:
                    for row in made_by[1]:
                        factors[row] /= vector  # (1, C)
            if (factors == 1).all():
                continue
            name = str(output.name)
            output.name = f"{name}.before_smoothing"
            weight = self.weight(graph, f"{name}.smoothing", FLOAT32, factors.shape, lambda values=factors: values)  # type: ignore[misc]
            node = ir.node("Mul", [output, weight])
            node.name = f"{name}.smoothed"
            smoothed = node.outputs[0]
            smoothed.name, smoothed.type, smoothed.shape = name, output.type, output.shape
            graph.append(node)
            graph.outputs[i] = smoothed

    def weight(
        self, graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], np.ndarray]
    ) -> ir.Value:
        """A new tensor of the weight file, as an initializer of `graph`."""
        if name not in graph.initializers:
            graph.initializers.add(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
            names = {FLOAT32: "F32", BYTE: "I8", UNSIGNED: "U8", ir.DataType.INT32: "I32"}
            self.entries.setdefault(name, Entry(name, names[dtype], shape, compute))
        return graph.initializers[name]
