"""Write an INT8 bundle from an FP32 bundle, its calibration and a plan."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.collect import tensors
from calibration.plan import CALIBRATED, DIGITS, Plan
from calibration.quantize import Quantizer
from calibration.ranges import METHODS, CalibrationError, Histogram
from calibration.record import Calibration
from calibration.sites import GRAPHS, Site, find_sites, open_graph
from calibration.target import SCALES, ZERO_POINTS, Activation, Target
from export.graphs.mixed_precision import to_fp16
from export.graphs.signature import Signature
from export.graphs.weights import STORED, Entry
from export.graphs.write import Head, write_bundle
from export.kept import Warn, new_bundle
from runtime.bundle.manifest import Manifest, Provenance
from runtime.bundle.names import ENCODER, STEP_PREFIX, TRANSFORMER
from runtime.bundle.precision import Precision
from runtime.bundle.weight_file import open_weights
from runtime.files.outputs import INT8_BUNDLE, check_directory
from runtime.progress import Progress, silent

ONE_SIDED = 0.75  # a range below this share of its symmetric range gets a zero point


def quantize_bundle(
    bundle: Path,
    out: Path,
    calibration: Calibration,
    plan: Plan,
    target: Target,
    method: str,
    batches: Sequence[int] = (1,),
    progress: Progress = silent,
    others: Sequence[Callable[[Path], None]] = (),
    warn: Warn = lambda note: None,
    budget: float | None = None,
) -> None:
    """Write the INT8 bundle `out`. An existing INT8 bundle is replaced; other files in its directory are kept.

    `others` write further files into the bundle. `warn` is called if a kept file does not fit the new bundle. The
    manifest records the `budget` that the plan keeps, if any. Raises CalibrationError, BundleError, SettingsError,
    OSError.
    """
    check_directory(out, INT8_BUNDLE, bundle)
    source = Manifest.load(bundle)
    opened = {name: open_graph(bundle, source, name) for name in source.graphs if not name.startswith(STEP_PREFIX)}
    sites = {name: find_sites(name, opened[name]) for name in GRAPHS}
    every = [site for found in sites.values() for site in found]
    if missing := sorted({site.key for site in every} ^ set(plan)):
        raise CalibrationError(f"the plan and {bundle} differ in {', '.join(missing[:3])}")
    with open_weights(bundle) as weights:
        quantizer = Quantizer(
            target,
            plan,
            activations(every, calibration, plan, target, method),
            calibration.channel_scaling or {},
            weights.get_tensor,
        )
        graphs = []
        for name, model in opened.items():
            graph = Signature(name, source.graphs[name].inputs, source.graphs[name].outputs)
            graph = quantizer.rewrite(graph, model, sites.get(name, []))
            if target.half:
                graph = to_fp16(graph, model)
            elif name == ENCODER:
                _store_in_half(model.graph)
            remove_unused(model.graph)
            graphs.append((graph, model))
        entries = list(_entries(source, [model for _, model in graphs], quantizer.entries, weights))
        inputs = {graph.name: graph.inputs for graph, _ in graphs}
        steps = tuple(spec.name for spec in inputs[TRANSFORMER] if spec.name in quantizer.entries)
        kinds = {kind: sorted(key for key in plan if plan[key] == kind) for kind in dict.fromkeys(plan.values())}
        options = {
            "target": target.name,
            "method": method,
            "calibration": calibration.settings.to_json(),
            "plan": kinds,
        }
        head = Head(
            model=source.model,
            precision=Precision.int8(target.name),
            scales=source.scales,
            step_constants=steps,
            provenance=_provenance(source, options | {"pictures": calibration.count, "budget": budget}),
        )
        classes = bundle / source.classes if source.classes else None
        with new_bundle(out, INT8_BUNDLE, warn, bundle) as folder:
            write_bundle(folder, head, graphs, entries, classes, batches, progress, others)


def activations(
    sites: Sequence[Site], calibration: Calibration, plan: Plan, target: Target, method: str
) -> dict[str, Activation]:
    """Return how the tensors around INT8 products with calibrated ranges become 8 bits, by name.

    Raises CalibrationError.
    """
    found = {}
    for site in sites:
        if plan[site.key] not in CALIBRATED:
            continue
        for name in tensors(site):
            if name.endswith(" output") and not target.unsigned:
                continue
            histograms = calibration.histograms.get(name)
            if not histograms:
                raise CalibrationError(f"{name}: the calibration has no ranges for it; calibrate this bundle again")
            found[name] = _activation(name, histograms, site, plan[site.key], target, method)
    return found


def _activation(
    name: str, histograms: Sequence[Histogram], site: Site, kind: str, target: Target, method: str
) -> Activation:
    symmetric = kind == DIGITS or (not target.unsigned and not _one_sided(histograms, site))
    choose = METHODS["minmax" if kind == DIGITS else method]  # two digits are precise enough for the whole range
    ranges = np.array([choose(histogram, symmetric) for histogram in histograms], np.float64)  # (K, 2)
    for k, (low, high) in enumerate(ranges):
        if not (np.isfinite(low + high) and low <= 0 <= high and high > low):
            raise CalibrationError(
                f"{name}, scale {k}: the calibration has the range {low:g} to {high:g}; calibrate this bundle again"
            )
    low, high = ranges.T
    if symmetric:
        scale = np.maximum(-low, high) / 127
        zero = np.full_like(scale, 128 if target.unsigned else 0)
    elif target.unsigned:
        scale = (high - low) / 255
        zero = np.clip(np.round(-low / scale), 0, 255)
    else:
        scale = (high - low) / 254
        zero = np.round(-127 - low / scale)
    if site.graph != TRANSFORMER and target.half:
        scale = scale.astype(np.float16)  # a constant stored in FP16
    return Activation(scale.astype(np.float32), zero)


def _one_sided(histograms: Sequence[Histogram], site: Site) -> bool:
    """Return whether a zero point pays. Convolutions get none: they pad with 0, which must stay 0."""
    shares = [(h.high - h.low) / (2 * max(-h.low, h.high, 1e-30)) for h in histograms]
    return site.op == "MatMul" and float(np.mean(shares)) < ONE_SIDED


def _store_in_half(graph: ir.Graph) -> None:
    """Store weights in FP16, cast to FP32 when the graph is loaded: half the file size, the same arithmetic."""
    for weight in list(graph.initializers.values()):
        if (
            weight.const_value is None
            and weight.dtype == ir.DataType.FLOAT
            and not str(weight.name).startswith("quantize.")
        ):
            weight.dtype = ir.DataType.FLOAT16
            cast = ir.node("Cast", [weight], attributes={"to": ir.DataType.FLOAT})
            cast.name = cast.outputs[0].name = f"{weight.name}.widened"
            cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            weight.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, weight)
            graph.insert_before(graph[0], cast)


def remove_unused(graph: ir.Graph) -> None:
    """Remove the weights that nothing reads after the rewriting."""
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _entries(source: Manifest, models: Sequence[ir.Model], added: Mapping[str, Entry], weights: Any) -> list[Entry]:
    """Return every tensor that the graphs or the runtime read, each once, with the dtype that it has in the graphs."""
    found: dict[str, Entry] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...]) -> None:
        assert name not in found or found[name].dtype == dtype, f"{name} has two dtypes"
        compute = added[name].compute if name in added else lambda: weights.get_tensor(name)
        found.setdefault(name, Entry(name, dtype, shape, compute))

    for model in models:
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                assert value.shape is not None and value.dtype is not None
                add(name, STORED[value.dtype], tuple(value.shape.numpy()))
    for name in sorted(source.runtime_tensors):
        add(name, "F32", tuple(weights.get_slice(name).get_shape()))
    for name, entry in added.items():
        if name.startswith((SCALES, ZERO_POINTS)):
            add(name, entry.dtype, entry.shape)
    return list(found.values())


def _provenance(source: Manifest, options: dict[str, Any]) -> Provenance:
    tools = source.provenance.tools | {
        package: version(package) for package in ("var-edge", "onnx", "onnx-ir", "numpy")
    }
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        source=source.provenance.source,
        tools=tools | {"python": platform.python_version()},
        options=source.provenance.options | options,
    )
