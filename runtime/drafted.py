"""Draft large, refine small: one model draws the first scales, a smaller one with the same VQVAE draws the rest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import limits
from .backends.base import Observe, OnStage, StageRun
from .base_pipeline import BasePipeline, Maps, Request, Result, ScaleView
from .bundle.manifest import Manifest
from .errors import BundleError, SettingsError, with_room
from .limits import shown
from .pipeline import Pipeline
from .sampling import Sampling

# Keys of the model that must be equal. The last two say how the VQVAE's phi convolutions are used.
SHARED = ("patch_nums", "vocab_size", "num_classes", "image_size", "quant_resi", "share_quant_resi")
DRAFT = "draft "  # begins the names of the draft's graphs for `on_stage` and `observe`


class DraftedPipeline(BasePipeline):
    """Two pipelines that draw an image together: `draft` the first `draft_scales` scales, `refiner` the others.

    The refiner gets the tokens of the draft as kept tokens, and decodes. With 0 scales the refiner draws alone; with
    all scales it draws no token of its own. Bundles, precisions and backends may differ, but not the VQVAE, see
    `check_fit`. `bundle`, `manifest`, `classes`, `backend` and `fingerprint` are those of the refiner. Both stay in
    memory; if that runs out on a GPU when a batch begins, what one has prepared for batches is freed for the other.
    `close` closes both.

    The draft draws its scales of all images, then the refiner draws the rest. `on_scale` is called once for each scale
    of a batch, with logits, tokens and preview of the model that drew it. For `on_stage` and `observe` the names of the
    draft's graphs begin with `DRAFT`. Smooth sampling is refused: mixed codes are no tokens to hand over.

    Raises SettingsError, or BundleError for a bundle that is too old.
    """

    draft: Pipeline

    def __init__(self, draft: Pipeline, refiner: Pipeline, draft_scales: int) -> None:
        check_fit(draft.bundle, draft.manifest, refiner.bundle, refiner.manifest)
        check_draft_scales(draft_scales, len(refiner.manifest.scales))
        self.draft, self.refiner, self.draft_scales = draft, refiner, draft_scales
        self.bundle, self.manifest, self.classes = refiner.bundle, refiner.manifest, refiner.classes
        self.backend, self.fingerprint = refiner.backend, refiner.fingerprint

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
    def launches_whole(self) -> bool:
        """Whether one of the models that draw is faster if nobody listens."""
        return self.refiner.launches_whole or (self.draft_scales > 0 and self.draft.launches_whole)

    @property
    def drawn_with(self) -> str:
        """The names of both backends."""
        return f"{self.draft.drawn_with} for {self.draft_scales} scale(s), then {self.refiner.drawn_with}"

    def check(self, sampling: Sampling) -> None:
        if self.draft_scales and sampling.smooth:
            raise SettingsError("smooth: expected no smooth sampling with a draft; remove one of the two")
        self.refiner.check(sampling)
        if not self.draft_scales:
            return
        model = self.manifest.model
        self.draft.check(self._drafting(sampling.fitted(model.vocab_size, len(model.patch_nums))))

    def draw(self, request: Request) -> Result:
        count = self.draft_scales
        if not count:
            return self.refiner.draw(request)
        self.check(request.sampling)
        on_scale, on_stage, observe = request.on_scale, request.on_stage, request.observe
        first = replace(
            request,
            sampling=self._drafting(request.sampling),
            on_stage=on_stage and _named(on_stage),
            observe=observe and _shown(observe),
            make_room=self.refiner.free_batches,
        )
        tokens, drawn = self.draft.draw_tokens(first, count)
        self.refiner.check_tokens(tokens)

        def refined(view: ScaleView) -> None:
            if on_scale and view.index >= count:
                on_scale(view)

        rest = replace(
            request,
            kept=self._kept(request, tokens),
            on_scale=on_scale and refined if count < len(self.manifest.scales) else None,
            make_room=self.draft.free_batches,
        )
        result = self.refiner.draw(rest)
        return replace(result, drawn=[*drawn, *result.drawn[count:]] if request.kept else result.tokens)

    def encode(self, images: np.ndarray) -> Maps:
        return with_room(self.draft.free_batches, lambda: self.refiner.encode(images))

    def _kept(self, request: Request, drafted: Maps) -> tuple[Maps, Maps]:
        """Return masks and tokens that the refiner keeps: all of the draft, then those that the request keeps."""
        shapes = [(len(request.labels), scale.tokens) for scale in self.manifest.scales]
        keep, kept_tokens = request.kept or (
            [np.zeros(shape, bool) for shape in shapes],
            [np.zeros(shape, np.int32) for shape in shapes],
        )
        count = len(drafted)
        return [*(np.ones_like(maps, bool) for maps in drafted), *keep[count:]], [*drafted, *kept_tokens[count:]]

    def _drafting(self, sampling: Sampling) -> Sampling:
        """Return the fitted settings of the draft: without guidance or decoder that it does not need or have."""
        needless = sampling.scales_guided >= self.draft_scales
        guidance_scales = len(self.manifest.scales) if needless else sampling.scales_guided
        decoder = sampling.decoder if sampling.decoder_graph in self.draft.manifest.graphs else Sampling.decoder
        return replace(sampling, guidance_scales=guidance_scales, decoder=decoder)

    def close(self) -> None:
        self.draft.close()
        self.refiner.close()


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
