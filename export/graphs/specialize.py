"""Specialise the symbolic graph for fixed sizes: the per-scale steps have static KV-cache shapes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx


def specialize(model: onnx.ModelProto, sizes: Mapping[str, int], name: str) -> onnx.ModelProto:
    """Return a copy of `model` whose symbolic axes have the values in `sizes`, with all intermediate shapes inferred.

    Nodes and weights do not change: traced graphs have no shape arithmetic. Raises ValueError if an axis has no size.
    """
    static = onnx.ModelProto()
    static.CopyFrom(model)
    static.graph.name = name
    for value in (*static.graph.input, *static.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_param"):
                if axis.dim_param not in sizes:
                    raise ValueError(f"{name}: {value.name}: no size given for axis {axis.dim_param}")
                axis.dim_value = sizes[axis.dim_param]
    return onnx.shape_inference.infer_shapes(static, check_type=True, strict_mode=True, data_prop=True)
