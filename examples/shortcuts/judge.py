"""What a shortcut costs: how far the images of a demo bundle are from those of the exact path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from examples.demo_model.classes import CLASSES
from examples.demo_model.classifier import load_classifier
from examples.demo_model.compare import SAMPLING, Judged, draw, drop, frechet_ratio, judged
from examples.shortcuts.point import Point
from export.verify.fidelity import Teacher
from export.verify.interval import Estimate
from runtime.base_pipeline import BasePipeline
from runtime.bundle.classes import ClassNames
from runtime.bundle.manifest import Manifest
from runtime.drafted import DraftedPipeline
from runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Quality:
    """The quality of a candidate, as docs/int8.md measures that of INT8."""

    accuracy: float  # share of the images that the classifier recognises
    lost: float  # points of accuracy lost to the exact path
    lost_margin: float
    frechet: float  # distance to exact images of other seeds, as a multiple of the exact path's own
    frechet_margin: float
    kl: float  # nats, mean per token

    @property
    def drop(self) -> Estimate:
        return Estimate(self.lost, self.lost_margin)

    @property
    def frechet_ratio(self) -> Estimate:
        return Estimate(self.frechet, self.frechet_margin)


def why_not_judged(bundle: Path, manifest: Manifest) -> str | None:
    """Return why nothing can judge the images of a bundle; None if the classifier can. Raises BundleError."""
    if "random_weights" in manifest.provenance.source:
        return "random weights draw nothing that could be judged"
    if ClassNames.load(bundle, manifest).names != tuple(tuple(each.names.split(", ")) for each in CLASSES):
        return "its classes are not those of the demo model, the only ones that there is a classifier for"
    return None


class Judge:
    """Compares shortcuts with the exact path of `exact`, by `per_class` images of each class and `tokens` tokens."""

    def __init__(self, exact: Pipeline, per_class: int, tokens: int) -> None:
        self._exact, self._tokens = exact, tokens
        self._labels = np.repeat(np.arange(len(CLASSES)), per_class)

    def quality(self, pipeline: BasePipeline, point: Point) -> Quality:
        """Return the quality of a point that `pipeline` draws."""
        same = pipeline is self._exact and point == Point()
        found = self._base if same else self._seen(pipeline, point, 0)
        lost, frechet = drop(self._base, found), frechet_ratio(found, self._base, self._other)
        alone = not pipeline.draft and pipeline.manifest.model != self._exact.manifest.model
        compared = DraftedPipeline(self._exact, pipeline, 0) if alone else pipeline  # a refiner drafted for in no scale
        fidelity = self._teacher.compare(compared, sampling=point.sampling(self._teacher.sampling))
        return Quality(found.accuracy, lost.value, lost.margin, frechet.value, frechet.margin, fidelity.kl)

    @cached_property
    def _teacher(self) -> Teacher:
        return Teacher.draw(self._exact, self._tokens)

    @cached_property
    def _base(self) -> Judged:
        return self._seen(self._exact, Point(), 0)

    @cached_property
    def _other(self) -> Judged:
        """The exact path with other seeds."""
        return self._seen(self._exact, Point(), len(self._labels))

    def _seen(self, pipeline: BasePipeline, point: Point, seed: int) -> Judged:
        images = draw(pipeline, self._labels, seed, point.sampling(SAMPLING))
        return judged(load_classifier(), images, self._labels)
