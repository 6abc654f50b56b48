"""The committed demo model: make demo must show emoji, the same in PyTorch and in the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.demo_model.classifier import load_classifier, predict
from examples.demo_model.evaluate import agreement, as_pictures, recognised
from examples.demo_model.train import WEIGHTS
from runtime.pipeline import Pipeline
from tests.export.agreement import assert_sound

SETTINGS = {"cfg": 5.0, "top_k": 300, "top_p": 0.9}


def test_the_committed_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 24e6


def test_pictures_are_recognised(demo_bundle: Path) -> None:
    shares, _ = recognised(Pipeline(demo_bundle), load_classifier(), 6, SETTINGS)
    assert shares.mean() >= 0.7


def test_the_judge_tells_classes_apart(demo_bundle: Path) -> None:
    """Else the share above says nothing: images without a class must not be taken for every class."""
    pipeline = Pipeline(demo_bundle)
    images = pipeline.generate([pipeline.manifest.model.num_classes] * 58, **SETTINGS).images  # type: ignore[arg-type]
    found = predict(load_classifier(), as_pictures(images)).numpy()
    assert (found == np.arange(58) % 29).mean() < 0.2


def test_pytorch_and_runtime_draw_the_same_64_pictures(demo_bundle: Path) -> None:
    assert_sound(agreement(Pipeline(demo_bundle), 64, SETTINGS))
