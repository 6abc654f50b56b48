"""The runtime on an exported bundle of the demo model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime import Pipeline
from runtime.base_pipeline import Result, ScaleView
from runtime.bundle.names import CACHE_PREFIXES


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return Pipeline(demo_bundle)


@pytest.fixture(scope="module")
def labels(pipeline: Pipeline) -> list[int]:
    return [0, 3, pipeline.manifest.model.num_classes, 3, 1]


@pytest.fixture(scope="module")
def drawn(pipeline: Pipeline, labels: list[int]) -> Result:
    return pipeline.generate(labels, seed=5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_picture_does_not_depend_on_its_batch(
    pipeline: Pipeline, labels: list[int], drawn: Result, batch: int
) -> None:
    again = pipeline.generate(labels, seed=5, batch=batch)
    assert all(np.array_equal(a, b) for a, b in zip(again.tokens, drawn.tokens, strict=True))
    assert np.abs(again.images.astype(int) - drawn.images).max() <= 1


def test_seed_and_label_decide(drawn: Result) -> None:
    # Pictures 1 and 3 have the same label and different seeds.
    assert not np.array_equal(drawn.images[1], drawn.images[3])
    assert drawn.images.std() > 0


def test_greedy_draws_the_largest_guided_logit(pipeline: Pipeline) -> None:
    def on_scale(view: ScaleView) -> None:
        assert np.array_equal(view.logits().argmax(axis=2), view.tokens())

    pipeline.generate([0, 1], top_k=1, on_scale=on_scale)


def test_drawn_tokens_put_back_give_the_same_picture(pipeline: Pipeline, labels: list[int], drawn: Result) -> None:
    keep = [np.ones_like(maps, bool) for maps in drawn.tokens]
    again = pipeline.generate(labels, seed=99, keep=keep, kept_tokens=drawn.tokens)
    assert all(np.array_equal(a, b) for a, b in zip(again.tokens, drawn.tokens, strict=True))
    assert np.array_equal(again.images, drawn.images)


def test_encoder_gives_tokens_of_every_scale(pipeline: Pipeline, drawn: Result) -> None:
    tokens = pipeline.encode(drawn.images)
    model = pipeline.manifest.model
    assert [(maps.shape, maps.dtype) for maps in tokens] == [((5, p * p), np.int32) for p in model.patch_nums]
    assert all(maps.min() >= 0 and maps.max() < model.vocab_size for maps in tokens)
    one = pipeline.encode(drawn.images[3:4])
    assert all(np.array_equal(maps[3:4], own) for maps, own in zip(tokens, one, strict=True))


def test_graphs_work_in_the_arrays_they_were_given(pipeline: Pipeline) -> None:
    """Keys and values stay in the same arrays from image to image, and every row of them is written."""

    def caches() -> dict[str, np.ndarray]:
        tensors = pipeline.backend._batch.wiring.steps[-1][0].tensors  # type: ignore[attr-defined]
        return {name: array for name, array in tensors.items() if name.startswith(CACHE_PREFIXES)}

    pipeline.generate([0])
    addresses = {name: cache.ctypes.data for name, cache in caches().items()}
    for cache in caches().values():
        cache.fill(np.nan)
    pipeline.generate([1])
    assert {name: cache.ctypes.data for name, cache in caches().items()} == addresses
    assert all(np.isfinite(cache).all() for cache in caches().values())


def test_memory_does_not_grow_with_pictures(demo_bundle: Path) -> None:
    """An application that draws for weeks must not run out of memory. Measured in a process that does nothing else."""
    code = """
import sys
from runtime.memory import memory
from runtime.pipeline import Pipeline

pipeline, resident = Pipeline(sys.argv[1], "onnxruntime"), []
for seed in range(200):
    pipeline.generate([seed % 29], seed=seed)
    resident.append(memory().resident)
print(max(resident[10:]) - resident[9])
"""
    result = subprocess.run([sys.executable, "-c", code, str(demo_bundle)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1e6  # less than if the arrays of each of the 200 images were kept
