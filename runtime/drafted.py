"""Draft large, refine small: one model draws the first scales, a smaller one with the same VQVAE draws the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import limits
from .backends.base import Backend, Observe, OnStage, StageRun
from .bundle.classes import NO_CLASS, ClassNames
from .bundle.manifest import Manifest
from .editing import Box, keep_masks, kept_cells
from .errors import BundleError, SettingsError
from .limits import shown
from .pipeline import Pipeline, Result, ScaleView
from .sampling import BATCH, Sampling

SHARED = ("patch_nums", "vocab_size", "num_classes", "image_size")  # keys of the model that must be equal
DRAFT = "draft "  # begins the names of the draft's graphs for `on_stage` and `observe`


class DraftedPipeline:
    """Two pipelines that draw an image together: `draft` the first `draft_scales` scales, `refiner` the others.

    The refiner gets the tokens of the draft as kept tokens, and decodes. With 0 scales the refiner draws alone; with
    all scales it draws no token of its own. Bundles, precisions and backends may differ, but not the VQVAE, see
    `check_fit`. Both stay in memory. `close` closes both. Raises SettingsError, or BundleError for a bundle that is too
    old.
    """

    def __init__(self, draft: Pipeline, refiner: Pipeline, draft_scales: int) -> None:
        check_fit(draft.bundle, draft.manifest, refiner.bundle, refiner.manifest)
        check_draft_scales(draft_scales, len(refiner.manifest.scales))
        self.draft, self.refiner, self.draft_scales = draft, refiner, draft_scales

    @classmethod
    def load(
        cls,
        draft: str | os.PathLike[str],
        bundle: str | os.PathLike[str],
        draft_scales: int,
        backend: str = "auto",
        threads: int | None = None,
        verify: bool = True,
    ) -> DraftedPipeline:
        """Load both bundles; see `Pipeline` for the arguments. That they fit is checked before they are loaded."""
        paths = Path(draft), Path(bundle)
        manifests = [Manifest.load(path, verify=False) for path in paths]
        check_fit(paths[0], manifests[0], paths[1], manifests[1])
        check_draft_scales(draft_scales, len(manifests[1].scales))
        drafting, refining = (Pipeline(path, backend, threads, verify) for path in paths)
        return cls(drafting, refining, draft_scales)

    @property
    def bundle(self) -> Path:
        """The directory of the refiner's bundle."""
        return self.refiner.bundle

    @property
    def manifest(self) -> Manifest:
        """The manifest of the refiner."""
        return self.refiner.manifest

    @property
    def classes(self) -> ClassNames:
        """The classes of the refiner."""
        return self.refiner.classes

    @property
    def backend(self) -> Backend:
        """The backend of the refiner."""
        return self.refiner.backend

    @property
    def launches_whole(self) -> bool:
        """Whether one of the models that draw is faster if nobody listens."""
        return self.refiner.launches_whole or (self.draft_scales > 0 and self.draft.launches_whole)

    @property
    def drawn_with(self) -> str:
        """The names of both backends."""
        return f"{self.draft.drawn_with} for {self.draft_scales} scale(s), then {self.refiner.drawn_with}"

    def generate(
        self,
        labels: int | str | Sequence[int | str],
        seed: int | Sequence[int] = 0,
        *,
        keep: Sequence[np.ndarray] | None = None,
        kept_tokens: Sequence[np.ndarray] | None = None,
        batch: int = BATCH,
        on_scale: Callable[[ScaleView], None] | None = None,
        on_stage: OnStage | None = None,
        sampling: Sampling | None = None,
        observe: Observe | None = None,
        **settings: Any,
    ) -> Result:
        """Draw one image for each label. The arguments and errors are those of `Pipeline.generate`.

        The draft draws its scales of all images, then the refiner draws the rest. `on_scale` is called once for each
        scale of a batch, with the logits and tokens of the model that drew it. For `on_stage` and `observe` the names
        of the draft's graphs begin with `DRAFT`. Smooth sampling is refused: mixed codes are no tokens to hand over.
        """
        count = self.draft_scales
        shared: dict[str, Any] = {"batch": batch, "on_stage": on_stage, "observe": observe}
        if not count:
            shared |= {"keep": keep, "kept_tokens": kept_tokens, "on_scale": on_scale, "sampling": sampling}
            return self.refiner.generate(labels, seed, **shared, **settings)
        model = self.manifest.model
        chosen = Sampling.chosen(sampling, Sampling(**settings)).fitted(model.vocab_size, len(model.patch_nums))
        self.check(chosen)
        numbers = self.classes.labels(labels)
        tokens, drawn = self.draft.draw_tokens(
            numbers,
            seed,
            count,
            keep,
            kept_tokens,
            batch,
            on_scale,
            on_stage and _named(on_stage),
            self._drafting(chosen),
            observe and _shown(observe),
        )
        rest = model.patch_nums[count:]
        masks = [np.ones_like(maps, bool) for maps in tokens]
        masks += keep[count:] if keep is not None else [np.zeros((1, side * side), bool) for side in rest]
        given = [*tokens, *(kept_tokens[count:] if kept_tokens is not None else [])]
        given += [np.zeros((1, side * side), np.int32) for side in model.patch_nums[len(given) :]]

        def refined(view: ScaleView) -> None:
            if on_scale and view.index >= count:
                on_scale(view)

        shared |= {"keep": masks, "kept_tokens": given, "on_scale": on_scale and refined, "sampling": chosen}
        result = self.refiner.generate(numbers, seed, **shared)
        return replace(result, drawn=[*drawn, *result.drawn[count:]] if keep is not None else result.tokens)

    def check(self, sampling: Sampling) -> None:
        """Raise SettingsError or BundleError if `generate` would refuse these settings."""
        if self.draft_scales and sampling.smooth:
            raise SettingsError("smooth: expected no smooth sampling with a draft; remove one of the two")
        self.refiner.check(sampling)
        if not self.draft_scales:
            return
        model = self.manifest.model
        self.draft.check(self._drafting(sampling.fitted(model.vocab_size, len(model.patch_nums))))

    def edit(
        self,
        image: np.ndarray,
        region: Box | np.ndarray,
        mode: str = "inpaint",
        labels: int | str | Sequence[int | str] = NO_CLASS,
        **settings: Any,
    ) -> Result:
        """Draw a part of an image anew, as `Pipeline.edit`. The refiner encodes the image."""
        keep = keep_masks(kept_cells(region, mode, self.manifest.model), self.manifest.model.patch_nums)
        return self.generate(labels, keep=keep, kept_tokens=self.refiner.encode(image[None]), **settings)

    def _drafting(self, sampling: Sampling) -> Sampling:
        """Return the settings of the draft: without guidance or decoder that it does not need or have."""
        guidance_scales = None if sampling.scales_guided >= self.draft_scales else sampling.guidance_scales
        decoder = sampling.decoder if sampling.decoder_graph in self.draft.manifest.graphs else Sampling.decoder
        return replace(sampling, guidance_scales=guidance_scales, decoder=decoder)

    def close(self) -> None:
        """Close both pipelines."""
        self.draft.close()
        self.refiner.close()

    def __enter__(self) -> DraftedPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_fit(draft: Path, drafting: Manifest, bundle: Path, refining: Manifest) -> None:
    """Raise SettingsError unless the model of `bundle` can go on with the tokens of the model of `draft`.

    Raises BundleError if one of the manifests does not say which VQVAE it has.
    """
    for key in SHARED:
        found, expected = getattr(drafting.model, key), getattr(refining.model, key)
        if found != expected:
            raise SettingsError(
                f"draft {draft}: expected {key} {expected} as in {bundle}, found {found};"
                " draft with a model of the same VQVAE"
            )
    for path, manifest in ((draft, drafting), (bundle, refining)):
        if manifest.vqvae_sha256 is None:
            raise BundleError(f"{path}: does not say which VQVAE it has (vqvae_sha256); export it again")
    if drafting.vqvae_sha256 != refining.vqvae_sha256:
        raise SettingsError(
            f"draft {draft}: expected the VQVAE of {bundle} ({refining.vqvae_sha256:.12}…),"
            f" found another ({drafting.vqvae_sha256:.12}…); draft with a model of the same VQVAE"
        )


def check_draft_scales(draft_scales: int, scales: int) -> None:
    """Raise SettingsError unless a draft can draw so many of the `scales` scales."""
    if draft_scales not in limits.Integers(0, scales):
        raise SettingsError(f"draft_scales: expected 0 to {scales}, found {shown(draft_scales)}")


def _named(on_stage: OnStage) -> OnStage:
    return lambda graph, scale, seconds: on_stage(DRAFT + graph, scale, seconds)


def _shown(observe: Observe) -> Observe:
    return lambda run: observe(StageRun(DRAFT + run.graph, run.scale, run.inputs, run.outputs))
