"""Read the tensors of one request: check every value before anything is drawn."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import numpy as np

from .. import limits
from ..base_pipeline import BasePipeline, Kept
from ..editing import Box, keep_masks, kept_cells
from ..errors import SettingsError
from ..images import decoded, fitted_mask, fitted_picture
from ..limits import shown
from ..sampling import Sampling
from ..uniforms import check_seed
from .tensors import FORMATS, REQUIRED, known_input

Inputs = Mapping[str, "np.ndarray | None"]  # None: a parameter that is no tensor
EDITS = ("box", "mask", "mode")  # inputs that need an image


@dataclass(frozen=True)
class Request:
    """What to draw, checked."""

    label: int
    seeds: range  # one for each image
    sampling: Sampling  # fitted
    edit: str | None  # the mode of an edit
    kept: Kept | None  # masks (1, p*p) and tokens (1, p*p) of an edit
    previews: bool
    format: str

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.seeds)

    @property
    def key(self) -> tuple[Sampling, str | None]:
        """What must be equal in requests that are drawn together."""
        return self.sampling, self.edit

    @classmethod
    def of(cls, inputs: Inputs, pipeline: BasePipeline) -> Request:
        """Return the request in these tensors. An image to edit is encoded.

        Raises SettingsError, NumericError, or BundleError if the bundle has no graph for it.
        """
        for name, array in inputs.items():
            _check(name, array)
        text = _value(inputs, REQUIRED, None)
        if text is None:
            raise SettingsError(f"{REQUIRED}: expected a class, found none")
        label = pipeline.classes.label(text)
        count = _value(inputs, "count", 1)
        if count not in limits.SERVED:
            raise SettingsError(f"count: expected {limits.SERVED}, found {shown(count)}")
        seed = _value(inputs, "seed", 0)
        check_seed(seed, count)
        given = {each.name: _value(inputs, each.name, each.default) for each in fields(Sampling)}
        sampling = Sampling(**given).fitted(pipeline.manifest.model.vocab_size, len(pipeline.manifest.scales))
        pipeline.check(sampling)
        format = _value(inputs, "format", FORMATS[0])
        if format not in FORMATS:
            raise SettingsError(f"format: expected {', '.join(FORMATS)}, found {shown(format)}")
        previews = _value(inputs, "previews", False)
        kept = _edit(inputs, pipeline)
        edit = None if kept is None else _mode(inputs)
        return cls(label, range(seed, seed + count), sampling, edit, kept, previews, format)


def _check(name: str, array: np.ndarray | None) -> None:
    """Raise SettingsError unless this is an input of the model with one value."""
    expected = (1, *known_input(name).dims)
    if array is None:
        raise SettingsError(f"{name}: expected a tensor, found a parameter of the request")
    if array.shape != expected:
        raise SettingsError(f"{name}: expected the shape {list(expected)}, found {list(array.shape)}; see count")


def _value(inputs: Inputs, name: str, default: Any) -> Any:
    """Return the single value of an input, as Python's type; texts are UTF-8."""
    array = inputs.get(name)
    if array is None:
        return default
    value = array.reshape(-1)[0]
    if not isinstance(value, bytes):
        return value.item()
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: expected UTF-8 text, found {shown(value)}") from None


def _mode(inputs: Inputs) -> Any:
    return _value(inputs, "mode", "inpaint")


def _edit(inputs: Inputs, pipeline: BasePipeline) -> Kept | None:
    """Return what an edit keeps, None without an image."""
    given = [name for name in EDITS if name in inputs]
    if inputs.get("image") is None:
        if given:
            raise SettingsError(f"image: expected one with {given[0]}, found none")
        return None
    if ("box" in given) == ("mask" in given):
        raise SettingsError("box, mask: expected one of the two with image")
    model = pipeline.manifest.model
    picture = decoded(_file(inputs, "image"), "image")
    region: Box | np.ndarray
    if "box" in given:
        y0, x0, y1, x1 = np.asarray(inputs["box"]).ravel().tolist()
        region = y0, x0, y1, x1
    else:
        mask = decoded(_file(inputs, "mask"), "mask", "black")
        region = fitted_mask(mask, "mask", picture, "image", model.image_size)
    kept = kept_cells(region, _mode(inputs), model)
    pixels = fitted_picture(picture, "image", model.image_size, smallest=model.grid)
    return keep_masks(kept, model.patch_nums), pipeline.encode(pixels[None])


def _file(inputs: Inputs, name: str) -> BytesIO:
    """Return the content of an image file, which JSON can carry as base64 only. No image file is base64 throughout.

    Raises SettingsError if it is larger than a file may be.
    """
    data: bytes = np.asarray(inputs[name]).reshape(-1)[0]
    with suppress(binascii.Error):
        data = base64.b64decode(data, validate=True)
    if len(data) > limits.PICTURE_BYTES:
        raise SettingsError(f"{name}: expected at most {limits.PICTURE_BYTES} bytes, found {len(data)}")
    return BytesIO(data)
