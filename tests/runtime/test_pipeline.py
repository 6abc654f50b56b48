"""The scale loop on toy graphs: correct rows, correct order and no stale data for every batch size."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime import BundleError, Pipeline, SettingsError, VarEdgeError
from runtime.backends.base import StageRun
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.ort_session import Session
from runtime.base_pipeline import Result, ScaleView
from runtime.bundle import names
from runtime.bundle.manifest import Manifest, Tensor
from runtime.bundle.names import TRANSFORMER
from runtime.sampling import Sampling
from tests.runtime.toy import NUM_CLASSES, SIDES, V, reference

LABELS = [0, 1, 5, 3, 4, 1, 2]
SETTINGS = {"seed": 7, "cfg": 2.0, "top_k": 3, "top_p": 0.5}


@pytest.fixture
def pipeline(toy_bundle: Path) -> Pipeline:
    return Pipeline(toy_bundle)


def assert_equal(first: Result, second: Result) -> None:
    assert np.array_equal(first.images, second.images)
    for a, b in zip(first.tokens + first.drawn, second.tokens + second.drawn, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_pictures_are_those_of_the_reference(pipeline: Pipeline, batch: int) -> None:
    result = pipeline.generate(LABELS, batch=batch, **SETTINGS)
    assert result.images.shape == (7, 6, 6, 3)
    assert result.images.dtype == np.uint8
    assert [(maps.shape, maps.dtype) for maps in result.tokens] == [((7, p * p), np.int32) for p in SIDES]
    for i, label in enumerate(LABELS):
        maps, image = reference(label, 7 + i, cfg=2.0, filters=1.5)
        assert all(np.array_equal(result.tokens[k][i], maps[k]) for k in range(len(SIDES)))
        assert np.array_equal(result.images[i], image)


def test_a_second_run_sees_nothing_of_the_first(pipeline: Pipeline) -> None:
    first = pipeline.generate([1, 2], **SETTINGS)
    pipeline.generate([3, 4, 5], seed=9, top_k=2)
    keep = [np.ones((1, p * p), bool) for p in SIDES]
    kept = [mask.astype(np.int32) for mask in keep]
    pipeline.generate([3, 4], keep=keep, kept_tokens=kept, top_k=2)
    assert_equal(pipeline.generate([1, 2], **SETTINGS), first)


def test_a_callback_that_raises_stops_the_run_and_no_more(pipeline: Pipeline) -> None:
    def stop(view: ScaleView) -> None:
        if view.index == 1:
            raise KeyboardInterrupt

    first = pipeline.generate([1, 2], **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        pipeline.generate([3, 4], top_k=2, on_scale=stop)
    assert_equal(pipeline.generate([1, 2], **SETTINGS), first)


def test_kept_tokens_replace_what_was_drawn(pipeline: Pipeline) -> None:
    keep = [np.arange(p * p)[None] % 2 == 0 for p in SIDES]  # (1, p*p): the same for both pictures
    kept = [np.full((2, p * p), 11, np.int32) for p in SIDES]
    result = pipeline.generate([1, 2], keep=keep, kept_tokens=kept, batch=1, **SETTINGS)
    for k, mask in enumerate(keep):
        assert (result.tokens[k][:, mask[0]] == 11).all()
        assert np.array_equal(result.tokens[k][:, ~mask[0]], result.drawn[k][:, ~mask[0]])
    assert any((drawn != 11).any() for drawn in result.drawn)


def test_keeping_everything_drawn_changes_nothing(pipeline: Pipeline) -> None:
    free = pipeline.generate([1, 2], **SETTINGS)
    keep = [np.ones_like(maps, bool) for maps in free.tokens]
    assert_equal(pipeline.generate([1, 2], keep=keep, kept_tokens=free.tokens, **SETTINGS), free)


def test_each_picture_may_have_its_own_seed(pipeline: Pipeline) -> None:
    result = pipeline.generate([1, 2], seed=[9, 4], top_k=2)
    for i, (label, seed) in enumerate([(1, 9), (2, 4)]):
        assert np.array_equal(result.images[i], pipeline.generate(label, seed=seed, top_k=2).images[0])


def test_views_show_each_scale_of_each_turn(pipeline: Pipeline) -> None:
    seen: list[tuple[int, int, range]] = []
    tokens: dict[int, list[np.ndarray]] = {}
    previews: list[np.ndarray] = []

    def on_scale(view: ScaleView) -> None:
        seen.append((view.index, view.side, view.pictures))
        tokens.setdefault(view.index, []).append(view.tokens())
        assert view.logits().shape == (len(view.pictures), view.side**2, V)
        previews.append(view.preview())

    result = pipeline.generate([1, 2, 3], batch=2, on_scale=on_scale, **SETTINGS)
    assert seen == [(k, p, batch) for batch in (range(0, 2), range(2, 3)) for k, p in enumerate(SIDES)]
    assert all(np.array_equal(np.concatenate(tokens[k]), result.tokens[k]) for k in range(len(SIDES)))
    assert np.array_equal(np.concatenate([previews[2], previews[5]]), result.images)
    assert not np.array_equal(previews[0], previews[1])


def test_logits_are_guided(pipeline: Pipeline) -> None:
    # Without filters the toy bridge draws the largest logit, guided as the view guides it.
    def on_scale(view: ScaleView) -> None:
        assert np.array_equal(view.logits().argmax(axis=2), view.tokens())

    pipeline.generate([1, 2], cfg=3.0, top_k=0, on_scale=on_scale)


def test_keys_and_values_are_written_behind_the_past(pipeline: Pipeline) -> None:
    # The last scale reads what all earlier scales wrote.
    runs: list[StageRun] = []

    def observe(run: StageRun) -> None:
        if run.graph == TRANSFORMER:
            runs.append(StageRun(run.graph, run.scale, dict(run.inputs), dict(run.outputs)))

    pipeline.generate([1], observe=observe, **SETTINGS)
    caches = names.caches(2)
    for cache in caches:
        written = np.concatenate([run.outputs[names.new(*cache)] for run in runs[:-1]])
        assert written.shape == (5, 2, 1, 64)
        assert np.array_equal(runs[-1].inputs[names.past(*cache)], written)
    k0, k1, v0, _ = (runs[-1].inputs[names.past(*cache)] for cache in caches)
    x = v0 * 2  # the toy's values are half of x, its keys sin(x) and cos(x)
    assert np.allclose(k0, np.sin(x), atol=1e-6)
    assert np.allclose(k1, np.cos(x), atol=1e-6)
    assert np.allclose(x[0, :, 0, 0], np.sin([1, NUM_CLASSES]))


def test_an_observer_sees_every_run_in_order(pipeline: Pipeline) -> None:
    """The observer gets each run with its scale, inputs and outputs, and does not change any image."""
    runs: list[tuple[str, int | None]] = []
    drawn: dict[int, np.ndarray] = {}
    images: list[np.ndarray] = []

    def observe(run: StageRun) -> None:
        runs.append((run.graph, run.scale))
        listed = pipeline.manifest.graphs[run.graph]
        assert run.inputs.keys() == {spec.name for spec in listed.inputs}
        assert run.outputs.keys() == {spec.name for spec in listed.outputs}
        if run.graph == "bridge":
            assert run.scale is not None
            assert run.inputs["guidance"] == Sampling(cfg=2.0).guidance(run.scale, 3)
            drawn[run.scale] = run.outputs["tokens"]
        elif run.graph == "decoder":
            images.append(run.outputs["image"])

    result = pipeline.generate([1, 2], observe=observe, **SETTINGS)
    steps = [(graph, k) for k in range(3) for graph in ("transformer", "bridge")]
    assert runs == [("condition", None), *steps, ("decoder", None), ("decoder", None)]
    assert all(np.array_equal(drawn[k], maps) for k, maps in enumerate(result.tokens))
    assert np.array_equal(np.concatenate(images), result.images)
    assert_equal(pipeline.generate([1, 2], **SETTINGS), result)
    assert len(runs) == 9  # no observer in the second call


def test_settings_travel_as_one_object(pipeline: Pipeline) -> None:
    first = pipeline.generate([1], seed=7, sampling=Sampling(2.0, 3, 0.5))
    assert_equal(pipeline.generate([1], **SETTINGS), first)
    assert_equal(pipeline.generate([1], sampling=Sampling()), pipeline.generate([1]))  # a small vocabulary
    with pytest.raises(SettingsError, match="sampling: expected no cfg"):
        pipeline.generate([1], cfg=2.0, sampling=Sampling())
    with pytest.raises(SettingsError, match=r"top_k: expected 0 .* to 64, found 65"):
        pipeline.generate([1], sampling=Sampling(top_k=65))


def test_a_graph_is_replaced_and_restored(toy_bundle: Path) -> None:
    """Tools may replace a graph by one with more outputs, and with more inputs, which have a value for each scale."""
    manifest = Manifest.load(toy_bundle)
    backend = OnnxRuntimeBackend(toy_bundle, manifest)
    pipeline = Pipeline(toy_bundle, backend)
    before = pipeline.generate([1, 2], **SETTINGS)
    graph = manifest.graphs[TRANSFORMER]
    model = onnx.load(toy_bundle / graph.file, load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("factor", onnx.TensorProto.FLOAT, [1]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("steep", onnx.TensorProto.FLOAT, None))
    node = next(node for node in model.graph.node if "logits" in node.output)
    node.output[:] = ["plain_logits"]
    model.graph.node.append(onnx.helper.make_node("Mul", ["plain_logits", "factor"], ["logits"]))
    changed = replace(
        graph,
        inputs=(*graph.inputs, Tensor("factor", "float32", (1,))),
        outputs=(*graph.outputs, Tensor("steep", "float32", ("L", "2B", 64))),
    )
    seen: dict[int, np.ndarray] = {}

    def observe(run: StageRun) -> None:
        if run.graph == TRANSFORMER and run.scale is not None:
            seen[run.scale] = run.outputs["logits"] / np.sin(run.outputs["steep"])

    factors = np.array([[1], [2], [3]], np.float32)
    backend.replace_graph(TRANSFORMER, changed, model.SerializeToString(), {"factor": factors})
    pipeline.generate([1, 2], observe=observe, **SETTINGS)
    for k, side in enumerate(SIDES):
        assert seen[k].shape == (side**2, 4, 64)
        assert np.allclose(seen[k], k + 1, rtol=1e-3)
    backend.restore_graph(TRANSFORMER)
    assert_equal(pipeline.generate([1, 2], **SETTINGS), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": []}, "labels: expected at least one"),
        ({"labels": [6]}, "label: expected 0 to 5"),
        ({"labels": ["cranes"]}, "did you mean 2"),
        ({"labels": [3.7]}, "label: expected 0 to 5 .* found 3.7"),  # else the image of another label would be drawn
        ({"labels": [float("nan")]}, "label: expected 0 to 5"),
        ({"labels": None}, "label: expected 0 to 5"),
        ({"top_k": 2.5}, "top_k: expected 0 .* to 64, found 2.5"),
        ({"batch": 2.5}, "batch: expected 1 to 1024, found 2.5"),
        ({"seed": 1.5}, "seed: expected 0 .* found 1.5"),
        ({"seed": [0.5]}, "seed: expected 0 .* found 0.5"),
        ({"cfg": float("nan")}, "cfg: expected 0 to 1000"),
        ({"cfg": -1.0}, "cfg: expected 0 to 1000"),
        ({"top_k": 65}, "top_k: expected 0 .* to 64, found 65"),
        ({"top_k": -1}, "top_k: expected 0"),
        ({"top_p": 1.5}, "top_p: expected 0 .* to 1, found 1.5"),
        ({"top_p": float("nan")}, "top_p: expected"),
        ({"cfg": [4.0]}, "cfg: expected 0 to 1000, found a list of 1"),
        ({"top_k": [3]}, "top_k: expected 0 .* found a list of 1"),
        ({"top_p": [0.5]}, "top_p: expected 0 .* found a list of 1"),
        ({"smooth": "no"}, "smooth: expected True or False, found 'no'"),
        ({"guidance_scales": [2]}, "guidance_scales: expected 1 to 3, found a list of 1"),
        ({"decoder": ["tiny"]}, "decoder: expected full or tiny, found a list of 1"),
        ({"batch": 0}, "batch: expected 1 to 1024"),
        ({"seed": -1}, "seed: expected 0"),
        ({"seed": 2**64 - 1, "labels": [1, 2]}, "seed: expected 0"),
        ({"seed": [1, 2]}, r"seed: expected one seed, or 1 for 1 image\(s\), found 2"),
        ({"seed": [-1]}, "seed: expected 0"),
        ({"keep": []}, "keep, kept_tokens: expected both or neither"),
        ({"keep": [], "kept_tokens": []}, "keep: expected 3 arrays"),
    ],
)
def test_wrong_settings(pipeline: Pipeline, settings: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        pipeline.generate(**{"labels": [1], "top_k": 2, **settings})


@pytest.mark.parametrize(
    ("keep_dtype", "tokens_dtype", "token", "rows", "message"),
    [
        (np.uint8, np.int32, 0, 1, r"keep\[0\]: expected \(2 or 1, 1\) bool"),
        (bool, np.int64, 0, 1, r"kept_tokens\[0\]: expected \(2 or 1, 1\) int32"),
        (bool, np.int32, V, 1, r"kept_tokens\[0\]: expected tokens from 0 to 63"),
        (bool, np.int32, -1, 2, r"kept_tokens\[0\]: expected tokens from 0 to 63"),
        (bool, np.int32, 0, 3, r"keep\[0\]: .* found \(3, 1\)"),
    ],
)
def test_wrong_kept_tokens(
    pipeline: Pipeline, keep_dtype: type, tokens_dtype: type, token: int, rows: int, message: str
) -> None:
    keep = [np.zeros((rows, p * p), keep_dtype) for p in SIDES]
    kept = [np.full((rows, p * p), token, tokens_dtype) for p in SIDES]
    with pytest.raises(SettingsError, match=message):
        pipeline.generate([1, 2], keep=keep, kept_tokens=kept, top_k=2)


def test_numbers_of_numpy_are_numbers(pipeline: Pipeline) -> None:
    expected = pipeline.generate([3], **SETTINGS)
    settings = {"seed": np.uint8(7), "cfg": np.float32(2), "top_k": np.int32(3), "top_p": np.float64(0.5)}
    assert_equal(pipeline.generate(np.int64(3), **settings), expected)


def test_guidance_grows_from_nothing_to_cfg() -> None:
    assert [Sampling(cfg=4.0).guidance(k, 3) for k in range(3)] == [0, 2, 4]


def test_bundle_without_encoder(pipeline: Pipeline) -> None:
    with pytest.raises(BundleError, match="no encoder"):
        pipeline.encode(np.zeros((1, 6, 6, 3), np.uint8))
    with pytest.raises(SettingsError, match=r"images: expected \(N, 6, 6, 3\) uint8"):
        pipeline.encode(np.zeros((1, 7, 6, 3), np.uint8))
    with pytest.raises(SettingsError, match=r"images: expected .* found \(0, 6, 6, 3\)"):
        pipeline.encode(np.zeros((0, 6, 6, 3), np.uint8))


@pytest.mark.parametrize("name", [".", ""])
def test_the_bundle_may_be_the_current_directory(toy_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy_bundle)
    Pipeline(name)


@pytest.mark.parametrize("name", ["/", "a\0b"])
def test_names_that_are_no_bundle(name: str) -> None:
    with pytest.raises(BundleError):
        Pipeline(name)


def test_unknown_backend_and_threads(toy_bundle: Path) -> None:
    with pytest.raises(SettingsError, match="backend: expected one of auto, onnxruntime"):
        Pipeline(toy_bundle, backend="cuda")
    with pytest.raises(SettingsError, match="threads: expected 1 to 1024"):
        Pipeline(toy_bundle, threads=0)


def test_graph_and_manifest_must_agree(own_bundle: Path) -> None:
    text = (own_bundle / "manifest.json").read_text()
    (own_bundle / "manifest.json").write_text(text.replace('"kept_tokens"', '"old_tokens"'))
    with pytest.raises(BundleError, match=r"bridge.onnx: kept_tokens, old_tokens: the graph and the manifest"):
        Pipeline(own_bundle)


def test_damaged_graph_is_a_bundle_error(own_bundle: Path) -> None:
    size = (own_bundle / "decoder.onnx").stat().st_size
    (own_bundle / "decoder.onnx").write_bytes(b"\xff" * size)
    with pytest.raises(BundleError, match=r"decoder.onnx: ONNX Runtime .* cannot load it") as error:
        Pipeline(own_bundle, verify=False)
    assert "\n" not in str(error.value)


def test_a_graph_that_fails_is_one_line(toy_bundle: Path) -> None:
    graph = Manifest.load(toy_bundle).graphs["decoder"]
    run = Session(toy_bundle, graph, threads=1).bind(
        {"f_hat": np.zeros((1, 2, 3, 3), np.float32)},
        {"image": np.zeros((1, 7, 6, 3), np.uint8), "finite": np.zeros(1, np.bool_)},
    )
    with pytest.raises(VarEdgeError, match=r"decoder.onnx: ONNX Runtime failed: .*dimensions") as error:
        run()
    assert "\n" not in str(error.value)


def test_the_device_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, runtime.pipeline, runtime.dump, runtime.evaluation_set; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "onnxruntime" not in loaded.split()  # only the backend that needs it imports it
    assert not {"torch", "onnx", "onnxscript"} & set(loaded.split())


def test_stage_times_name_every_graph_and_sum_to_about_the_whole(pipeline: Pipeline) -> None:
    heard: list[tuple[str, int | None]] = []
    spent: list[float] = []

    def on_stage(stage: str, scale: int | None, seconds: float) -> None:
        heard.append((stage, scale))
        spent.append(seconds)

    start = time.perf_counter()
    result = pipeline.generate([1, 2, 3], batch=2, on_stage=on_stage, **SETTINGS)
    whole = time.perf_counter() - start
    scales = [(graph, k) for k in range(len(SIDES)) for graph in ("transformer", "bridge")]
    assert heard == [("condition", None), *scales, ("decoder", None)] * 2  # two batches
    assert 0 < sum(spent) < whole
    heard.clear()
    assert_equal(pipeline.generate([1, 2, 3], batch=2, **SETTINGS), result)
    assert not heard  # hooks are not kept for later calls
