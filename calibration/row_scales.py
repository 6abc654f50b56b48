"""Compute the scale of every row of an INT8 operand in the graph, from the row itself: no ranges are needed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calibration.graph_editor import FLOAT32, GraphEditor

LEAST_MAGNITUDE = 1e-30  # of a row of zeros: its scale may be any number but 0
LEAST_GELU = -0.1701  # the minimum of GELU is -0.17004, at -0.7525


def row_scale(edit: GraphEditor, x: ir.Value, one_sided: bool) -> tuple[ir.Value, ir.Value | None]:
    """Insert the scale (…, 1) of each row of `x` (…, C), and its zero point if it is `one_sided` as after GELU.

    The scale is `max(|x|) / 127`; for a one-sided row the 254 steps reach from LEAST_GELU to `max(x)`. The scale of a
    row with NaN is NaN: Q would make a number of it, and the maximum of ONNX Runtime and TensorRT ignores it.
    """
    axis = edit.constant("row.axis", np.array([-1], np.int64))

    def number(name: str, value: float) -> ir.Value:
        return edit.constant(f"row.{name}", np.array(value, np.float32))

    total = edit.before("ReduceSum", [x, axis], FLOAT32, "row.sum", keepdims=1)
    has_nan = edit.before("IsNaN", [total], ir.DataType.BOOL, "row.has_nan")
    if one_sided:
        largest = edit.before("ReduceMax", [x, axis], FLOAT32, "row.largest", keepdims=1)
        width = edit.before("Sub", [largest, number("least_gelu", LEAST_GELU)], FLOAT32, "row.width")
        step = number("step_of_width", 1 / 254)
    else:
        magnitude = edit.before("Abs", [x], FLOAT32, "row.magnitude")
        largest = edit.before("ReduceMax", [magnitude, axis], FLOAT32, "row.largest", keepdims=1)
        width = edit.before("Max", [largest, number("least", LEAST_MAGNITUDE)], FLOAT32, "row.width")
        step = number("step", 1 / 127)
    known = edit.before("Where", [has_nan, total, width], FLOAT32, "row.width_or_nan")
    scale = edit.before("Mul", [known, step], FLOAT32, "row.scale")
    if not one_sided:
        return scale, None
    steps_below = edit.before("Div", [number("least_gelu", LEAST_GELU), scale], FLOAT32, "row.least_steps")
    from_end = edit.before("Sub", [number("first_step", -127), steps_below], FLOAT32, "row.first_step")
    return scale, edit.before("Round", [from_end], FLOAT32, "row.zero")
