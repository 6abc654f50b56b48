"""Write a bundle: graphs, the weight file with the tensors that they refer to, and the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir

from export.graphs.signature import Signature
from export.graphs.specialize import specialize
from export.graphs.weights import Entry, WeightFile
from runtime.bundle import manifest
from runtime.bundle.names import TRANSFORMER, static_step
from runtime.bundle.precision import Precision
from runtime.progress import Progress

CLASS_NAMES = "classes.txt"


@dataclass(frozen=True)
class Head:
    """The parts of the manifest that are known before writing: all but the graphs and files."""

    model: manifest.Model
    precision: Precision
    scales: tuple[manifest.Scale, ...]
    step_constants: tuple[str, ...]
    provenance: manifest.Provenance


def write_bundle(
    folder: Path,
    head: Head,
    graphs: Sequence[tuple[Signature, ir.Model]],
    entries: Iterable[Entry],
    classes: Path | None,
    batches: Sequence[int],
    progress: Progress,
    others: Sequence[Callable[[Path], None]] = (),
) -> None:
    """Fill the empty directory `folder` with a bundle.

    `graphs` name the weights that `entries` compute. `classes` is a file of class names. The transformer is also
    specialised for each batch size in `batches`. Each function in `others` writes further files into the folder that it
    gets. Raises SettingsError, OSError.
    """
    layout = WeightFile(entries)
    written = 0

    def on_tensor(entry: Entry) -> None:
        nonlocal written
        written += entry.size
        progress("writing weights", written, layout.size)

    layout.write(folder / manifest.WEIGHTS, on_tensor)
    listed = {}
    for graph, model in graphs:
        proto = _with_weights(model, layout.external(folder / manifest.WEIGHTS))
        listed[graph.name] = _save(proto, graph, folder)
        if graph.name == TRANSFORMER:
            listed |= _save_steps(proto, graph, head, batches, folder, progress)
    if classes is not None:
        shutil.copyfile(classes, folder / CLASS_NAMES)
    for write in others:
        write(folder)
    progress("hashing", 0, 1)
    manifest.Manifest(
        schema_version=manifest.SCHEMA_VERSION,
        model=head.model,
        precision=head.precision,
        classes=None if classes is None else CLASS_NAMES,
        scales=head.scales,
        step_constants=head.step_constants,
        graphs=listed,
        files={path.name: manifest.File.of(path) for path in sorted(folder.iterdir())},
        provenance=head.provenance,
    ).write(folder)


def _with_weights(model: ir.Model, external: dict[str, ir.ExternalTensor]) -> onnx.ModelProto:
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = external[name]
    model.producer_name, model.producer_version = "var-edge", version("var-edge")
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")  # symbolic intermediate shapes: tools that need them infer them
    return proto


def _save(proto: onnx.ModelProto, graph: Signature, folder: Path) -> manifest.Graph:
    path = folder / f"{graph.name}.onnx"
    onnx.save_model(proto, path)
    onnx.checker.check_model(path, full_check=True)
    return manifest.Graph(path.name, graph.inputs, graph.outputs)


def _save_steps(
    proto: onnx.ModelProto, graph: Signature, head: Head, batches: Sequence[int], folder: Path, progress: Progress
) -> dict[str, manifest.Graph]:
    """Write the static per-scale steps `transformer_b1_00`, …; return them by name."""
    steps = {}
    for batch in batches:
        for k, scale in enumerate(head.scales):
            name = static_step(batch, k)
            progress(f"specialising {name}", k, len(head.scales))
            sizes = {"2B": 2 * batch, "L": scale.tokens, "S": scale.offset}
            static = Signature(name, _sized(graph.inputs, sizes), _sized(graph.outputs, sizes))
            steps[name] = _save(specialize(proto, sizes, name), static, folder)
    return steps


def _sized(tensors: Sequence[manifest.Tensor], sizes: dict[str, int]) -> tuple[manifest.Tensor, ...]:
    return tuple(
        manifest.Tensor(t.name, t.dtype, tuple(sizes[a] if isinstance(a, str) else a for a in t.shape)) for t in tensors
    )
