"""Apply a plan to the graphs of a bundle: insert Q/DQ operations that inference engines fuse into INT8 products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from calibration.graph_editor import FLOAT32, UNSIGNED, GraphEditor, add_weight
from calibration.plan import FLOAT, QUANTIZED, Plan
from calibration.product import Operands, Product
from calibration.sites import Site, modulated_by
from calibration.target import SCALES, ZERO_POINTS, Activation, Target, step_input
from calibration.weight import Int8Weight
from export.graphs.signature import Signature
from export.graphs.weights import STORED, Entry
from runtime.bundle.manifest import Tensor
from runtime.bundle.names import CONDITION, TRANSFORMER, channel_scaling


class Quantizer:
    """Rewrites the graphs of one bundle; `entries` are the tensors that are added to its weight file."""

    def __init__(
        self,
        target: Target,
        plan: Plan,
        activations: Mapping[str, Activation],
        channel_scaling: Mapping[str, np.ndarray],
        read: Callable[[str], np.ndarray],
        fold: bool = True,
    ) -> None:
        """With `fold`, `condition` scales the channels of modulated operands, and has to be rewritten too."""
        self.entries: dict[str, Entry] = {}
        self._places: dict[str, int] = {}  # site -> its index in the block's inputs
        self._target, self._activations, self._read = target, activations, read
        self._fold, self._plan = fold, plan
        self._scaling = {key: vector for key, vector in channel_scaling.items() if plan[key] in QUANTIZED}

    def rewrite(self, graph: Signature, model: ir.Model, sites: Sequence[Site]) -> Signature:
        """Change `model` in place; return its signature with the added inputs."""
        inputs = graph.inputs
        if graph.name == TRANSFORMER:
            inputs += tuple(spec for group in _groups(sites).values() for spec in self._step_inputs(model.graph, group))
        nodes = {str(node.outputs[0].name): node for node in model.graph}
        for site in sites:
            if self._plan[site.key] != FLOAT:
                editor = GraphEditor(model.graph, nodes[site.result], site.name, self.entries)
                self._product(editor, site).rewrite()
        if graph.name == CONDITION and self._fold:
            self._fold_scaling(model.graph)
        return Signature(graph.name, inputs, graph.outputs)

    def _product(self, editor: GraphEditor, site: Site) -> Product:
        vector = self._scaling.get(site.key)
        folded = self._fold and modulated_by(site.key) is not None
        operands = Operands(
            self._activations.get(f"{site.key} input"),
            self._activations.get(f"{site.key} output"),
            self._places.get(site.key),
            None if folded else vector,
        )
        return Product(editor, Int8Weight(site, self._target, self._read, vector), operands, self._plan[site.key])

    def _step_inputs(self, graph: ir.Graph, sites: Sequence[Site]) -> Iterator[Tensor]:
        """Yield the inputs for the scales and zero points of a block's operands, with its layers in a fixed order."""
        plain = Activation(np.ones(1, np.float32), np.zeros(1))
        found = [self._activations.get(f"{site.key} input", plain) for site in sites]
        if all(activation is plain for activation in found):
            return
        steps = max(len(activation.scale) for activation in found)
        zero = (UNSIGNED, "uint8") if self._target.unsigned else (FLOAT32, "float32")
        for prefix, field, (dtype, name) in ((SCALES, "scale", (FLOAT32, "float32")), (ZERO_POINTS, "zero", zero)):
            rows = [np.broadcast_to(getattr(activation, field), steps) for activation in found]
            if field == "zero" and not self._target.unsigned and not np.any(rows):
                continue  # symmetric: nothing reads them, and TensorRT drops an input that nothing reads
            tensor = Tensor(step_input(prefix, sites[0]), name, (len(sites),))
            values = np.stack(rows, 1)  # (K, layers)
            self.entries[tensor.name] = Entry(tensor.name, STORED[dtype], values.shape, lambda values=values: values)  # type: ignore[misc]
            graph.inputs.append(ir.Value(name=tensor.name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape)))
            self._places |= {site.key: i for i, site in enumerate(sites)}
            yield tensor

    def _fold_scaling(self, graph: ir.Graph) -> None:
        """Divide the modulation of operands by their channel scaling, so that `condition` does it once per image."""
        for i, output in enumerate(list(graph.outputs)):
            assert output.shape is not None
            factors = np.ones([axis if isinstance(axis, int) else 1 for axis in output.shape], np.float32)
            for key, vector in self._scaling.items():
                made_by = modulated_by(key)
                if made_by and made_by[0] == output.name:
                    for row in made_by[1]:
                        factors[row] /= vector  # (1, C)
            if (factors == 1).all():
                continue
            name = str(output.name)
            output.name = f"{name}.before_smoothing"
            stored = channel_scaling(name)
            weight = add_weight(graph, self.entries, stored, FLOAT32, factors.shape, lambda values=factors: values)  # type: ignore[misc]
            node = ir.node("Mul", [output, weight])
            node.name = f"{name}.smoothed"
            smoothed = node.outputs[0]
            smoothed.name, smoothed.type, smoothed.shape = name, output.type, output.shape
            graph.append(node)
            graph.outputs[i] = smoothed


def _groups(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Group the sites by block; the head is a group of its own."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.block, []).append(site)
    return groups
