"""A checkpoint becomes a bundle: ONNX graphs, one weight file and the manifest, in a directory whole or not there."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from export.checkpoint import Weights, empty_models
from export.fold import Expression, fold
from export.graphs import Graph, all_graphs
from export.mixed_precision import to_fp16
from export.model.quantizer import area_matrix, bicubic_matrix, phi_indices
from export.recipe import Recipe
from export.room import check_room
from export.specialize import specialize
from export.trace import trace
from export.weights import Entry, WeightFile
from runtime import manifest
from runtime.errors import SettingsError
from runtime.files import whole_directory

Progress = Callable[[str, int, int], None]  # what is going on, how much of it is done, how much there is
CLASSES = Path(__file__).parents[1] / "runtime" / "classes"
PRECISIONS = ("fp32", "fp16")
DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16"}  # in ONNX and in the weight file


def export_bundle(
    recipe: Recipe,
    weights: Weights,
    out: Path,
    precision: str = "fp32",
    batches: Sequence[int] = (1,),
    options: dict[str, Any] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Writes the bundle directory `out`, replacing a bundle that is there.

    `precision` is one of `PRECISIONS`. `batches` are the batch sizes that the static per-scale steps are specialised
    for; all other graphs take any.
    `options` go into the provenance. Raises SettingsError, CheckpointError, OSError.
    """
    _check_target(out)
    check_room(recipe, out)
    traced = list(_trace_all(recipe, precision, progress))
    layout = WeightFile([*_weight_entries(traced, weights), *_resize_entries(recipe)])
    with whole_directory(out) as folder:
        written = 0

        def on_tensor(entry: Entry) -> None:
            nonlocal written
            written += entry.size
            progress("writing weights", written, layout.size)

        layout.write(folder / manifest.WEIGHTS, on_tensor)
        graphs = {}
        for graph, model, _ in traced:
            proto = _with_weights(model, layout.external(folder / manifest.WEIGHTS))
            graphs[graph.name] = _save(proto, graph, folder)
            if graph.name == "transformer":
                graphs |= _save_steps(proto, graph, recipe, batches, folder, progress)
        classes = _copy_classes(recipe, folder)
        progress("hashing", 0, 1)
        manifest.Manifest(
            schema_version=manifest.SCHEMA_VERSION,
            model=_model(recipe),
            precision=precision,
            classes=classes,
            scales=_scales(recipe),
            graphs=graphs,
            files={path.name: manifest.File.of(path) for path in sorted(folder.iterdir())},
            provenance=_provenance(weights, options or {}),
        ).write(folder)


Traced = tuple[Graph, ir.Model, dict[str, Expression]]


def _trace_all(recipe: Recipe, precision: str, progress: Progress) -> Iterator[Traced]:
    var, vqvae = empty_models(recipe)
    var.to_empty(device="cpu")  # addresses without memory: tracing looks at no value
    vqvae.to_empty(device="cpu")
    graphs = list(all_graphs(recipe, var, vqvae))
    for i, graph in enumerate(graphs):
        progress(f"tracing {graph.name}", i, len(graphs))
        model = trace(graph)
        expressions = fold(model)
        yield to_fp16(graph, model) if precision == "fp16" else graph, model, expressions


def _weight_entries(traced: Sequence[Traced], weights: Weights) -> Iterator[Entry]:
    """What the graphs leave open, each tensor once however many graphs use it."""
    seen: dict[str, tuple[str, bytes]] = {}

    def compute(expression: Expression) -> Callable[[], np.ndarray]:
        return lambda: expression.evaluate(weights.read)

    for _, model, expressions in traced:
        for name, expression in expressions.items():
            value = model.graph.initializers[name]
            assert value.shape is not None and value.dtype is not None
            key = DTYPES[value.dtype], expression.key()
            assert seen.get(name, key) == key, f"{name} stands for two different tensors"
            if name not in seen:
                seen[name] = key
                yield Entry(name, DTYPES[value.dtype], tuple(value.shape.numpy()), compute(expression))


def _resize_entries(recipe: Recipe) -> Iterator[Entry]:
    """The bridge's resize matrices over flattened maps, both axes at once."""

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


def _with_weights(model: ir.Model, external: dict[str, ir.ExternalTensor]) -> onnx.ModelProto:
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = external[name]
    model.producer_name, model.producer_version = "var-edge", version("var-edge")
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")  # symbolic intermediate shapes serve nobody: whoever needs them infers them
    return proto


def _save(proto: onnx.ModelProto, graph: Graph, folder: Path, name: str | None = None) -> manifest.Graph:
    path = folder / f"{name or graph.name}.onnx"
    onnx.save_model(proto, path)
    onnx.checker.check_model(path, full_check=True)
    return manifest.Graph(path.name, graph.inputs, graph.outputs)


def _save_steps(
    proto: onnx.ModelProto, graph: Graph, recipe: Recipe, batches: Sequence[int], folder: Path, progress: Progress
) -> dict[str, manifest.Graph]:
    """The static per-scale steps `transformer_b1_00`, …"""
    steps = {}
    for batch in batches:
        for k, scale in enumerate(recipe.scales):
            name = f"{graph.name}_b{batch}_{k:02d}"
            progress(f"specialising {name}", k, len(recipe.scales))
            sizes = {"2B": 2 * batch, "L": scale.tokens, "S": scale.offset}
            static = Graph(name, graph.module, _sized(graph.inputs, sizes), _sized(graph.outputs, sizes))
            steps[name] = _save(specialize(proto, sizes, name), static, folder, name)
    return steps


def _sized(tensors: Sequence[manifest.Tensor], sizes: dict[str, int]) -> tuple[manifest.Tensor, ...]:
    return tuple(
        manifest.Tensor(t.name, t.dtype, tuple(sizes[a] if isinstance(a, str) else a for a in t.shape)) for t in tensors
    )


def _copy_classes(recipe: Recipe, folder: Path) -> str | None:
    if recipe.classes is None:
        return None
    shutil.copyfile(CLASSES / f"{recipe.classes}.txt", folder / "classes.txt")
    return "classes.txt"


def _model(recipe: Recipe) -> manifest.Model:
    names = manifest.Model.__dataclass_fields__
    return manifest.Model(**{name: getattr(recipe, name) for name in names})


def _scales(recipe: Recipe) -> tuple[manifest.Scale, ...]:
    phi = phi_indices(len(recipe.scales))
    return tuple(
        manifest.Scale(*scale, phi[k], _upsample(k), _downsample(k) if k else None)
        for k, scale in enumerate(recipe.scales)
    )


def _provenance(weights: Weights, options: dict[str, Any]) -> manifest.Provenance:
    tools = {package: version(package) for package in ("var-edge", "torch", "onnx", "onnxscript", "onnx-ir", "numpy")}
    return manifest.Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        source=weights.source,
        tools=tools | {"python": platform.python_version()},
        options=options,
    )


def _check_target(out: Path) -> None:
    """Raises SettingsError if something else than a bundle is there."""
    if out.exists() and not (out / manifest.FILE_NAME).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--out {out}: exists and is no bundle; choose another directory or remove it")
