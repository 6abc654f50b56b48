"""Collect the ranges of the tensors that may become INT8, while images are generated as users generate them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from calibration.channel_scaling import scaling_vector
from calibration.ranges import CalibrationError, Histogram
from calibration.record import Calibration, Settings, fingerprint
from calibration.sites import Site, all_sites, modulated_by
from export.verify.observe import Shapes, looking_inside
from runtime import limits
from runtime.backends.base import Observe, StageRun
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import TRANSFORMER
from runtime.bundle.precision import Precision
from runtime.bundle.weight_file import open_weights
from runtime.errors import SettingsError
from runtime.pipeline import Pipeline
from runtime.progress import Progress, silent

SCALING_PICTURES = 8  # images that decide the channel scaling: the same for all parts of a run shared by machines
FEWEST = 8  # images; fewer give unreliable ranges
GOLDEN = 0.6180339887


def collect(
    bundle: Path,
    path: Path,
    images: int,
    settings: Settings,
    first: int = 0,
    progress: Progress = silent,
    sites: Sequence[Site] | None = None,
) -> Calibration:
    """Collect images `first` to `first + images` of the run that `settings` describe; write `path` after each image.

    If `path` exists, collecting resumes. `sites` are those of the bundle, if they are known. Raises CalibrationError,
    BundleError, SettingsError.
    """
    if images < FEWEST:
        raise SettingsError(f"--images: expected {FEWEST} or more, found {images}; fewer give unreliable ranges")
    if settings.seed + first + images > limits.SEED.most:
        raise SettingsError(f"--seed: expected at most 2**64 - {first + images}, found {settings.seed}")
    manifest = Manifest.load(bundle)
    check_source(bundle, manifest)
    sites = sites or all_sites(bundle, manifest)
    if path.exists():
        found = Calibration.load(path)
        new = Calibration(fingerprint(manifest), settings)
        if not found.pictures and (found.bundle, found.settings) != (new.bundle, settings):
            found = new  # a run that failed before its first image must not refuse this one
        found.check(path, bundle, manifest, settings)
        found.check_tensors(path, _shape(sites, len(manifest.scales)), {site.key: site.channels for site in sites})
    else:
        found = Calibration(fingerprint(manifest), settings)
    done = {i for start, end in found.pictures for i in range(start, end)}
    missing = [i for i in range(first, first + images) if i not in done]
    if not missing:
        return found
    pipeline = Pipeline(bundle, looking_inside(bundle, manifest, _observed(sites)), verify=False)

    def draw(index: int, observe: Observe) -> None:
        label = label_of(index, manifest.model.num_classes)
        top_k = min(settings.top_k, manifest.model.vocab_size)  # the same settings serve every vocabulary size
        pipeline.generate(label, settings.seed + index, settings.cfg, top_k, settings.top_p, observe=observe)

    if found.channel_scaling is None:
        channels = _Channels(sites, len(manifest.scales))
        for i in range(SCALING_PICTURES):
            progress("finding channels to scale", i, SCALING_PICTURES)
            draw(i, channels.add)
        found.channel_scaling = _scaling(bundle, sites, channels.relative(), settings)
        found.write(path)
    gathered = _Histograms(sites, found, len(manifest.scales))
    for i in missing:
        progress("collecting ranges", images - len(missing) + missing.index(i), images)
        draw(i, gathered.add)
        found.add_picture(i)
        found.write(path)
    return found


def label_of(index: int, classes: int) -> int:
    """Return the label of image `index`: steps of the golden ratio visit the classes evenly, however many there are."""
    return int(index * GOLDEN * classes) % classes


def check_source(bundle: Path, manifest: Manifest) -> None:
    """Raise SettingsError unless `bundle` is in FP32, as calibration starts from."""
    if manifest.precision is not Precision.FP32:
        raise SettingsError(f"{bundle}: calibration starts from a bundle in fp32, found {manifest.precision}")


def _observed(sites: Sequence[Site]) -> dict[str, Shapes]:
    observed: dict[str, dict[str, tuple[int | str, ...]]] = {}
    for site in sites:
        tensors = observed.setdefault(site.graph, {})
        tensors[site.operand] = site.operand_shape
        if site.op == "Conv":  # ONNX Runtime's INT8 convolution writes 8 bits too
            tensors[site.result] = site.result_shape
    return dict(observed)


class _Channels:
    """Finds the largest magnitude of each channel of each operand, by scale."""

    def __init__(self, sites: Sequence[Site], scales: int):
        self._sites = [site for site in sites if site.graph == TRANSFORMER]
        self.largest = {site.key: np.zeros((scales, site.channels), np.float32) for site in self._sites}

    def add(self, run: StageRun) -> None:
        for site in self._sites if run.graph == TRANSFORMER else ():
            scale = run.scale or 0
            found = np.abs(run.outputs[site.operand]).reshape(-1, site.channels).max(0)
            if not np.isfinite(found).all():
                raise _overflow(f"{site.key} input", "not a number", scale)
            np.maximum(self.largest[site.key][scale], found, out=self.largest[site.key][scale])

    def relative(self) -> dict[str, np.ndarray]:
        """Return by site (C,): each channel as a share of the scale's largest channel, the maximum over all scales."""
        return {
            key: (largest / np.maximum(largest.max(1, keepdims=True), 1e-30)).max(0)
            for key, largest in self.largest.items()
        }


def _scaling(
    bundle: Path, sites: Sequence[Site], channels: Mapping[str, np.ndarray], settings: Settings
) -> dict[str, np.ndarray]:
    def scales(site: Site) -> bool:
        wanted = settings.channel_scaling
        return wanted == "all" or (wanted == "adaln" and modulated_by(site.key) is not None)

    with open_weights(bundle) as weights:
        return {
            site.key: scaling_vector(channels[site.key], weights.get_tensor(site.weight), settings.alpha)
            for site in sites
            if site.graph == TRANSFORMER and scales(site)
        }


class _Histograms:
    """Fills a calibration's histograms with the tensors of a run."""

    def __init__(self, sites: Sequence[Site], calibration: Calibration, scales: int):
        self._sites, self._calibration = sites, calibration
        for name, count in _shape(sites, scales).items():
            calibration.histograms.setdefault(name, [Histogram() for _ in range(count)])

    def add(self, run: StageRun) -> None:
        assert self._calibration.channel_scaling is not None
        scale = run.scale or 0
        for site in self._sites:
            if site.graph != run.graph:
                continue
            for name, tensor in tensors(site).items():
                vector = self._calibration.channel_scaling.get(site.key)
                values = run.outputs[tensor] if vector is None else run.outputs[tensor] / vector
                try:
                    self._calibration.histograms[name][scale].add(values)
                except ValueError as error:
                    raise _overflow(name, str(error), scale) from None


def _overflow(name: str, what: str, scale: int) -> CalibrationError:
    return CalibrationError(f"{name}: {what} at scale {scale}: the FP32 model itself overflows; check its checkpoint")


def _shape(sites: Sequence[Site], scales: int) -> dict[str, int]:
    """Return the number of histograms of each tensor."""
    return {name: scales if site.graph == TRANSFORMER else 1 for site in sites for name in tensors(site)}


def tensors(site: Site) -> dict[str, str]:
    """Return name in the calibration -> tensor of the graph, for all tensors around a product that are quantized."""
    names = {f"{site.key} input": site.operand}
    if site.op == "Conv":
        names[f"{site.key} output"] = site.result
    return names
