"""The inputs and outputs of the served model: one table for config.pbtxt, the server and the client."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingsError
from ..limits import shown

NAME = "var_edge"  # the usual name of the model
FORMATS = ("png", "base64", "uint8")  # of the images in a response


@dataclass(frozen=True)
class Tensor:
    """A tensor of KServe v2. Its first axis is not in `dims`: 1 for an input, the N images for an output."""

    datatype: str
    dims: tuple[int, ...] = (1,)


# Numbers that Python computes with as float are FP64, so that a request draws what the same settings draw in Python.
INPUTS = {
    "label": Tensor("BYTES"),
    "seed": Tensor("UINT64"),
    "count": Tensor("INT32"),
    "cfg": Tensor("FP64"),
    "top_k": Tensor("INT32"),
    "top_p": Tensor("FP64"),
    "smooth": Tensor("BOOL"),
    "guidance_scales": Tensor("INT32"),
    "decoder": Tensor("BYTES"),
    "image": Tensor("BYTES"),
    "box": Tensor("FP64", (4,)),
    "mask": Tensor("BYTES"),
    "mode": Tensor("BYTES"),
    "previews": Tensor("BOOL"),
    "format": Tensor("BYTES"),
}
REQUIRED = "label"
OUTPUTS = {
    "png": Tensor("BYTES"),
    "image": Tensor("UINT8", (-1, -1, 3)),
    "tokens": Tensor("INT32", (-1,)),
    "scale": Tensor("INT32"),
}


def known_input(name: str) -> Tensor:
    """Return the input of this name. Raises SettingsError if there is none."""
    if name not in INPUTS:
        raise SettingsError(f"{shown(name)}: no input has this name; the inputs are {', '.join(INPUTS)}")
    return INPUTS[name]
