"""Measure the loss of quality when one layer alone is INT8; show it as a table and a heat map, and plan by it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.bundle import activations, remove_unused
from calibration.plan import FLOAT, ONE_TO_TWO_DIGITS, QUANTIZED, TWO_TO_ONE_DIGIT, Plan, alone
from calibration.quantize import Quantizer
from calibration.record import Calibration
from calibration.sites import Site, all_sites, open_graph
from calibration.target import TARGETS
from export.graphs.signature import Signature
from export.verify.fidelity import BATCH, Batch, Teacher, psnr
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle.manifest import Graph, Manifest
from runtime.bundle.names import DECODER, TRANSFORMER
from runtime.bundle.schema import load
from runtime.bundle.weight_file import open_weights
from runtime.errors import BundleError
from runtime.files.atomic import atomic_file
from runtime.pipeline import Pipeline
from runtime.progress import Progress, silent

SCHEMA_VERSION = 2
FILE_NAME = "sensitivity.json"
TOKENS, TOKENS_OF_WIDE = 300, 64  # compared at every scale; fewer for wide models, where a layer takes seconds
WIDE = 512  # channels; wider models generate images one at a time
PSNR = 40.0  # dB that the decoder's images must keep in INT8
ALL_DIGITS = "transformer: all layers int8x2"  # the loss by INT8 weights and rounded logits, which every plan has


@dataclass(frozen=True)
class Layer:
    """The loss when this layer alone is INT8, and everything else FP32."""

    kl: tuple[float, ...]  # mean of a token by scale, nats; empty for the decoder
    logit_error: tuple[float, ...]  # root mean square by scale
    agreement: tuple[float, ...]  # share of tokens that keep their most probable value, by scale
    psnr: float | None  # dB, of images from equal tokens; None if they are equal, and outside the decoder

    def fits(self, key: str, scales: int) -> bool:
        """Return whether these values can be of the layer `key` in a model with this number of scales."""
        count = 0 if key.startswith("decoder: ") else scales
        return all(len(values) == count for values in (self.kl, self.logit_error, self.agreement))

    @property
    def mean_kl(self) -> float:
        """The mean over scales, each with the same weight; 0 for the decoder."""
        return float(np.mean(self.kl)) if self.kl else 0.0


@dataclass(frozen=True)
class Sensitivity:
    """The content of `sensitivity.json`."""

    schema_version: int
    bundle: dict[str, str]
    target: str
    scales: str
    method: str
    calibration: dict[str, Any]
    layers: dict[str, Layer]

    def write(self, path: Path) -> None:
        with atomic_file(path) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())


def measure(
    bundle: Path,
    path: Path,
    calibration: Calibration,
    target: str,
    scales: str,
    method: str,
    progress: Progress = silent,
    sites: Sequence[Site] | None = None,
) -> Sensitivity:
    """Measure every layer that these `scales` can make INT8; write `path` after each. If `path` exists, resume.

    `sites` are those of the bundle, if they are known. Raises BundleError.
    """
    manifest = Manifest.load(bundle, verify=False)
    settings = calibration.settings.to_json()
    found = Sensitivity(SCHEMA_VERSION, calibration.bundle, target, scales, method, settings, {})
    if path.exists():
        before = load(Sensitivity, path, SCHEMA_VERSION, "", "remove it")
        if {**asdict(found), "layers": {}} == {**asdict(before), "layers": {}}:
            found.layers.update(before.layers)  # else the file is of another bundle, target, method or calibration
    bench = _Bench(bundle, manifest, sites or all_sites(bundle, manifest), calibration, target, scales, method)
    wanted = [ALL_DIGITS, *(key for key, kind in bench.alone.items() if kind != FLOAT)]
    count = len(manifest.scales)
    for key in [key for key, layer in found.layers.items() if key not in wanted or not layer.fits(key, count)]:
        del found.layers[key]  # damaged: measure it again
    for i, key in enumerate(wanted):
        if key not in found.layers:
            progress(f"measuring {key}", i, len(wanted))
            found.layers[key] = bench.layer(key)
            found.write(path)
    return found


def within_budget(
    sites: Sequence[Site], plan: Plan, sensitivity: Sensitivity, budget: float
) -> tuple[dict[str, str], float]:
    """Choose the INT8 layers of the plan by the measured loss; return the plan and its expected KL.

    In the transformer, as few multiplications as possible get two digits: those of the layers that lose the most for
    their size. The decoder's most sensitive convolutions become float until its images keep PSNR. The losses of layers
    nearly add up. Raises BundleError if even two digits for all layers lose more than `budget`.
    """
    changed, layers = dict(plan), sensitivity.layers
    planned = [site for site in sites if plan[site.key] in QUANTIZED]
    costs = {site.key: layers[site.key].mean_kl for site in planned if site.graph == TRANSFORMER}
    changed.update({key: TWO_TO_ONE_DIGIT.get(plan[key], plan[key]) for key in costs})
    base = layers[ALL_DIGITS].mean_kl
    sizes = {site.key: math.prod(site.weight_shape) for site in sites}
    for key in sorted(costs, key=lambda key: -costs[key] / sizes[key]):
        if base + sum(costs.values()) <= budget:
            break
        changed[key] = ONE_TO_TWO_DIGITS[changed[key]]
        del costs[key]
    if (expected := base + sum(costs.values())) > budget:
        raise BundleError(
            f"--budget {budget:g}: two digits for every layer still cost a KL of {expected:.2g}; allow more"
        )
    squares = {site.key: 10 ** (-(layers[site.key].psnr or 99) / 10) for site in planned if site.graph == "decoder"}
    for key in sorted(squares, key=lambda key: -squares[key]):
        if sum(squares.values()) <= 10 ** (-PSNR / 10):
            break
        changed[key] = FLOAT
        del squares[key]
    return changed, expected


class _Bench:
    """Measures layers on one loaded bundle, by replacing one graph after the other."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        sites: Sequence[Site],
        calibration: Calibration,
        target: str,
        scales: str,
        method: str,
    ) -> None:
        self._bundle, self._manifest, self._calibration = bundle, manifest, calibration
        self._target, self._method = TARGETS[target], method
        self._backend = OnnxRuntimeBackend(bundle, manifest)
        self._pipeline = Pipeline(bundle, self._backend, verify=False)
        self._replaced: str | None = None  # the graph of the layer measured last
        wide = manifest.model.width > WIDE
        tokens, batch = (TOKENS_OF_WIDE, 1) if wide else (TOKENS, BATCH)
        self._teacher = Teacher.draw(self._pipeline, tokens, sizes=(batch,))
        self.sites, self.alone = sites, alone(sites, scales)

    def layer(self, key: str) -> Layer:
        """Measure the site `key` in INT8, or for ALL_DIGITS all layers of the transformer in two digits."""
        if key == ALL_DIGITS:
            inside = {site.key for site in self.sites if site.graph == TRANSFORMER and site.name != "head"}
            plan = {k: ONE_TO_TWO_DIGITS[kind] if k in inside else FLOAT for k, kind in self.alone.items()}
        else:
            plan = {k: kind if k == key else FLOAT for k, kind in self.alone.items()}
        name = key.split(":")[0]
        if self._replaced not in (None, name):
            self._backend.restore_graph(str(self._replaced))
        self._replaced = name
        self._backend.replace_graph(name, *self._variant(name, plan))
        if name == DECODER:
            return Layer((), (), (), self._decoded())
        result = self._teacher.compare(self._pipeline)
        kl, error, agreement = (
            tuple(float(f"{getattr(scale, name):.4g}") for scale in result.scales)
            for name in ("kl", "logit_error", "agreement")
        )
        return Layer(kl, error, agreement, None)

    def _decoded(self) -> float | None:
        """Decode the teacher's complete images again; return their PSNR, None if they are equal."""
        batch = next(batch for batch in self._teacher.batches if batch.images is not None)
        squares = (self._redrawn(batch).astype(float) - batch.images) ** 2
        found = psnr(float(squares.mean()))
        return round(found, 2) if np.isfinite(found) else None

    def _redrawn(self, batch: Batch) -> np.ndarray:
        keep = [np.ones_like(tokens, bool) for tokens in batch.tokens]
        return self._pipeline.generate(
            batch.labels,
            batch.seed,
            keep=keep,
            kept_tokens=batch.tokens,
            batch=len(batch.labels),
        ).images

    def _variant(self, name: str, plan: Plan) -> tuple[Graph, bytes, dict[str, np.ndarray]]:
        """Return a graph by this plan: its manifest entry, its content with all new tensors, its inputs by scale."""
        model = open_graph(self._bundle, self._manifest, name)
        sites = [site for site in self.sites if site.graph == name]
        outside = ir.load(self._bundle / self._manifest.graphs[name].file).graph.initializers
        with open_weights(self._bundle) as weights:
            quantizer = Quantizer(
                self._target,
                plan,
                activations(self.sites, self._calibration, plan, self._target, self._method),
                self._calibration.channel_scaling or {},
                weights.get_tensor,
                fold=False,
            )
            listed = self._manifest.graphs[name]
            signature = quantizer.rewrite(Signature(name, listed.inputs, listed.outputs), model, sites)
            values = {n: np.asarray(e.compute(), e.numpy_dtype) for n, e in quantizer.entries.items()}
        remove_unused(model.graph)
        for n, value in model.graph.initializers.items():
            if value.const_value is None:
                value.const_value = ir.tensor(values[n], name=n) if n in values else outside[n].const_value
        steps = {spec.name: values[spec.name] for spec in signature.inputs if spec.name in values}
        proto = ir.to_proto(model)
        proto.graph.ClearField("value_info")  # these are sizes before rewriting: two digits double the rows
        return Graph(listed.file, signature.inputs, signature.outputs), proto.SerializeToString(), steps


def table(sensitivity: Sensitivity, plan: Plan) -> str:
    """Return a Markdown table of the layers by their loss, with the kinds that the plan gives them."""
    layers = sensitivity.layers
    lines = [
        "| layer alone INT8 | plan | mean KL | logit error at the last scale | top-1 agreement there |",
        "|---|---|---|---|---|",
    ]
    for key in sorted((k for k in layers if layers[k].kl), key=lambda k: -layers[k].mean_kl):
        found = layers[key]
        cells = f"{found.mean_kl:.1e} | {found.logit_error[-1]:.4f} | {found.agreement[-1]:.1%}"
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
    axes.set_title("KL of the next token when this layer alone is INT8", fontsize=9)
    figure.colorbar(image, ax=axes, label="nats")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
