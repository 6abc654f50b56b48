"""Export a checkpoint to a bundle: ONNX graphs, one weight file and the manifest, written atomically."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from export.checkpoint.recipe import Recipe, phi_indices
from export.checkpoint.tiny_decoder import empty_tiny_decoder
from export.checkpoint.weights import Weights, empty_models
from export.graphs.definitions import all_graphs
from export.graphs.fold import Expression, fold
from export.graphs.mixed_precision import to_fp16
from export.graphs.signature import Signature
from export.graphs.trace import trace
from export.graphs.weights import STORED, Entry
from export.graphs.write import Head, write_bundle
from export.kept import Warn, new_bundle
from export.model.quantizer import area_matrix, bicubic_matrix
from export.room import check_room
from runtime.bundle import manifest
from runtime.bundle.manifest import TINY_SOURCE
from runtime.bundle.precision import Precision
from runtime.errors import SettingsError
from runtime.files.outputs import EXPORTED
from runtime.limits import shown
from runtime.progress import Progress, silent

PRECISIONS = (Precision.FP32, Precision.FP16)


def export_bundle(
    recipe: Recipe,
    weights: Weights,
    out: Path,
    precision: str = "fp32",
    batches: Sequence[int] = (1,),
    options: dict[str, Any] | None = None,
    smooth: bool = False,
    progress: Progress = silent,
    warn: Warn = lambda note: None,
) -> None:
    """Write the bundle directory `out`. An existing bundle is replaced; other files in its directory are kept.

    `precision` is one of `PRECISIONS`. `batches` are the batch sizes that the static per-scale steps are specialised
    for; all other graphs take any size. `smooth` adds the graph of smooth sampling. `options` go into the provenance.
    `warn` is called if a kept file does not fit the new bundle. Raises SettingsError, CheckpointError, OSError.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"precision: expected {' or '.join(PRECISIONS)}, found {shown(precision)}")
    with new_bundle(out, EXPORTED, warn) as folder:
        check_room(recipe, out, Precision(precision))
        traced = list(_trace_all(recipe, precision, smooth, TINY_SOURCE in weights.source, progress))
        head = Head(
            model=recipe.model,
            precision=Precision(precision),
            scales=_scales(recipe),
            step_constants=(),
            provenance=_provenance(recipe, weights, options or {}),
        )
        entries = [*_weight_entries(traced, weights), *_resize_entries(recipe)]
        graphs = [(graph, model) for graph, model, _ in traced]
        write_bundle(folder, head, graphs, entries, recipe.class_list, batches, progress)


Traced = tuple[Signature, ir.Model, dict[str, Expression]]


def _trace_all(recipe: Recipe, precision: str, smooth: bool, tiny: bool, progress: Progress) -> Iterator[Traced]:
    var, vqvae = empty_models(recipe)
    imitation = empty_tiny_decoder(recipe) if tiny else None
    for module in filter(None, (var, vqvae, imitation)):
        module.to_empty(device="cpu")  # addresses without memory: tracing reads no value
    graphs = list(all_graphs(recipe, var, vqvae, smooth, imitation))
    for i, graph in enumerate(graphs):
        progress(f"tracing {graph.name}", i, len(graphs))
        model = trace(graph)
        expressions = fold(model)
        yield to_fp16(graph, model) if precision == Precision.FP16 else graph, model, expressions


def _weight_entries(traced: Sequence[Traced], weights: Weights) -> Iterator[Entry]:
    """Yield an entry for every weight of the graphs; a tensor that several graphs use comes once."""
    seen: dict[str, tuple[str, bytes]] = {}

    def compute(expression: Expression) -> Callable[[], np.ndarray]:
        return lambda: expression.evaluate(weights.read)

    for _, model, expressions in traced:
        for name, expression in expressions.items():
            value = model.graph.initializers[name]
            assert value.shape is not None and value.dtype is not None
            key = STORED[value.dtype], expression.key()
            assert seen.get(name, key) == key, f"{name} stands for two different tensors"
            if name not in seen:
                seen[name] = key
                yield Entry(name, STORED[value.dtype], tuple(value.shape.numpy()), compute(expression))


def _resize_entries(recipe: Recipe) -> Iterator[Entry]:
    """Yield the bridge's resize matrices over flattened maps; one matrix resizes both axes."""

    def entry(name: str, rows: int, columns: int, axis: np.ndarray) -> Entry:
        return Entry(name, "F32", (rows, columns), lambda: np.kron(axis, axis).T)

    pixels = recipe.grid**2
    for k, scale in enumerate(recipe.scales):
        yield entry(_upsample(k), scale.tokens, pixels, bicubic_matrix(scale.side, recipe.grid).numpy())
        if k > 0:
            yield entry(_downsample(k), pixels, scale.tokens, area_matrix(recipe.grid, scale.side).numpy())


def _upsample(k: int) -> str:
    return f"bridge.upsample.{k}"


def _downsample(k: int) -> str:
    return f"bridge.downsample.{k}"


def _scales(recipe: Recipe) -> tuple[manifest.Scale, ...]:
    phi = phi_indices(len(recipe.scales), recipe.phi_count)
    return tuple(
        manifest.Scale(*scale, phi[k], _upsample(k), _downsample(k) if k else None)
        for k, scale in enumerate(recipe.scales)
    )


def _provenance(recipe: Recipe, weights: Weights, options: dict[str, Any]) -> manifest.Provenance:
    tools = {package: version(package) for package in ("var-edge", "torch", "onnx", "onnxscript", "onnx-ir", "numpy")}
    return manifest.Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        source=weights.source | {manifest.VQVAE_SHA256: weights.sha256_of(empty_models(recipe)[1])},
        tools=tools | {"python": platform.python_version()},
        options=options,
    )
