"""Draw an evaluation set: the images that FID and IS are computed from, with the same number for each class.

The files are the same however the work is split into parts.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from . import limits
from .base_pipeline import BasePipeline, ScaleView
from .bundle.schema import load
from .errors import SettingsError
from .files.atomic import atomic_file
from .files.outputs import SET, check_folder
from .images import encoded_png, open_picture
from .limits import shown
from .record import Record, kind_of_backend
from .sampling import BATCH, EVALUATION, Sampling

# Version 3 had no records in its images, 2 no shortcuts; in 1 samples.npz was in the order of the classes.
SCHEMA_VERSION = 4
SETTINGS, SAMPLES = "settings.json", "samples.npz"
Advance = Callable[[float], None]  # called with the number of images, or the fraction of one, that was done


@dataclass(frozen=True)
class Picture:
    """Image number `index` of a class."""

    label: int
    index: int

    @property
    def file(self) -> str:
        return f"{self.label:04}_{self.index:05}.png"

    def seed(self, of_set: int) -> int:
        """Return the seed of this image: 24 bits of the set's seed, 20 of the class and 20 of the index."""
        return of_set << 40 | self.label << 20 | self.index


@dataclass(frozen=True)
class EvaluationSet:
    """The settings of a set, as `settings.json` holds them: exactly the values that the bytes of its files depend on.

    The number of threads is not one of them: threads share rows, and never split a sum. Another version of ONNX Runtime
    or another kind of processor may round the last bit differently. No score shows that, so shards may be drawn on
    different machines.

    Images are drawn in fixed batches, because the last bit of an image may depend on the others in its batch. So a
    shard consists of whole batches, and a run that resumes draws its unfinished batch again from the start.
    """

    schema_version: int
    model: str
    precision: str
    bundle: str  # SHA-256, see `Manifest.fingerprint`
    backend: str  # see `kind_of_backend`
    image_size: int
    classes: tuple[int, ...]
    per_class: int
    seed: int
    cfg: float
    top_k: int
    top_p: float
    guidance_scales: int
    decoder: str
    draft: str | None  # SHA-256 as for `bundle`; None without a draft
    draft_precision: str | None
    draft_backend: str | None
    draft_scales: int
    batch: int
    metadata: bool  # whether each image holds its `Record`

    @classmethod
    def of(
        cls,
        pipeline: BasePipeline,
        classes: Sequence[int | str] = (),
        per_class: int = 50,
        seed: int = 0,
        sampling: Sampling = EVALUATION,
        batch: int = BATCH,
        metadata: bool = True,
    ) -> EvaluationSet:
        """Return the set that this pipeline draws, by default of all classes. Raises SettingsError.

        The default of `sampling` is that of the published FID.
        """
        for name, value, allowed in (
            ("per_class", per_class, limits.PICTURES),
            ("batch", batch, limits.BATCH),
            ("seed", seed, limits.SET_SEED),
        ):
            if value not in allowed:
                raise SettingsError(f"{name}: expected {allowed}, found {shown(value)}")
        model = pipeline.manifest.model
        pipeline.check(sampling)  # before a folder is claimed
        sampling = sampling.fitted(model.vocab_size, len(model.patch_nums))
        labels = dict.fromkeys(pipeline.classes.labels(classes) or range(model.num_classes))
        if len(labels) * per_class not in limits.PICTURES:
            expected = f"at most {limits.PICTURES.most} pictures of all classes"
            raise SettingsError(f"per_class: expected {expected}, found {len(labels) * per_class}")
        draft = pipeline.draft
        return cls(
            schema_version=SCHEMA_VERSION,
            model=model.name,
            precision=str(pipeline.manifest.precision),
            bundle=pipeline.fingerprint,
            backend=kind_of_backend(pipeline.backend.name),
            image_size=model.image_size,
            classes=tuple(labels),
            per_class=per_class,
            seed=seed,
            cfg=float(sampling.cfg),
            top_k=sampling.tokens_kept,
            top_p=float(sampling.top_p),
            guidance_scales=sampling.scales_guided,
            decoder=sampling.decoder,
            draft=draft.fingerprint if draft else None,
            draft_precision=str(draft.manifest.precision) if draft else None,
            draft_backend=kind_of_backend(draft.backend.name) if draft else None,
            draft_scales=pipeline.draft_scales,
            batch=batch,
            metadata=metadata,
        )

    @cached_property
    def pictures(self) -> list[Picture]:
        """All images in the order in which they are drawn: class by class."""
        return [Picture(label, index) for label in self.classes for index in range(self.per_class)]

    @property
    def samples(self) -> list[Picture]:
        """All images in the order of `samples.npz`: rounds with one image of each class, shuffled within the round.

        The usual evaluator computes the Inception Score of each tenth of the file, so each tenth must have all classes.
        """
        return sorted(self.pictures, key=lambda picture: (picture.index, sha256(picture.file.encode()).digest()))

    def batches(self, shard: int = 1, shards: int = 1) -> list[list[Picture]]:
        """Return the batches of one shard: the `shard`-th of every `shards` batches, counted from 1."""
        starts = range(0, len(self.pictures), self.batch)
        return [self.pictures[start : start + self.batch] for start in starts[shard - 1 :: shards]]

    def difference(self, other: EvaluationSet) -> str:
        """Return the first setting in which the other set differs, as "NAME: expected X, found Y", or ""."""
        for key, expected in dataclasses.asdict(self).items():
            if (found := getattr(other, key)) != expected:
                return f"{key}: expected {expected!r:.50}, found {found!r:.50}"
        return ""

    def claim(self, folder: Path) -> None:
        """Make `folder` the folder of this set, or check that it is. Raises SettingsError if it holds another set."""
        check_folder(folder, SET)
        folder.mkdir(exist_ok=True)
        path = folder / SETTINGS
        if not path.exists():
            with atomic_file(path, replace=False) as file:  # another run may claim the folder at the same time
                file.write((json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())
        self._compare(path)

    def missing(self, folder: Path, shard: int = 1, shards: int = 1) -> list[list[Picture]]:
        """Return the batches of a shard of which `folder` lacks at least one image."""
        there = {entry.name for entry in folder.iterdir()}
        return [batch for batch in self.batches(shard, shards) if any(picture.file not in there for picture in batch)]

    def draw(self, pipeline: BasePipeline, folder: Path, shard: int, shards: int, advance: Advance) -> None:
        """Draw the missing batches of a shard. Raises SettingsError."""
        tokens = pipeline.manifest.model.tokens

        def on_scale(view: ScaleView) -> None:
            advance(len(view.pictures) * view.side**2 / tokens)

        whole = pipeline.launches_whole  # then a batch does not stop at every scale to show progress
        for batch in self.missing(folder, shard, shards):
            self.write(folder, batch, self.files(pipeline, batch, None if whole else on_scale))
            if whole:
                advance(len(batch))

    def files(
        self,
        pipeline: BasePipeline,
        batch: Sequence[Picture],
        on_scale: Callable[[ScaleView], None] | None = None,
    ) -> list[bytes]:
        """Draw one batch, and return the content of its PNG files. Raises VarEdgeError."""
        sampling = Sampling(self.cfg, self.top_k, self.top_p, False, self.guidance_scales, self.decoder)
        labels = [picture.label for picture in batch]
        seeds = [picture.seed(self.seed) for picture in batch]
        result = pipeline.generate(labels, seeds, batch=self.batch, on_scale=on_scale, sampling=sampling)
        record = Record.of(pipeline, labels, seeds, self.batch, sampling) if self.metadata else None
        return [encoded_png(image, record and record.picture(i)) for i, image in enumerate(result.images)]

    @staticmethod
    def write(folder: Path, batch: Sequence[Picture], files: Sequence[bytes]) -> None:
        """Write the PNG files of a batch, each atomically."""
        for picture, content in zip(batch, files, strict=True):
            with atomic_file(folder / picture.file) as file:
                file.write(content)

    def write_samples(self, folder: Path, advance: Advance) -> None:
        """Write `samples.npz` with `arr_0` (N, H, W, 3) uint8, which the FID toolkit of guided diffusion reads.

        The images are written one by one, because 50,000 of 256 x 256 pixels take 9.8 GB. The archive holds a fixed
        time, so its bytes are always the same. Raises SettingsError.
        """
        shape = (len(self.pictures), self.image_size, self.image_size, 3)
        entry = zipfile.ZipInfo("arr_0.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with (
            atomic_file(folder / SAMPLES) as file,
            zipfile.ZipFile(file, "w") as archive,
            archive.open(entry, "w", force_zip64=True) as stream,
        ):
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for picture in self.samples:
                stream.write(_pixels(folder / picture.file, shape[1:]))
                advance(1)

    def _compare(self, path: Path) -> None:
        found = load(EvaluationSet, path, SCHEMA_VERSION, f"{path}: missing", "give another folder")
        if difference := self.difference(found):
            another = "--backend or another folder" if difference.startswith("backend:") else "another folder"
            raise SettingsError(f"{path}: another set: {difference}; give {another}")


def _pixels(path: Path, shape: tuple[int, ...]) -> bytes:
    pixels = np.asarray(open_picture(path))
    if pixels.shape != shape:
        raise SettingsError(f"{path}: expected pixels {shape}, found {pixels.shape}; delete it and run again")
    return pixels.tobytes()
