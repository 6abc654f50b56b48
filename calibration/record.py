"""`calibration.json`: the values of a bundle's tensors while it generated images. It fits that bundle and no other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.ranges import BINS, CalibrationError, Histogram
from runtime import limits
from runtime.bundle.manifest import WEIGHTS, Manifest
from runtime.bundle.names import REQUIRED_GRAPHS
from runtime.bundle.schema import load, parse
from runtime.files.atomic import atomic_file
from runtime.sampling import Sampling

SCHEMA_VERSION = 1
FILE_NAME = "calibration.json"
CHANNEL_SCALING = ("adaln", "all", "none")


@dataclass(frozen=True)
class Settings:
    """The settings that decide the collected values, besides which images were generated."""

    seed: int = 0
    cfg: float = 4.0
    top_k: int = 900
    top_p: float = 0.95
    channel_scaling: str = "adaln"  # the products whose operands are scaled: none, adaln or all
    alpha: float = 0.5  # how much of the differences between channels moves into the weights

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.cfg, self.top_k, self.top_p)

    def to_json(self) -> dict[str, Any]:
        """Return the settings by their names in files."""
        return {"smoothing" if name == "channel_scaling" else name: value for name, value in asdict(self).items()}

    def check(self) -> None:
        """Raise ValueError if a value is outside its range."""
        for name, value, allowed in (
            ("seed", self.seed, limits.STORED_SEED),
            ("cfg", self.cfg, limits.CFG),
            ("top_k", self.top_k, limits.TOP_K),
            ("top_p", self.top_p, limits.TOP_P),
            ("alpha", self.alpha, limits.ALPHA),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected {allowed}, found {limits.shown(value)}")
        if self.channel_scaling not in CHANNEL_SCALING:
            expected = " or ".join(CHANNEL_SCALING)
            raise ValueError(f"smoothing: expected {expected}, found {limits.shown(self.channel_scaling)}")


@dataclass
class Calibration:
    """Histograms of every tensor that may be INT8, one for each scale or a single one, and the channel scaling."""

    bundle: dict[str, str]  # graph or weight file -> SHA-256
    settings: Settings
    pictures: list[tuple[int, int]] = field(default_factory=list)  # first and end of the images collected
    channel_scaling: dict[str, np.ndarray] | None = None  # site -> (C,), which divides the operand; None: not known yet
    histograms: dict[str, list[Histogram]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a file. Raises BundleError if it is absent or not a calibration, CalibrationError if it is damaged."""
        again = "remove it and calibrate again"
        text = load(
            _Document, path, SCHEMA_VERSION, f"{path}: there is no calibration", again, limits.CALIBRATION_BYTES
        )
        settings = parse(_SettingsText, text.settings, f"{path}: settings").settings()
        try:
            settings.check()
            pictures = _spans(text.pictures)
            scaling = None if text.smoothing is None else _vectors(text.smoothing)
            histograms = {name: [_read(item) for item in items] for name, items in text.histograms.items()}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"{path}: damaged: {error}; {again}") from None
        return cls(text.bundle, settings, pictures, scaling, histograms)

    def write(self, path: Path) -> None:
        histograms = {name: [_written(h) for h in items] for name, items in self.histograms.items()}
        known, settings = self.channel_scaling, self.settings.to_json()
        scaling = None if known is None else {n: [float(f"{x:.9g}") for x in m] for n, m in known.items()}
        document = _Document(SCHEMA_VERSION, self.bundle, settings, tuple(self.pictures), scaling, histograms)
        with atomic_file(path) as file:
            file.write(json.dumps(asdict(document), separators=(",", ":")).encode())

    @property
    def count(self) -> int:
        """The number of images collected."""
        return sum(end - first for first, end in self.pictures)

    def check(self, path: Path, bundle: Path, manifest: Manifest, settings: Settings | None = None) -> None:
        """Raise CalibrationError unless this was collected on `bundle`, and with `settings` if they are given."""
        found = fingerprint(manifest)
        for file in sorted(set(found) | set(self.bundle)):
            if found.get(file) != self.bundle.get(file):
                raise CalibrationError(
                    f"{path}: collected on another bundle: {bundle / file} differs; remove it and calibrate again"
                )
        asked = self.settings if settings is None else settings
        for name, value in self.settings.to_json().items():
            if value != (wanted := asked.to_json()[name]):
                raise CalibrationError(
                    f"{path}: collected with {name} {value}, asked for {wanted}; give another --calibration file"
                )

    def merge(self, other: Calibration, where: str) -> None:
        """Add what another machine collected on other images of the same run. Raises CalibrationError."""
        if (self.bundle, self.settings) != (other.bundle, other.settings):
            raise CalibrationError(f"{where}: from another bundle or with other settings; merge files of one run")
        if other.shape() != self.shape():
            raise CalibrationError(f"{where}: holds ranges of other tensors; collect it again")
        if any(a < d and c < b for a, b in self.pictures for c, d in other.pictures):
            raise CalibrationError(f"{where}: holds pictures that are already collected; collect others with --first")
        self.channel_scaling = self.channel_scaling or other.channel_scaling
        for name, items in other.histograms.items():
            for mine, theirs in zip(self.histograms[name], items, strict=True):
                mine.merge(theirs)
        self.pictures = _joined([*self.pictures, *other.pictures])

    def shape(self) -> dict[str, int]:
        """Return the number of histograms of each tensor."""
        return {name: len(items) for name, items in self.histograms.items()}

    def check_tensors(self, path: Path, histograms: Mapping[str, int], channels: Mapping[str, int]) -> None:
        """Raise CalibrationError unless this has these numbers of `histograms` and `channels`, by tensor and site."""
        vectors = self.channel_scaling or {}
        fit = all(channels.get(name) == len(vector) for name, vector in vectors.items())
        if not fit or (self.histograms and self.shape() != histograms) or (self.pictures and not self.histograms):
            raise CalibrationError(
                f"{path}: damaged: holds other tensors than the bundle; remove it and calibrate again"
            )

    def add_picture(self, index: int) -> None:
        self.pictures = _joined([*self.pictures, (index, index + 1)])


def fingerprint(manifest: Manifest) -> dict[str, str]:
    """Return the SHA-256 of the files that decide a bundle's results: graphs that generate, and weights."""
    names = [manifest.graphs[name].file for name in REQUIRED_GRAPHS]
    return {name: manifest.files[name].sha256 for name in (*names, WEIGHTS)}


@dataclass(frozen=True)
class _SettingsText:
    """The settings as the file has them."""

    seed: int
    cfg: float
    top_k: int
    top_p: float
    smoothing: str
    alpha: float

    def settings(self) -> Settings:
        return Settings(self.seed, self.cfg, self.top_k, self.top_p, self.smoothing, self.alpha)


@dataclass(frozen=True)
class _Document:
    schema_version: int
    bundle: dict[str, str]
    settings: dict[str, Any]
    pictures: tuple[Any, ...]
    smoothing: Any  # object or null
    histograms: dict[str, Any]


def _written(histogram: Histogram) -> dict[str, Any]:
    """Return a histogram for the file, without the empty bins at both ends."""
    used = np.flatnonzero(histogram.counts)
    first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    counts = histogram.counts[first:end].tolist()
    return {"limit": histogram.limit, "low": histogram.low, "high": histogram.high, "first": first, "counts": counts}


def _read(item: dict[str, Any]) -> Histogram:
    """Return the histogram that `_written` made the item of. Raises KeyError, TypeError, ValueError."""
    limit, low, high, first, values = (item[key] for key in ("limit", "low", "high", "first", "counts"))
    if limit not in limits.HISTOGRAM or math.frexp(limit)[0] != 0.5:  # it begins at 2^-20 and doubles
        raise ValueError(f"a histogram's limit {limits.shown(limit)}")
    if not -limit <= low <= 0 <= high <= limit:
        raise ValueError(f"a histogram's extremes {limits.shown(low)} and {limits.shown(high)}")
    if not set(map(type, values)) <= {int} or min(values, default=0) < 0:
        raise ValueError("a histogram's counts")
    if type(first) is not int or not 0 <= first <= BINS - len(values):
        raise ValueError(f"a histogram's first bin {limits.shown(first)}")
    counts = np.zeros(BINS, np.int64)
    counts[first : first + len(values)] = values
    return Histogram(float(limit), counts, float(low), float(high))


def _spans(pairs: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the first and end of images collected, in order. Raises TypeError, ValueError."""
    spans = sorted((first, end) for first, end in pairs)
    before = 0
    for first, end in spans:
        if type(first) is not int or type(end) is not int or not before <= first < end <= limits.COLLECTED:
            raise ValueError(f"pictures: {limits.shown(first)} to {limits.shown(end)}")
        before = end
    return spans


def _vectors(found: Any) -> dict[str, np.ndarray]:
    """Return the channel scaling of the file, by site. Raises TypeError, ValueError."""
    if not isinstance(found, dict):
        raise ValueError(f"smoothing: expected an object, found {limits.shown(found)}")
    for name, values in found.items():
        if not set(map(type, values)) <= {int, float} or not all(value in limits.CHANNEL_SCALING for value in values):
            raise ValueError(f"smoothing of {limits.shown(name)}: expected numbers {limits.CHANNEL_SCALING}")
    return {name: np.array(values, np.float32) for name, values in found.items()}


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return joined
