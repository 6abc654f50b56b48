"""Requests that wait together: each gets the tokens that the Pipeline draws alone, or the Pipeline's error."""

from __future__ import annotations

import base64
import weakref
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.base_pipeline import ScaleView
from runtime.errors import VarEdgeError
from runtime.images import encoded_png
from runtime.pipeline import Pipeline
from runtime.record import Record
from runtime.sampling import Sampling
from runtime.serving.batches import Answer, draw
from runtime.serving.client import TYPES
from runtime.serving.tensors import INPUTS, OUTPUTS
from tests.runtime.toy import SIDES

PLAIN = {"cfg": 2.0, "top_k": 3, "top_p": 0.5}


def tensors(**given: Any) -> dict[str, np.ndarray]:
    """The tensors of a request, as Triton hands them over."""
    found = {}
    for name, value in given.items():
        wanted = INPUTS[name]
        value = value.encode() if isinstance(value, str) else value
        found[name] = np.array(value, TYPES[wanted.datatype]).reshape(1, *wanted.dims)
    return found


def answers(
    pipeline: Pipeline,
    waiting: Sequence[Any],
    batch: int = 8,
    cancelled: Callable[[], set[int]] = set,
) -> list[list[Answer]]:
    """Return the answers to each request, in the order in which they came."""
    sent: list[Answer] = []
    draw(pipeline, waiting, batch, sent.append, cancelled)
    found = [[answer for answer in sent if answer.request == i] for i in range(len(waiting))]
    assert all([answer.last for answer in each] == [False] * (len(each) - 1) + [True] for each in found)
    return found


@pytest.fixture
def pipeline(toy_bundle: Path) -> Pipeline:
    return Pipeline(toy_bundle)


@pytest.fixture
def drawn(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the pipeline drew."""
    calls: list[int] = []
    generate = pipeline.generate

    def counted(labels: list[int], *others: Any, **settings: Any) -> Any:
        calls.append(len(labels))
        return generate(labels, *others, **settings)

    monkeypatch.setattr(pipeline, "generate", counted)
    return calls


def assert_drawn(
    answer: Answer, pipeline: Pipeline, label: int | str, seed: int, count: int = 1, **settings: Any
) -> None:
    """The answer holds what the pipeline draws alone."""
    alone = pipeline.generate([label] * count, seed, **settings)
    assert answer.error is None and answer.outputs is not None
    assert answer.outputs.keys() <= OUTPUTS.keys()
    assert np.array_equal(answer.outputs["tokens"], np.concatenate(alone.tokens, axis=1))
    files = answer.outputs["png"]
    assert files.shape == (count, 1)
    shown = np.stack([np.asarray(Image.open(BytesIO(file))) for file in files.ravel()])
    assert np.abs(shown.astype(int) - alone.images).max() <= 1


def test_equal_settings_are_drawn_together_with_their_own_seeds(pipeline: Pipeline, drawn: list[int]) -> None:
    waiting = [tensors(label=str(i % 5), seed=100 * i, **PLAIN) for i in range(5)]
    waiting.insert(2, tensors(label="goldfish", seed=7, **(PLAIN | {"cfg": 1.1})))
    found = answers(pipeline, waiting)
    assert drawn == [5, 1]
    assert_drawn(found[2][0], pipeline, "goldfish", 7, **(PLAIN | {"cfg": 1.1}))
    for i, place in enumerate((0, 1, 3, 4, 5)):
        assert_drawn(found[place][0], pipeline, i % 5, 100 * i, **PLAIN)


def test_no_batch_is_larger_than_allowed(pipeline: Pipeline, drawn: list[int]) -> None:
    counts = (2, 2, 1, 9, 1)
    found = answers(pipeline, [tensors(label="1", seed=i, count=n, top_k=3) for i, n in enumerate(counts)], batch=4)
    assert drawn == [4, 1, 9, 1]  # the pipeline itself splits nine
    for i, count in enumerate(counts):
        assert_drawn(found[i][0], pipeline, 1, i, count, top_k=3)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_one_response_for_each_scale(pipeline: Pipeline, count: int) -> None:
    waiting = [tensors(label="3", seed=5, top_k=3), tensors(label="2", seed=9, count=count, top_k=3, previews=True)]
    (plain,), scales = answers(pipeline, waiting, batch=3)
    assert_drawn(plain, pipeline, 3, 5, top_k=3)
    assert_drawn(scales[-1], pipeline, 2, 9, count, top_k=3)
    seen: list[np.ndarray] = []
    pipeline.generate([2] * count, 9, top_k=3, on_scale=lambda view: seen.append(view.preview()))
    assert len(scales) == len(SIDES)
    for k, answer in enumerate(scales):
        outputs = answer.outputs
        assert outputs is not None
        assert outputs["scale"].tolist() == [[k]]
        records = [Record.of(pipeline, 2, 9 + i, 1, Sampling(top_k=3)) for i in range(count)]
        expected = [encoded_png(image, record) for image, record in zip(seen[k], records, strict=True)]
        assert outputs["png"].ravel().tolist() == expected
    assert [len(answer.outputs["tokens"][0]) for answer in scales if answer.outputs] == [1, 4, 1 + 4 + 9]


def test_previews_that_were_sent_are_not_kept(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large images at every scale would fill the memory until the last."""
    made: list[weakref.ref[np.ndarray]] = []
    kept: list[int] = []
    preview = ScaleView.preview

    def watched(view: ScaleView) -> np.ndarray:
        images = preview(view)
        made.append(weakref.ref(images))
        return images

    monkeypatch.setattr(ScaleView, "preview", watched)
    waiting = [tensors(label="2", count=2, top_k=3, previews=True)]
    draw(pipeline, waiting, 8, lambda _: kept.append(sum(each() is not None for each in made[:-1])), set)
    assert len(made) == len(SIDES) - 1
    assert kept[:-1] == [0] * len(made)  # while a scale is sent, nothing of the scales before it is left


def test_a_request_image_has_the_size_of_a_file_at_most(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded_png(np.zeros((6, 6, 3), np.uint8))
    monkeypatch.setattr("runtime.limits.PICTURE_BYTES", len(file) - 1)
    waiting = [tensors(label="1", image=image, box=(0, 0, 1, 1)) for image in (file, base64.b64encode(file))]
    found = [each[0].error for each in answers(pipeline, waiting)]
    assert found == [f"image: expected at most {len(file) - 1} bytes, found {len(file)}"] * 2


def test_formats(pipeline: Pipeline) -> None:
    waiting = [tensors(label="3", top_k=3, format=name) for name in ("png", "base64", "uint8")]
    first, second, third = (found[0].outputs or {} for found in answers(pipeline, waiting))
    record = Record.of(pipeline, [3], 0, 1, Sampling(top_k=3))
    assert base64.b64decode(second["png"].item()) == first["png"].item() == encoded_png(third["image"][0], record)
    assert third["image"].shape == (1, 6, 6, 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"label": "gold"}, "label 'gold': may be 1 (goldfish), 4 (golden retriever); give the number"),
        ({"label": "7"}, "label: expected 0 to 5 (5 means no class), found 7"),
        ({"label": b"\xff"}, "label: expected UTF-8 text, found b'\\xff'"),
        ({}, "label: expected a class, found none"),
        ({"count": 0}, "count: expected 1 to 64, found 0"),
        ({"count": 2**31 - 1}, "count: expected 1 to 64, found 2147483647"),
        ({"seed": 2**64 - 1, "count": 2}, "seed: expected 0 to 2**64 - 2 for 2 image(s), found 18446744073709551615"),
        ({"cfg": float("nan")}, "cfg: expected 0 to 1000, found nan"),
        ({"top_k": 65}, "top_k: expected 0 (all) to 64, found 65"),
        ({"top_p": -1.0}, "top_p: expected 0 (all) or 1e-06 to 1, found -1.0"),
        ({"guidance_scales": 9}, "guidance_scales: expected 1 to 3, found 9"),
        ({"decoder": "huge"}, "decoder: expected full or tiny, found 'huge'"),
        ({"format": "gif"}, "format: expected png, base64, uint8, found 'gif'"),
        ({"box": (0, 0, 1, 1)}, "image: expected one with box, found none"),
        ({"image": b"no"}, "box, mask: expected one of the two with image"),
        (
            {"image": b"no", "box": (0, 0, 1, 1)},
            "image: cannot be read as an image (unknown format); give a PNG, JPEG or WebP file",
        ),
    ],
)
def test_bad_input_is_an_answer_and_touches_no_other(pipeline: Pipeline, inputs: dict[str, Any], message: str) -> None:
    bad = tensors(**({"label": "1", "top_k": 3} | inputs if inputs else {"top_k": 3}))
    found = answers(pipeline, [tensors(label="1", seed=4, top_k=3), bad, tensors(label="2", seed=4, top_k=3)])
    assert (found[1][0].error, found[1][0].code, found[1][0].outputs) == (message, "INVALID_ARG", None)
    assert_drawn(found[0][0], pipeline, 1, 4, top_k=3)
    assert_drawn(found[2][0], pipeline, 2, 4, top_k=3)


def test_a_misspelt_input_and_a_batch_are_refused(pipeline: Pipeline) -> None:
    two = {"label": np.array([[b"1"], [b"2"]], object)}
    (misspelt,), (batched,) = answers(pipeline, [tensors(label="1") | {"topk": None}, two])
    assert str(misspelt.error).startswith("'topk': no input has this name; the inputs are label, seed, count, ")
    assert batched.error == "label: expected the shape [1, 1], found [2, 1]; see count"


def test_what_the_bundle_lacks(pipeline: Pipeline) -> None:
    ((answer,),) = answers(pipeline, [tensors(label="1", smooth=True)])
    assert answer.code == "UNSUPPORTED"
    with pytest.raises(VarEdgeError) as error:
        pipeline.generate([1], smooth=True)
    assert answer.error == str(error.value)


def test_an_error_of_ours_is_an_answer_too(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(pipeline, "generate", broken)
    found = answers(pipeline, [tensors(label="1"), tensors(label="2")])
    for (answer,) in found:
        assert answer.error == "unexpected error: RuntimeError('a bug'); the server's log has the details"
    assert "Traceback" in capsys.readouterr().err


def test_cancelled_requests_stop_between_scales(pipeline: Pipeline) -> None:
    """A batch stops when nobody waits for it; a request that is still wanted is drawn."""
    asked: list[int] = []

    def after(scales: int, *requests: int) -> Callable[[], set[int]]:
        asked.clear()
        return lambda: {*requests} if asked.append(0) or len(asked) > scales else set()

    waiting = [tensors(label="1", seed=i, top_k=3, previews=True) for i in range(2)]
    found = answers(pipeline, waiting, cancelled=after(2, 0, 1))  # asked before the first scale, too
    assert len(asked) == 3
    assert [[answer.outputs is None for answer in each] for each in found] == [[False, True]] * 2
    found = answers(pipeline, waiting, cancelled=after(0, 0))
    assert len(asked) == 1 + len(SIDES)
    assert_drawn(found[1][-1], pipeline, 1, 1, top_k=3)
    assert len(found[0]) == 1  # no previews for nobody


def test_edits_are_those_of_the_pipeline(demo_bundle: Path) -> None:
    pipeline = Pipeline(demo_bundle)
    photo = pipeline.generate(["heart", "clock"], seed=3).images
    box = (0.0, 0.5, 1.0, 1.0)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    common = {"label": "none", "top_k": 300}
    files = [encoded_png(image) for image in photo]
    waiting = [
        tensors(image=files[0], box=box, seed=11, **common),
        tensors(image=base64.b64encode(files[1]), mask=encoded_png(mask), seed=11, count=2, mode="outpaint", **common),
        tensors(image=files[0], mask=encoded_png(mask[:32]), **common),
        tensors(image=files[0], box=(0, 0, 0, 1), **common),
        tensors(image=files[0], box=box, mode="over", **common),
    ]
    found = answers(pipeline, waiting)
    for i, count, mode in ((0, 1, "inpaint"), (1, 2, "outpaint")):
        alone = pipeline.edit(photo[i], box, mode, ["none"] * count, seed=11, top_k=300)
        outputs = found[i][0].outputs
        assert outputs is not None
        assert np.array_equal(outputs["tokens"], np.concatenate(alone.tokens, axis=1))
    assert [found[i][0].error for i in (2, 3, 4)] == [
        "mask: expected 64 x 64 pixels like image, found 64 x 32",
        "box: expected 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1, found 0,0,0,1",
        "mode: expected inpaint or outpaint, found 'over'",
    ]
