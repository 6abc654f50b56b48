"""Measure the loss of quality when one layer alone is INT8; show it as a table and a heat map."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.bench import Bench
from calibration.plan import FLOAT, Plan
from calibration.sites import Site
from export.verify.fidelity import Fidelity
from runtime.bundle.names import DECODER
from runtime.bundle.schema import load
from runtime.files.atomic import atomic_file
from runtime.progress import Progress, silent

SCHEMA_VERSION = 3
FILE_NAME = "sensitivity.json"
ALL_DIGITS = "transformer: all layers int8x2"  # the loss by INT8 weights and rounded logits, which every plan has


@dataclass(frozen=True)
class Layer:
    """The loss when this layer alone is INT8, and everything else FP32."""

    kl: tuple[float, ...]  # KL of a token by scale, nats; empty for the decoder
    logit_error: tuple[float, ...]  # root mean square by scale
    agreement: tuple[float, ...]  # share of tokens that keep their most probable value, by scale
    deviations: tuple[float, ...]  # how far each image moves `kl_of_scales` from its mean, nats; see `Fidelity`
    psnr: float | None  # dB, of images from equal tokens; None if they are equal, and outside the decoder

    @classmethod
    def of(cls, found: Fidelity) -> Layer:
        kl, error, agreement = (
            tuple(_short(getattr(scale, name)) for scale in found.scales) for name in ("kl", "logit_error", "agreement")
        )
        return cls(kl, error, agreement, tuple(map(_short, found.deviations)), None)

    def fits(self, key: str, scales: int, images: int) -> bool:
        """Return whether these values can be of the layer `key` with this number of scales and of images."""
        if key.startswith(f"{DECODER}: "):
            scales = images = 0
        lengths = [len(values) for values in (self.kl, self.logit_error, self.agreement, self.deviations)]
        return lengths == [scales, scales, scales, images]

    @property
    def kl_of_scales(self) -> float:
        """The mean KL of the scales, as `Fidelity` defines it; 0 for the decoder."""
        return float(np.mean(self.kl)) if self.kl else 0.0


@dataclass(frozen=True)
class Sensitivity:
    """The content of `sensitivity.json`. The measured values depend on everything that comes before them."""

    schema_version: int
    bundle: dict[str, str]
    target: str
    scales: str
    method: str
    calibration: dict[str, Any]  # with the settings that the compared images are drawn with
    pictures: tuple[Any, ...]  # first and end of the images that the ranges are of
    images: int  # compared at every scale, and more at the coarse ones
    layers: dict[str, Layer]

    def write(self, path: Path) -> None:
        with atomic_file(path) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())


def measure(bench: Bench, path: Path, progress: Progress = silent) -> Sensitivity:
    """Measure every layer that the bench's scales can make INT8; write `path` after each.

    If `path` holds values of the same bundle, settings and calibration, resume; else measure anew. Raises BundleError.
    """
    wanted = [ALL_DIGITS, *(key for key, kind in bench.alone.items() if kind != FLOAT)]
    known = _known(bench, path)
    complete, drawn = bench.draw(known.images if known else bench.enough_images(len(wanted), progress), progress)
    found = known or _empty(bench, complete)
    fitting = {key for key, layer in found.layers.items() if key in wanted and layer.fits(key, bench.count, drawn)}
    for key in found.layers.keys() - fitting:
        del found.layers[key]  # damaged: measure it again
    for i, key in enumerate(wanted):
        if key not in found.layers:
            progress(f"measuring {key}", i, len(wanted))
            found.layers[key] = _measured(bench, key)
            found.write(path)
    return found


def _empty(bench: Bench, images: int) -> Sensitivity:
    calibration = bench.calibration
    pictures = tuple(list(span) for span in calibration.pictures)
    settings = calibration.settings.to_json()
    return Sensitivity(
        SCHEMA_VERSION, calibration.bundle, bench.target, bench.scales, bench.method, settings, pictures, images, {}
    )


def _known(bench: Bench, path: Path) -> Sensitivity | None:
    """Return what the file knows, None if it is of another bundle, target, calibration or settings."""
    if not path.exists():
        return None
    before = load(Sensitivity, path, SCHEMA_VERSION, "", "remove it")
    same = asdict(_empty(bench, before.images)) == {**asdict(before), "layers": {}} and before.images > 0
    return before if same else None


def _measured(bench: Bench, key: str) -> Layer:
    """Measure the site `key` in INT8, or for ALL_DIGITS all layers of the transformer in two digits."""
    if key == ALL_DIGITS:
        return Layer.of(bench.layers(bench.two_digits))
    plan = {other: kind if other == key else FLOAT for other, kind in bench.alone.items()}
    if key.startswith(f"{DECODER}: "):
        found = bench.decoder(plan)
        return Layer((), (), (), (), round(found, 2) if math.isfinite(found) else None)
    return Layer.of(bench.layers(plan))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def table(sensitivity: Sensitivity, plan: Plan) -> str:
    """Return a Markdown table of the layers by their loss, with the kinds that the plan gives them."""
    layers = sensitivity.layers
    lines = [
        "| layer alone INT8 | plan | mean KL of the scales | logit error at the last scale | top-1 agreement there |",
        "|---|---|---|---|---|",
    ]
    for key in sorted((k for k in layers if layers[k].kl), key=lambda k: -layers[k].kl_of_scales):
        found = layers[key]
        cells = f"{found.kl_of_scales:.1e} | {found.logit_error[-1]:.4f} | {found.agreement[-1]:.1%}"
        lines.append(f"| {key} | {plan.get(key, '')} | {cells} |")
    pictures = {key: found.psnr or np.inf for key, found in layers.items() if not found.kl}
    if pictures:
        lines += ["", "| layer alone INT8 | plan | PSNR of pictures |", "|---|---|---|"]
    lines += [
        f"| {key} | {plan[key]} | {pictures[key]:.1f} dB |" for key in sorted(pictures, key=lambda k: pictures[k])
    ]
    return "\n".join(lines) + "\n"


def heat_map(sensitivity: Sensitivity, sites: Sequence[Site], path: Path) -> None:
    """Write a PNG of the KL as colours, layers by scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    layers = sensitivity.layers
    keys = [site.key for site in sites if site.key in layers and layers[site.key].kl]
    values = np.maximum(np.array([layers[key].kl for key in keys]), 1e-7)  # (layers, K)
    figure, axes = pyplot.subplots(figsize=(6.5, 1.6 + 0.22 * len(keys)), layout="constrained")
    image = axes.imshow(values, aspect="auto", norm=LogNorm(), cmap="magma")
    axes.set_yticks(range(len(keys)), [key.split(": ")[1] for key in keys], fontsize=7)
    axes.set_xticks(range(values.shape[1]))
    axes.set_xlabel("scale")
    axes.set_title("KL of a token when this layer alone is INT8", fontsize=9)
    figure.colorbar(image, ax=axes, label="nats")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
