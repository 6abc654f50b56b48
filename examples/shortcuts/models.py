"""The bundles that the points are drawn with, loaded once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.shortcuts.point import Point
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

    def manifest(self) -> Manifest:
        return Manifest.load(self.large, verify=False)

    def used(self, point: Point) -> list[Path]:
        """Return the bundles that draw a point."""
        if point.draft_scales is None or self.refiner is None:
            return [self.large]
        return [self.large, self.refiner] if point.draft_scales else [self.refiner]

    def check(self, points: list[Point]) -> None:
        """Raise SettingsError or BundleError for points that these bundles cannot draw. Nothing is loaded."""
        manifests = {path: Manifest.load(path, verify=False) for path in (self.large, self.refiner) if path}
        if self.refiner:
            check_fit(self.large, manifests[self.large], self.refiner, manifests[self.refiner])
        model = manifests[self.large].model
        for point in points:
            if point.draft_scales is not None:
                if self.refiner is None:
                    raise SettingsError(f"{point}: needs a smaller model beside {self.large}; give it as --refiner")
                check_draft_scales(point.draft_scales, len(model.patch_nums))
            point.sampling(Sampling()).fitted(model.vocab_size, len(model.patch_nums))
            decoding = self.used(point)[-1]
            if point.tiny and TINY_DECODER not in manifests[decoding].graphs:
                raise SettingsError(f"{point}: {decoding} has no tiny decoder; export it with --tiny-decoder FILE")


class Models:
    """Loaded bundles. `close` closes them."""

    def __init__(self, bundles: Bundles, threads: int | None) -> None:
        self._large = Pipeline(bundles.large, threads=threads)
        self._refiner = Pipeline(bundles.refiner, threads=threads) if bundles.refiner else None

    def pipeline(self, point: Point) -> Pipeline | DraftedPipeline:
        """Return what draws a point."""
        if point.draft_scales is None or self._refiner is None:
            return self._large
        return DraftedPipeline(self._large, self._refiner, point.draft_scales)

    def close(self) -> None:
        self._large.close()
        if self._refiner:
            self._refiner.close()
