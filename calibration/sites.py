"""Find the sites: the products of data with a weight in a graph, which can become INT8."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from export.graphs.simulate import typed
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import CONDITION, DECODER, HEAD_MODULATION, MODULATION, TRANSFORMER

GRAPHS = (CONDITION, TRANSFORMER, DECODER)  # the bridge's few products decide tokens; generation skips the encoder
MODULATED = re.compile(r"transformer: (?:blocks\.(\d+)\.(?:attn\.(mat_qkv)|ffn\.(fc1))|(head))")


@dataclass(frozen=True)
class Site:
    """One product. `operand` and `result` are tensors of the graph; `weight` is a tensor of the weight file."""

    graph: str
    name: str  # the layer: blocks.0.attn.mat_qkv
    op: str  # MatMul, Gemm or Conv
    operand: str
    operand_shape: tuple[int | str, ...]  # (L, 2B, C), (2B, C) or (B, C, H, W)
    result: str
    result_shape: tuple[int | str, ...]
    weight: str
    weight_shape: tuple[int, ...]  # MatMul (in, out), Gemm (out, in), Conv (out, in, h, w)

    @property
    def key(self) -> str:
        return f"{self.graph}: {self.name}"

    @property
    def channels(self) -> int:
        """The number of channels of the operand."""
        return self.weight_shape[0 if self.op == "MatMul" else 1]

    @property
    def has_rows(self) -> bool:
        """Whether each row of the operand becomes a row of the result. A convolution adds up a window of the map."""
        return self.op != "Conv"

    @property
    def block(self) -> str:
        """The number of the transformer block, "03", or the site's name outside the blocks."""
        found = re.match(r"blocks\.(\d+)\.", self.name)
        return f"{int(found[1]):02d}" if found else self.name

    @property
    def out_axis(self) -> int:
        """The axis of the weight's output channels."""
        return 1 if self.op == "MatMul" else 0


def modulated_by(site_key: str) -> tuple[str, tuple[tuple[int, ...], ...]] | None:
    """Return the output of `condition` that modulates a product's operand, and the indices of scale and shift in it.

    Returns None for an operand without modulation. The indices follow `export.model.transformer.Block`.
    """
    found = MODULATED.fullmatch(site_key)
    if not found:
        return None
    if found[4]:
        return HEAD_MODULATION, ((0,), (1,))
    rows = (2, 4) if found[2] else (3, 5)
    return MODULATION, tuple((int(found[1]), row) for row in rows)


def open_graph(bundle: Path, manifest: Manifest, name: str) -> ir.Model:
    """Load a graph of the bundle with the dtype of every value; tensors of the weight file have no values."""
    model = typed(bundle / manifest.graphs[name].file)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None
    return model


def find_sites(graph: str, model: ir.Model) -> list[Site]:
    """Return the products of a graph from `open_graph`, in the order they are computed."""
    found = []
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        operand, weight = node.inputs[0], node.inputs[1]
        if operand is None or weight is None or not _is_weight(weight) or operand.producer() is None:
            continue  # a product of two activations is attention; a graph's input is no activation
        shape = tuple(weight.shape.numpy()) if weight.shape else ()
        name = re.sub(r"\.weight(\.\w+)?$", "", str(weight.name))
        shapes = _shapes(node, shape)
        found.append(
            Site(graph, name, node.op_type, str(operand.name), shapes[0], str(node.outputs[0].name), shapes[1],
                 str(weight.name), shape)
        )  # fmt: skip
    return found


def all_sites(bundle: Path, manifest: Manifest) -> list[Site]:
    return [site for name in GRAPHS for site in find_sites(name, open_graph(bundle, manifest, name))]


def _shapes(node: ir.Node, weight: tuple[int, ...]) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """Return the shapes of operand and result: tracing gives the sizes of maps, the graph's inputs give the rows."""
    if node.op_type == "Conv":
        before, after = (value.shape for value in (node.inputs[0], node.outputs[0]) if value is not None)
        return _map(before), _map(after)
    rows = ("L", "2B") if node.op_type == "MatMul" else ("2B",)
    inside, outside = weight if node.op_type == "MatMul" else weight[::-1]
    return (*rows, inside), (*rows, outside)


def _map(shape: ir.Shape | None) -> tuple[int | str, ...]:
    """Return the shape of a map as (B, C, H, W)."""
    assert shape is not None
    return ("B", *(axis for axis in list(shape)[1:] if isinstance(axis, int)))


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is None
