"""Bisect a stage that fails: find the first node whose result is out of tolerance, or an input that is wrong already.

The failing graph and a sound FP32 one run in two generations, both teacher-forced with the same tokens, with their
inner tensors as outputs. Tensors keep their names through mixed precision and INT8, so equal names are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from export.verify.check import SMOOTH, STATIC_STEP, TINY, Row
from export.verify.metrics import Difference
from export.verify.recording import Recording, generate
from export.verify.tolerances import INSIDE
from runtime.backends.base import StageRun
from runtime.backends.ort import onnxruntime as ort
from runtime.backends.ort_session import EXACT_INT8, WEIGHTS_FOLDER
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import (
    ENCODER,
    IMAGE,
    KEEP,
    MODULATION,
    REQUIRED_GRAPHS,
    SMOOTH_BRIDGE,
    TINY_DECODER,
    TRANSFORMER,
    modulation_of,
    static_step,
)
from runtime.errors import SettingsError
from runtime.pipeline import Pipeline
from runtime.processors import usable_cpus
from runtime.sampling import Sampling

CHUNK = 1 << 29  # bytes of inner tensors held at a time, of each graph
# stage -> graph
GRAPHS = {name: name for name in (*REQUIRED_GRAPHS, ENCODER)} | {SMOOTH: SMOOTH_BRIDGE, TINY: TINY_DECODER}
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Finding:
    """Where a stage goes wrong."""

    graph: str
    scale: int | None
    place: str  # 'MatMul node_MatMul_83 (blocks.0.ffn.fc1.weight)', "input phi"
    tensor: str
    error: float  # relative
    tolerance: float  # of one tensor; if no tensor exceeds it, `place` is where the error grows most

    def __str__(self) -> str:
        where = self.graph if self.scale is None else f"{self.graph}, scale {self.scale}"
        grows = "" if self.error > self.tolerance else "; no tensor is out of tolerance, the error grows most here"
        error = f"relative error {self.error:.3g}, at most {self.tolerance:g}{grows}"
        return f"{where}: {self.place}: {self.tensor}: {error}"


@np.errstate(over="ignore", invalid="ignore")
def bisect(
    failed: Row,
    candidate: Path,
    original: Path,
    sound: Path,
    known: Recording,
    sampling: Sampling,
    scaling: Mapping[str, np.ndarray],
) -> Finding | None:
    """Return what is wrong in the stage of the row `failed`; None if it computes the same as the sound bundle.

    `candidate` is the bundle that failed, for FP16 the simulated twin of `original`. `sound` is an FP32 bundle of the
    same model. `known` is the reference's recording of one image. Raises SettingsError.
    """
    graph = GRAPHS.get(failed.stage, TRANSFORMER)
    manifests = [Manifest.load(path, verify=False) for path in (candidate, sound)]
    tolerance = INSIDE[manifests[0].precision.kind]
    found, expected = (
        _inputs(path, manifest, graph, failed.scale, known, sampling)
        for path, manifest in zip((candidate, sound), manifests, strict=True)
    )
    for name, values in expected.items():
        error = _error(name, values, found[name], scaling)
        if error > tolerance:
            return Finding(graph, failed.scale, f"input {name}", name, error, tolerance)
    file = graph
    if failed.stage.startswith(STATIC_STEP):
        size = int(failed.stage.removeprefix(STATIC_STEP))
        assert failed.scale is not None
        file = static_step(size, failed.scale)
        found, expected = (_repeated(feed, manifests[1], size) for feed in (found, expected))
    if file not in manifests[1].graphs:
        raise SettingsError(f"--bisect: {sound} has no {file} to compare with; export it with the same options")
    feeds = [(found, expected)]
    if graph.startswith("bridge"):  # equal inputs: a draw may depend on a logit's last bit; then without kept tokens
        feeds = [(feed, feed) for feed in (expected, {**expected, KEEP: np.zeros_like(expected[KEEP])})]
    files = [path / manifest.graphs[file].file for path, manifest in zip((candidate, sound), manifests, strict=True)]
    written = original / Manifest.load(original, verify=False).graphs[file].file
    for pair in feeds:
        node = _wrong_node(files, written, pair, tolerance, scaling)
        if node and (node[-1] > tolerance or len(feeds) == 1):
            return Finding(graph, failed.scale, *node, tolerance)
    return None


def _repeated(feed: Mapping[str, np.ndarray], manifest: Manifest, size: int) -> dict[str, np.ndarray]:
    """Repeat the inputs of a transformer for one image, so that it reads `size` equal images."""
    axes = {spec.name: spec.shape.index("2B") for spec in manifest.graphs[TRANSFORMER].inputs if "2B" in spec.shape}
    return {name: values.repeat(size, axes[name]) if name in axes else values for name, values in feed.items()}


def _inputs(
    bundle: Path, manifest: Manifest, graph: str, scale: int | None, known: Recording, sampling: Sampling
) -> dict[str, np.ndarray]:
    """Return the inputs of the graph at this scale, teacher-forced with the reference's tokens."""
    if graph == ENCODER:
        return {IMAGE: known.images}
    smooth, led_scales = graph == SMOOTH_BRIDGE, scale if graph == SMOOTH_BRIDGE else None
    seen: dict[str, np.ndarray] = {}

    def observe(run: StageRun) -> None:
        if (run.graph, run.scale) == (graph, scale):
            seen.update(run.inputs)
            raise _Seen

    pipeline = Pipeline(bundle, "onnxruntime", verify=False, finite=False)
    sampling = replace(sampling, smooth=smooth, decoder="tiny" if graph == TINY_DECODER else "full")
    with suppress(_Seen):
        generate(pipeline, known.batch, sampling, known.tokens, led_scales=led_scales, observe=observe)
    return seen


class _Seen(Exception):
    """Ends a generation when the stage has run."""


def _wrong_node(
    files: Sequence[Path],
    written: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    tolerance: float,
    scaling: Mapping[str, np.ndarray],
) -> tuple[str, str, float] | None:
    """Return the first node out of tolerance, else the one where the error grows most: its name, its result, its error.

    `files` and `feeds` are those of the candidate, then those of the sound bundle. The node is named as in the file
    `written`: the candidate before simulation added its rounding.
    """
    models = [onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)) for path in files]
    floats = [_floats(model) for model in models]
    shared = (floats[0].keys() & floats[1].keys()) | {value.name for value in models[0].graph.output}
    makers = _makers(models[0])
    names = {**makers, **_makers(onnx.load(written, load_external_data=False))}
    order = [name for name in makers if name in shared]
    sessions = [_session(path, model, order) for path, model in zip(files, models, strict=True)]
    errors: dict[str, float] = {}  # by the candidate's tensors; a tensor that is not compared inherits its error
    worst: tuple[float, str] | None = None
    for chunk in _chunks(order, floats[1], feeds[1]):
        found, expected = (
            dict(zip(chunk, session.run(chunk, _fed(session, feed)), strict=True))
            for session, feed in zip(sessions, feeds, strict=True)
        )
        for name in chunk:
            errors[name] = _error(name, expected[name], found[name], scaling)
            if errors[name] > tolerance:
                return _described(names[name], names), name, errors[name]
            growth = errors[name] - _inherited(makers[name], makers, errors)
            if growth > 0 and (worst is None or growth > worst[0]):
                worst = growth, name
    return worst and (_described(names[worst[1]], names), worst[1], errors[worst[1]])


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that computes each tensor, by the tensor's name."""
    return {name: node for node in model.graph.node for name in node.output}


def _inherited(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], errors: dict[str, float]) -> float:
    """Return the largest error of the inputs of a node."""
    for name in node.input:
        if name not in errors:
            errors[name] = _inherited(makers[name], makers, errors) if name in makers else 0.0
    return max((errors[name] for name in node.input), default=0.0)


def _floats(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Return the inner floating-point tensors and their shapes; None stands for an unknown axis."""
    inputs = {value.name for value in model.graph.input}
    floats = (
        value
        for value in model.graph.value_info
        if value.type.tensor_type.elem_type in FLOATS and value.name not in inputs
    )
    return {value.name: [axis.dim_value or None for axis in value.type.tensor_type.shape.dim] for value in floats}


def _session(file: Path, model: onnx.ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    """Return a session that can output any of these tensors."""
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, 0, None) for n in names if n not in given)
    for value in model.graph.output:
        if value.name not in given:
            value.ClearField("type")  # ONNX Runtime infers it
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cpus()
    options.add_session_config_entry(WEIGHTS_FOLDER, str(file.parent))
    options.add_session_config_entry(*EXACT_INT8)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _fed(session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {value.name: feed[value.name] for value in session.get_inputs()}


def _chunks(
    order: Sequence[str], shapes: Mapping[str, list[int | None]], feed: Mapping[str, np.ndarray]
) -> Iterator[list[str]]:
    """Yield the tensors in the order they are computed, in lists that fit into CHUNK bytes."""
    largest_axis = max(size for values in feed.values() for size in values.shape)
    chunk: list[str] = []
    held = 0
    for name in order:
        size = 4 * math.prod(axis or largest_axis for axis in shapes.get(name, []))
        if chunk and held + size > CHUNK:
            yield chunk
            chunk, held = [], 0
        chunk.append(name)
        held += size
    if chunk:
        yield chunk


def _error(name: str, expected: np.ndarray, found: np.ndarray, scaling: Mapping[str, np.ndarray]) -> float:
    """Return the relative error; for tokens and booleans the share that differs; infinity if the shapes differ.

    If `condition` scaled the channels, the scaling is undone first.
    """
    if expected.shape != found.shape:
        return math.inf
    if not expected.size:
        return 0.0
    if expected.dtype.kind in "biu":
        return float((expected != found).mean())
    if name in scaling:
        return _relative(expected, found / scaling[name])
    by_block = {modulation_of(i): factors for i, factors in enumerate(scaling.get(MODULATION, ()))}
    if name in by_block:
        return _relative(expected, found / by_block[name])
    vectors = [row for factors in scaling.values() for row in factors.reshape(-1, factors.shape[-1])]
    fitting = [row for row in vectors if expected.shape[-1:] == row.shape and (row != 1).any()]
    return min(_relative(expected, found / vector) for vector in (np.float32(1), *fitting))


def _relative(expected: np.ndarray, found: np.ndarray) -> float:
    difference = Difference()
    difference.add(expected, found)
    error = difference.metrics()["relative"]
    return math.inf if math.isnan(error) else error


def _described(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Return the operator and name of a node, and the weights that it reads, dequantized or not."""
    weights = []
    for name in node.input:
        maker = makers.get(name)
        stored = name if maker is None else maker.input[0] if maker.op_type == "DequantizeLinear" else ""
        if ".weight" in stored or ".bias" in stored:
            weights.append(stored)
    read = f" ({', '.join(weights)})" if weights else ""
    return f"{node.op_type} {node.name}{read}"
