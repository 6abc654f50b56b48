"""Draw requests that wait together: those with equal settings as one batch, each with its own seeds."""

from __future__ import annotations

import base64
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base_pipeline import BasePipeline, Kept, ScaleView
from ..errors import BundleError, SettingsError, VarEdgeError, one_line
from ..images import encoded_png
from ..record import Record
from .request import Inputs, Request

Outputs = dict[str, np.ndarray]  # see tensors.OUTPUTS
Members = Mapping[int, Request]  # by their place in the list of requests


@dataclass(frozen=True)
class Answer:
    """A response to the request at this place: outputs, or an error; neither ends a cancelled request."""

    request: int
    outputs: Outputs | None = None
    error: str | None = None
    code: str = "INTERNAL"  # the name of Triton's error code
    last: bool = True

    @classmethod
    def failed(cls, request: int, error: Exception) -> Answer:
        """Return the response for an error."""
        known = isinstance(error, VarEdgeError)
        codes: dict[type[Exception], str] = {SettingsError: "INVALID_ARG", BundleError: "UNSUPPORTED"}
        text = str(error) if known else one_line(f"unexpected error: {error!r}; the server's log has the details")
        return cls(request, error=text, code=codes.get(type(error), "INTERNAL"))


class _Cancelled(Exception):
    """Nobody waits for this batch any more."""


def draw(
    pipeline: BasePipeline,
    waiting: Sequence[Inputs],
    batch: int,
    send: Callable[[Answer], object],
    cancelled: Callable[[], set[int]],
) -> None:
    """Answer each of the `waiting` requests, and draw at most `batch` images together.

    `cancelled` returns the places of requests that were cancelled by now. It is called after every scale: a batch whose
    requests are all cancelled stops there. A request that fails does not touch the others.
    """
    groups: dict[object, dict[int, Request]] = defaultdict(dict)
    for i, inputs in enumerate(waiting):
        try:
            request = Request.of(inputs, pipeline)
        except Exception as error:
            send(_failed(i, error))
        else:
            groups[request.key][i] = request
    for group in groups.values():
        for members in _packed(group, batch):
            try:
                _draw_together(pipeline, members, batch, send, cancelled)
            except _Cancelled:
                for i in members:
                    send(Answer(i))
            except Exception as error:
                for i in members:
                    send(_failed(i, error))


def _failed(request: int, error: Exception) -> Answer:
    if not isinstance(error, VarEdgeError):
        traceback.print_exc()
    return Answer.failed(request, error)


def _packed(group: Members, batch: int) -> Iterator[dict[int, Request]]:
    """Yield the requests in parts of at most `batch` images, so that the first are answered first."""
    part: dict[int, Request] = {}
    for i, request in group.items():
        if part and sum(each.count for each in part.values()) + request.count > batch:
            yield part
            part = {}
        part[i] = request
    yield part


def _draw_together(
    pipeline: BasePipeline,
    members: Members,
    batch: int,
    send: Callable[[Answer], object],
    cancelled: Callable[[], set[int]],
) -> None:
    """Draw these requests and send their answers. Raises _Cancelled, VarEdgeError."""
    scales = len(pipeline.manifest.scales)
    rows: dict[int, range] = {}
    for i, request in members.items():
        start = rows[next(reversed(rows))].stop if rows else 0
        rows[i] = range(start, start + request.count)
    requests = list(members.values())
    keep, kept_tokens = _kept(requests)
    settings: dict[str, Any] = {
        "labels": [request.label for request in requests for _ in request.seeds],
        "seed": [seed for request in requests for seed in request.seeds],
        "batch": batch,
        "sampling": requests[0].sampling,
    }
    record = Record.of(pipeline, **settings, edit=requests[0].edit)
    records = {i: [record.picture(row) for row in rows[i]] for i in members}
    parts: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def on_scale(view: ScaleView) -> None:
        gone = cancelled()
        if members.keys() <= gone:
            raise _Cancelled
        wanted = [i for i, request in members.items() if request.previews and i not in gone]
        seen = {i: _overlap(rows[i], view.pictures) for i in wanted}
        if view.last or not any(map(len, seen.values())):  # the picture of the last scale is the result
            return
        images, tokens = view.preview(), view.tokens()
        for i, inside in seen.items():
            part = slice(inside.start - view.pictures.start, inside.stop - view.pictures.start)
            if inside:
                parts[i, view.index].append((images[part], tokens[part]))
            if inside and inside.stop == rows[i].stop:  # the last batch with pictures of this request
                preview, drawn = (np.concatenate(arrays) for arrays in zip(*parts.pop((i, view.index)), strict=True))
                outputs = _outputs(members[i].format, records[i], preview, drawn, view.index)
                send(Answer(i, outputs, last=False))

    if members.keys() <= cancelled():
        raise _Cancelled
    result = pipeline.generate(**settings, keep=keep, kept_tokens=kept_tokens, on_scale=on_scale)
    for i, request in members.items():
        part = slice(rows[i].start, rows[i].stop)
        tokens = np.concatenate([maps[part] for maps in result.tokens], axis=1)
        send(Answer(i, _outputs(request.format, records[i], result.images[part], tokens, scales - 1)))


def _overlap(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _kept(requests: list[Request]) -> Kept | tuple[None, None]:
    """Return `keep` and `kept_tokens` of edits with one row for each image, None for requests that keep nothing."""
    kept = [request.kept for request in requests for _ in request.seeds if request.kept]
    if not kept:
        return None, None
    masks, tokens = ([np.concatenate(maps) for maps in zip(*parts, strict=True)] for parts in zip(*kept, strict=True))
    return masks, tokens


def _outputs(format: str, records: Sequence[Record], images: np.ndarray, tokens: np.ndarray, scale: int) -> Outputs:
    """Return the tensors of a response: images (N, H, W, 3) uint8, tokens (N, …) int32, the index of the scale.

    Each PNG file holds its record.
    """
    outputs = {"tokens": tokens.astype(np.int32), "scale": np.array([[scale]], np.int32)}
    if format == "uint8":
        return outputs | {"image": images}
    files = [encoded_png(image, record) for image, record in zip(images, records, strict=True)]
    if format == "base64":
        files = list(map(base64.b64encode, files))
    return outputs | {"png": np.array([[file] for file in files], object)}
