"""The bundles that the points are drawn with, checked before any of them is loaded, then loaded once for all points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from examples.shortcuts.point import Point, default_points
from runtime.base_pipeline import BasePipeline
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import TINY_DECODER
from runtime.drafted import DraftedPipeline, check_draft_scales, check_fit
from runtime.errors import SettingsError
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling


@dataclass(frozen=True)
class Bundles:
    """The directories of a model and, if there is one, of the smaller model that refines what it drafts."""

    large: Path
    refiner: Path | None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.large, self.refiner) if path]

    @cached_property
    def manifests(self) -> dict[Path, Manifest]:
        """The manifests of both. Raises BundleError."""
        return {path: Manifest.load(path, verify=False) for path in self.paths}

    @property
    def manifest(self) -> Manifest:
        """The manifest of the large model."""
        return self.manifests[self.large]

    @property
    def precision(self) -> str:
        """FP32, FP16 or INT8."""
        return self.manifest.precision.kind.upper()

    def used(self, point: Point) -> list[Path]:
        """Return the bundles that draw a point. The last one decodes."""
        if point.draft_scales is None or self.refiner is None:
            return [self.large]
        return [self.large, self.refiner] if point.draft_scales else [self.refiner]

    def default_points(self) -> list[Point]:
        """Return the points of these bundles: those of `point.default_points` that they can draw."""
        tiny = all(TINY_DECODER in manifest.graphs for manifest in self.manifests.values())
        return default_points(len(self.manifest.scales), self.refiner is not None, tiny)

    def check(self) -> None:
        """Raise SettingsError or BundleError unless the refiner can go on with the tokens of the large model."""
        if self.refiner:
            check_fit(self.large, self.manifest, self.refiner, self.manifests[self.refiner])

    def check_point(self, point: Point) -> None:
        """Raise SettingsError if these bundles cannot draw a point."""
        model = self.manifest.model
        try:
            if point.draft_scales is not None:
                if self.refiner is None:
                    raise SettingsError(f"needs a smaller model beside {self.large}; give it as --refiner")
                check_draft_scales(point.draft_scales, len(model.patch_nums))
            point.sampling(Sampling()).fitted(model.vocab_size, len(model.patch_nums))
            decoding = self.used(point)[-1]
            if point.tiny and TINY_DECODER not in self.manifests[decoding].graphs:
                raise SettingsError(f"{decoding} has no tiny decoder; export it with --tiny-decoder FILE")
        except SettingsError as error:
            raise SettingsError(f"--points: {point}: {error}") from None


@dataclass(frozen=True)
class Candidate:
    """A row of the table: a point, drawn with these bundles."""

    bundles: Bundles
    point: Point

    @property
    def paths(self) -> list[Path]:
        """The bundles that draw it."""
        return self.bundles.used(self.point)

    def __str__(self) -> str:
        return f"{self.bundles.precision} {self.point}"


def candidates(several: Sequence[Bundles], points: Sequence[Point]) -> list[Candidate]:
    """Return the rows of the table: first the exact path of the first bundles, then all points, or the default ones.

    Raises SettingsError or BundleError for what these bundles cannot draw. Nothing is loaded.
    """
    found = [Candidate(several[0], Point())]
    for bundles in several:
        bundles.check()
        for point in points or bundles.default_points():
            bundles.check_point(point)
            found.append(Candidate(bundles, point))
    return list(dict.fromkeys(found))


def check_same_model(exact: Bundles, other: Bundles) -> None:
    """Raise SettingsError unless both are of the same models and weights, in two precisions."""
    for ours, theirs in zip(exact.paths, other.paths, strict=True):
        one, two = exact.manifests[ours], other.manifests[theirs]
        if one.model != two.model or not one.provenance.same_checkpoints(two.provenance):
            raise SettingsError(f"{theirs}: expected the model of {ours}, found another; give it in INT8")
        if one.precision.kind == two.precision.kind:
            expected = f"expected another precision than {ours}"
            raise SettingsError(f"{theirs}: {expected}, found {two.precision.kind.upper()}")


class Models:
    """Loaded bundles, those that the candidates need. `close` closes them."""

    def __init__(self, wanted: Iterable[Candidate], threads: int | None) -> None:
        paths = dict.fromkeys(path for candidate in wanted for path in candidate.paths)
        self._loaded = {path: Pipeline(path, threads=threads) for path in paths}

    @property
    def loaded(self) -> list[Path]:
        """The bundles that are loaded."""
        return list(self._loaded)

    def pipeline(self, candidate: Candidate) -> BasePipeline:
        """Return what draws a candidate."""
        count = candidate.point.draft_scales
        if not count:
            return self._loaded[candidate.paths[-1]]
        draft, refiner = (self._loaded[path] for path in candidate.paths)
        return DraftedPipeline(draft, refiner, count)

    def close(self) -> None:
        for pipeline in self._loaded.values():
            pipeline.close()

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
