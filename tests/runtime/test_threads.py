"""Threads share one Pipeline: their calls run in turn; calls that would block for ever or mix images are refused."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime import Pipeline, SettingsError
from runtime.base_pipeline import ScaleView

SETTINGS = {"cfg": 2.0, "top_k": 3, "top_p": 0.5}
INSIDE = "called from its own on_scale, on_stage or observe"


def draw(pipeline: Pipeline, seed: int) -> np.ndarray:
    """Draw an image; the batch size, and so all arrays, change from seed to seed."""
    return pipeline.generate([seed % 5] * (1 + seed % 3), seed, **SETTINGS).images


@pytest.fixture
def pipeline(toy_bundle: Path) -> Pipeline:
    return Pipeline(toy_bundle, "onnxruntime", threads=1)


def test_a_thousand_pictures_over_four_threads(pipeline: Pipeline) -> None:
    expected = [draw(pipeline, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: draw(pipeline, i % 40), range(1000)))
    for i, images in enumerate(found):
        np.testing.assert_array_equal(images, expected[i % 40])


def test_asyncio(pipeline: Pipeline) -> None:
    expected = [draw(pipeline, seed) for seed in range(8)]

    async def together() -> list[np.ndarray]:
        return await asyncio.gather(*(asyncio.to_thread(draw, pipeline, seed) for seed in range(8)))

    for images, wanted in zip(asyncio.run(together()), expected, strict=True):
        np.testing.assert_array_equal(images, wanted)


@pytest.mark.parametrize(
    "call",
    [
        lambda pipeline: draw(pipeline, 1),
        lambda pipeline: pipeline.encode(np.zeros((1, 6, 6, 3), np.uint8)),
        lambda pipeline: pipeline.edit(np.zeros((6, 6, 3), np.uint8), (0, 0, 1, 1), **SETTINGS),
        lambda pipeline: asyncio.run(asyncio.to_thread(draw, pipeline, 1)),  # would wait for itself
    ],
)
@pytest.mark.parametrize("hook", ["on_scale", "on_stage"])
def test_a_call_from_a_callback_is_refused(call: Callable[[Pipeline], object], hook: str, pipeline: Pipeline) -> None:
    expected = draw(pipeline, 3)
    with pytest.raises(SettingsError, match=INSIDE):
        pipeline.generate([1], **SETTINGS, **{hook: lambda *_: call(pipeline)})
    np.testing.assert_array_equal(draw(pipeline, 3), expected)  # and the next call works


def test_another_pipeline_may_draw_in_a_callback_but_not_call_back(pipeline: Pipeline, toy_bundle: Path) -> None:
    other, found = Pipeline(toy_bundle, "onnxruntime", threads=1), []
    expected, wanted = draw(other, 2), draw(pipeline, 1)
    drawn = pipeline.generate([1] * 2, 1, **SETTINGS, on_scale=lambda view: found.append(draw(other, 2)))
    np.testing.assert_array_equal(found[-1], expected)
    np.testing.assert_array_equal(drawn.images, wanted)
    with pytest.raises(SettingsError, match=INSIDE):
        pipeline.generate(
            [1], on_scale=lambda _: other.generate([1], on_scale=lambda _: draw(pipeline, 1), **SETTINGS), **SETTINGS
        )


def test_a_callback_that_raises_ends_the_turn(pipeline: Pipeline) -> None:
    expected = draw(pipeline, 3)

    def stop(view: ScaleView) -> None:
        raise KeyError(view.index)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyError):
            pipeline.generate([1], **SETTINGS, on_scale=stop)
        np.testing.assert_array_equal(pool.submit(draw, pipeline, 3).result(timeout=60), expected)


def test_a_callback_may_start_what_comes_after_it(pipeline: Pipeline) -> None:
    """A thread that the callback does not wait for runs its call when the image is done."""
    expected, threads, found = draw(pipeline, 4), [], []

    def begin(view: ScaleView) -> None:
        threads.append(threading.Thread(target=lambda: found.append(draw(pipeline, 4))))
        threads[-1].start()

    pipeline.generate([1], **SETTINGS, on_scale=begin)
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    for images in found:
        np.testing.assert_array_equal(images, expected)


def test_a_view_ends_with_its_callback(pipeline: Pipeline) -> None:
    views: list[ScaleView] = []
    pipeline.generate([1], **SETTINGS, on_scale=views.append)
    for view in views:
        assert view.side in (1, 2, 3)
        for look in (view.tokens, view.logits, view.preview):
            with pytest.raises(SettingsError, match="view: used after on_scale returned"):
                look()


def test_another_process_loads_its_own(pipeline: Pipeline) -> None:
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="load the bundle in each process"):
            duplicate(pipeline)
    pipeline._process += 1  # as in a forked child
    with pytest.raises(SettingsError, match="load the bundle in each process"):
        draw(pipeline, 1)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_forked_child_is_told(pipeline: Pipeline) -> None:
    def child() -> None:
        try:
            draw(pipeline, 1)
        except SettingsError as error:
            said.put(str(error))

    context = multiprocessing.get_context("fork")
    said = context.Queue()
    process = context.Process(target=child)
    with pipeline._lock:  # as if another thread was drawing when the process was forked
        process.start()
    assert "load the bundle in each process" in said.get(timeout=60)
    process.join(60)
