"""The record of a picture: all settings that drew it, as one JSON object inside the image file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import limits
from .base_pipeline import BasePipeline, image_seeds
from .bundle.classes import NO_CLASS, ClassNames
from .bundle.manifest import Manifest
from .bundle.schema import parse
from .editing import MODES
from .errors import UNPRINTABLE, SettingsError, VarEdgeError
from .files.bounded import open_file, parse_json
from .files.chunks import kind_of_image, png_text, webp_exif
from .limits import shown
from .sampling import DECODERS, Sampling
from .version import __version__

SCHEMA_VERSION = 1
KEY = "var-edge"  # keyword of the text chunk in a PNG file
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # where a WebP file has the record
UTF8 = b"\0" * 8  # begins a user comment of no declared encoding
AROUND = 64 << 10  # bytes that a chunk may have beside the record
RANGES = {
    "cfg": limits.CFG,
    "top_k": limits.TOP_K,
    "top_p": limits.TOP_P,
    "guidance_scales": limits.GUIDANCE_SCALES,
    "batch": limits.BATCH,
    "draft_scales": limits.DRAFT_SCALES,
}


@dataclass(frozen=True)
class DrawnBy:
    """A bundle, and what ran it."""

    model: str
    precision: str
    bundle: str  # `Pipeline.fingerprint`
    backend: str  # see `kind_of_backend`

    @classmethod
    def of(cls, pipeline: BasePipeline) -> DrawnBy:
        manifest, backend = pipeline.manifest, kind_of_backend(pipeline.backend.name)
        return cls(manifest.model.name, str(manifest.precision), pipeline.fingerprint, backend)

    def __str__(self) -> str:
        return f"{self.model} in {self.precision} ({self.bundle:.12}…)"


@dataclass(frozen=True)
class Record:
    """What one image file shows: one image, or the images of a grid in its order, and the settings that drew them."""

    schema_version: int
    version: str  # of VAR Edge
    drawn_by: DrawnBy
    draft: DrawnBy | None
    draft_scales: int  # 0 without a draft
    labels: tuple[int, ...]
    classes: tuple[str, ...]  # the first name of each label; empty if the bundle has no names
    seeds: tuple[str, ...]  # as text, because many readers of JSON round integers above 2^53
    batch: int
    cfg: float
    top_k: int
    top_p: float
    smooth: bool
    guidance_scales: int
    decoder: str
    edit: str | None  # "inpaint" or "outpaint" if the image is an edit

    @classmethod
    def of(
        cls,
        pipeline: BasePipeline,
        labels: int | str | Sequence[int | str],
        seed: int | Sequence[int],
        batch: int,
        sampling: Sampling,
        edit: str | None = None,
    ) -> Record:
        """Return the record of the images that `pipeline` draws with these arguments of `generate`.

        `edit` is the mode of an edit. Raises SettingsError.
        """
        model = pipeline.manifest.model
        chosen = sampling.fitted(model.vocab_size, len(model.patch_nums))
        numbers = pipeline.classes.labels(labels)
        return cls(
            schema_version=SCHEMA_VERSION,
            version=__version__,
            drawn_by=DrawnBy.of(pipeline),
            draft=DrawnBy.of(pipeline.draft) if pipeline.draft and pipeline.draft_scales else None,
            draft_scales=pipeline.draft_scales,
            labels=tuple(numbers),
            classes=_names(pipeline.classes, numbers),
            seeds=tuple(map(str, image_seeds(seed, len(numbers)))),
            batch=batch,
            cfg=float(chosen.cfg),
            top_k=chosen.tokens_kept,
            top_p=float(chosen.top_p),
            smooth=chosen.smooth,
            guidance_scales=chosen.scales_guided,
            decoder=chosen.decoder,
            edit=edit,
        )

    def picture(self, index: int) -> Record:
        """Return the record of one of the images, as it is drawn alone."""
        one = slice(index, index + 1)
        return replace(self, labels=self.labels[one], classes=self.classes[one], seeds=self.seeds[one], batch=1)

    @classmethod
    def joined(cls, records: Sequence[Record]) -> Record:
        """Return the record of a grid of images, each with a record of its own and all drawn with equal settings."""
        return replace(
            records[0],
            labels=tuple(label for each in records for label in each.labels),
            classes=tuple(name for each in records for name in each.classes),
            seeds=tuple(seed for each in records for seed in each.seeds),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `Pipeline.generate` that draw the images again."""
        sampling = Sampling(self.cfg, self.top_k, self.top_p, self.smooth, self.guidance_scales, self.decoder)
        return {"labels": self.labels, "seed": [*map(int, self.seeds)], "batch": self.batch, "sampling": sampling}

    def difference(self, other: Record) -> str | None:
        """Return a note if another engine or version drew the images of the record `other`, or None."""
        pairs = [
            (self.drawn_by.backend, other.drawn_by.backend, ""),
            *([(self.draft.backend, other.draft.backend, "")] if self.draft and other.draft else []),
            (self.version, other.version, "version "),
        ]
        for ours, theirs, what in pairs:
            if ours != theirs:
                return f"drawn with {what}{theirs}, now with {what}{ours}, so it may differ in places"
        return None

    @property
    def text(self) -> str:
        """The JSON object, on one line."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @property
    def png(self) -> PngInfo:
        """The text chunk for Pillow: tEXt, or iTXt if a name has letters outside of Latin-1."""
        info = PngInfo()
        info.add_text(KEY, self.text)
        return info

    @property
    def exif(self) -> Image.Exif:
        """The same for a WebP file: the user comment in its EXIF."""
        exif = Image.Exif()
        exif[EXIF_IFD] = {USER_COMMENT: UTF8 + self.text.encode()}
        return exif

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read the record in a PNG or WebP file of any size, without decoding the image. Raises SettingsError."""
        with open_file(path, error=SettingsError) as file:
            return cls.decoded(file, str(path))

    @classmethod
    def decoded(cls, file: BinaryIO, where: str) -> Record:
        """Read the record in an open PNG or WebP file. Raises SettingsError; its message begins with `where`."""
        try:
            found = _stored(file)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises errors of many types for a broken EXIF
            reason = f"({error}); give a file that VAR Edge wrote"
            raise SettingsError(f"{where}: its settings cannot be read {reason}") from None
        if found is None:
            advice = "it is not of VAR Edge, was written with --no-metadata, or was edited by another program"
            raise SettingsError(f"{where}: holds no settings; {advice}")
        return cls.parsed(found, where)

    @classmethod
    def parsed(cls, data: bytes, where: str) -> Record:
        """Read and check the JSON object. Raises SettingsError; its message begins with `where`."""
        if len(data) > limits.RECORD_BYTES:
            raise SettingsError(f"{where}: expected settings of at most {limits.RECORD_BYTES} bytes, found {len(data)}")
        document = parse_json(data, f"{where}: settings", SettingsError)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            found = f"expected settings of schema_version {SCHEMA_VERSION}, found {shown(version)}"
            raise SettingsError(f"{where}: {found}; another version of VAR Edge wrote it")
        try:
            record = parse(cls, document, f"{where}: settings")
        except VarEdgeError as error:
            raise SettingsError(str(error)) from None
        record._check(f"{where}: settings")
        return record

    def check_repeatable(self, where: Path, bundle: Path, draft: Path | None, draft_scales: int | None) -> None:
        """Raise SettingsError unless these bundles draw the images of the file `where` again.

        Raises BundleError for a damaged bundle.
        """
        if self.edit:
            needed = "the given image and its region, which the file does not hold"
            raise SettingsError(f"{where}: an edit, which needs {needed}; run runtime.edit with them")
        self._check_bundle(f"{where}: drawn by", self.drawn_by, bundle, "--bundle")
        if (draft_scales or 0) != self.draft_scales:
            counts = f"expected a draft of {self.draft_scales} scale(s), found {draft_scales or 0}"
            advice = f"--draft DIR --draft-scales {self.draft_scales}" if self.draft_scales else "no --draft"
            raise SettingsError(f"{where}: {counts}; give {advice}")
        if self.draft and draft:
            self._check_bundle(f"{where}: drafted by", self.draft, draft, "--draft")

    def check_drawable(self, where: Path, pipeline: BasePipeline) -> None:
        """Raise SettingsError unless the pipeline can draw with the settings of the file `where`."""
        try:
            pipeline.classes.labels(self.labels)
            pipeline.check(self.settings["sampling"])
        except VarEdgeError as error:
            raise SettingsError(f"{where}: settings: {error}") from None

    def check_readable(self, where: Path) -> None:
        """Raise SettingsError if a file `where` with this record could not be read again."""
        try:
            Record.parsed(self.text.encode(), str(where))
        except SettingsError as error:
            raise SettingsError(f"{error}; draw fewer images into one file, or give --no-metadata") from None

    @staticmethod
    def _check_bundle(what: str, expected: DrawnBy, bundle: Path, option: str) -> None:
        manifest = Manifest.load(bundle, verify=False)
        if manifest.fingerprint != expected.bundle:
            found = replace(
                expected, model=manifest.model.name, precision=str(manifest.precision), bundle=manifest.fingerprint
            )
            advice = f"give that bundle as {option}, or draw by hand: --label, --seed, …"
            raise SettingsError(f"{what} {expected}, found {found} in {bundle}; {advice}")

    def _check(self, where: str) -> None:
        """Raise SettingsError for a value outside its range. What depends on the model is checked by `generate`."""
        for key, allowed in RANGES.items():
            if (value := getattr(self, key)) not in allowed:
                raise SettingsError(f"{where}.{key}: expected {allowed}, found {shown(value)}")
        if self.decoder not in DECODERS:
            raise SettingsError(f"{where}.decoder: expected {' or '.join(DECODERS)}, found {shown(self.decoder)}")
        if self.edit not in (None, *MODES):
            raise SettingsError(f"{where}.edit: expected {' or '.join(MODES)}, or null, found {shown(self.edit)}")
        self._check_texts(where)
        if (self.draft is None) != (self.draft_scales == 0):
            raise SettingsError(f"{where}.draft: expected one where draft_scales is above 0, and only there")
        if len(self.labels) not in limits.PICTURES or len(self.seeds) != len(self.labels):
            counts = f"{len(self.labels)} and {len(self.seeds)}"
            raise SettingsError(f"{where}: expected one or more labels and as many seeds, found {counts}")
        if len(self.classes) not in (0, len(self.labels)):
            raise SettingsError(f"{where}.classes: expected none or {len(self.labels)}, found {len(self.classes)}")
        for seed in self.seeds:
            if not re.fullmatch("[0-9]{1,20}", seed) or int(seed) not in limits.SEED:
                raise SettingsError(f"{where}.seeds: expected integers of {limits.SEED}, found {shown(seed)}")

    def _check_texts(self, where: str) -> None:
        """Raise SettingsError for a text that no bundle of this version has: they are shown to the user."""
        texts = {"version": self.version}
        for name, drawn_by in (("drawn_by", self.drawn_by), ("draft", self.draft)):
            if drawn_by:
                texts |= {f"{name}.{key}": value for key, value in dataclasses.asdict(drawn_by).items()}
        for key, text in texts.items():
            if fault := limits.name_fault(text):
                raise SettingsError(f"{where}.{key}: {fault}")
        for name in self.classes:
            if len(name) > limits.CLASS_NAME_LENGTH or UNPRINTABLE.search(name):
                expected = f"printable names of at most {limits.CLASS_NAME_LENGTH} characters"
                raise SettingsError(f"{where}.classes: expected {expected}, found {shown(name)}")


def kind_of_backend(name: str) -> str:
    """Return the kind of a backend: `onnxruntime`, `onnxruntime on cuda` or a flavour of TensorRT.

    Backends of one kind round alike. The name of a backend also gives its threads, version, GPU and unused engines.
    """
    engine, on_gpu = name.split(" ")[0], name.startswith("onnxruntime on ")
    return f"{engine} on cuda" if on_gpu else engine


def _names(classes: ClassNames, labels: Sequence[int]) -> tuple[str, ...]:
    """Return the first name of each label; nothing if the bundle has no names."""
    if not classes.names:
        return ()
    return tuple(NO_CLASS if label == classes.num_classes else classes.names[label][0] for label in labels)


def _stored(file: BinaryIO) -> bytes | None:
    """Return the JSON text in an image file, or None. Raises errors of many types."""
    kind = kind_of_image(file)
    if kind is None:
        raise ValueError("no PNG or WebP file")
    if kind == "PNG":
        return png_text(file, KEY, limits.RECORD_BYTES + AROUND)
    exif = Image.Exif()
    exif.load(webp_exif(file, limits.RECORD_BYTES + AROUND) or b"")
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    return comment.removeprefix(UTF8) if isinstance(comment, bytes) else None
