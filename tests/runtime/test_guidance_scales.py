"""Guidance at the first scales only: the same draws as with guidance 0 at the others, at half the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.verify.observe import with_outputs
from runtime import Pipeline, Sampling, SettingsError
from runtime.backends.base import StageRun
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.base_pipeline import Result, ScaleView
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import BRIDGE, LOGITS, TRANSFORMER, X
from runtime.generate import main as generate
from tests.runtime.toy import SIDES, V, reference

K = len(SIDES)
LABELS = [0, 1, 5, 3, 4, 1, 2]
SETTINGS = {"seed": 7, "cfg": 2.0, "top_k": 3, "top_p": 0.5}


@pytest.fixture
def pipeline(toy_bundle: Path) -> Pipeline:
    return Pipeline(toy_bundle)


def equal(first: Result, second: Result) -> bool:
    maps = zip(first.tokens + first.drawn, second.tokens + second.drawn, strict=True)
    return np.array_equal(first.images, second.images) and all(np.array_equal(a, b) for a, b in maps)


@pytest.mark.parametrize("guidance_scales", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_pictures_are_those_of_the_reference(pipeline: Pipeline, guidance_scales: int, batch: int) -> None:
    result = pipeline.generate(LABELS, batch=batch, guidance_scales=guidance_scales, **SETTINGS)
    for i, label in enumerate(LABELS):
        maps, image = reference(label, 7 + i, cfg=2.0, filters=1.5, guidance_scales=guidance_scales)
        assert all(np.array_equal(result.tokens[k][i], maps[k]) for k in range(K))
        assert np.array_equal(result.images[i], image)


def test_all_scales_are_the_exact_path(pipeline: Pipeline) -> None:
    exact = pipeline.generate(LABELS, **SETTINGS)
    assert equal(pipeline.generate(LABELS, guidance_scales=K, **SETTINGS), exact)
    found = [pipeline.generate(LABELS, guidance_scales=m, **SETTINGS) for m in (1, 2)]
    assert not any(equal(result, exact) for result in found) and not equal(*found)


def test_nothing_is_left_of_earlier_generations(pipeline: Pipeline) -> None:
    """Batches with and without guidance alternate, and some are of one size."""
    wanted = [1, K, 2, 1, K]
    alone = {m: Pipeline(pipeline.bundle).generate([1, 2], guidance_scales=m, **SETTINGS) for m in set(wanted)}
    for m in wanted:
        pipeline.generate([3, 4], seed=9, cfg=5.0, guidance_scales=m)
        assert equal(pipeline.generate([1, 2], guidance_scales=m, **SETTINGS), alone[m])


def test_half_of_the_columns_run(pipeline: Pipeline) -> None:
    """Else nothing is faster. The bridge has all columns: it needs no graph of its own."""
    shapes: dict[tuple[str, int | None], tuple[int, ...]] = {}

    def observe(run: StageRun) -> None:
        name = X if run.graph == TRANSFORMER else LOGITS
        if run.graph in (TRANSFORMER, BRIDGE):
            shapes[run.graph, run.scale] = run.inputs[name].shape

    pipeline.generate([1, 2], guidance_scales=2, observe=observe, **SETTINGS)
    assert [shapes[TRANSFORMER, k][:2] for k in range(K)] == [(1, 4), (4, 4), (9, 2)]
    assert [shapes[BRIDGE, k] for k in range(K)] == [(1, 4, V), (4, 4, V), (9, 4, V)]


def test_views_show_the_logits_that_are_drawn_from(pipeline: Pipeline) -> None:
    # Without filters the toy bridge draws the largest logit.
    previews: list[np.ndarray] = []

    def on_scale(view: ScaleView) -> None:
        assert np.array_equal(view.logits().argmax(axis=2), view.tokens())
        assert (view.guidance == 0) == (view.index != 1)
        previews.append(view.preview())

    listened = pipeline.generate([1, 2], cfg=3.0, top_k=0, guidance_scales=2, on_scale=on_scale)
    assert equal(listened, pipeline.generate([1, 2], cfg=3.0, top_k=0, guidance_scales=2))
    assert np.array_equal(previews[-1], listened.images)


def test_keeping_tokens(pipeline: Pipeline) -> None:
    keep = [np.arange(p * p)[None] % 2 == 0 for p in SIDES]
    kept = [np.full((2, p * p), 11, np.int32) for p in SIDES]
    result = pipeline.generate([1, 2], keep=keep, kept_tokens=kept, guidance_scales=1, **SETTINGS)
    for k, mask in enumerate(keep):
        assert (result.tokens[k][:, mask[0]] == 11).all()
        assert np.array_equal(result.tokens[k][:, ~mask[0]], result.drawn[k][:, ~mask[0]])


def test_outputs_that_a_tool_adds_fit_every_scale(toy_bundle: Path) -> None:
    """All scales share an array for them. The last scale is not the one that needs most, if it has half the columns."""
    manifest = Manifest.load(toy_bundle)
    backend = OnnxRuntimeBackend(toy_bundle, manifest)
    graph = manifest.graphs[TRANSFORMER]
    backend.replace_graph(TRANSFORMER, *with_outputs(graph, onnx.load(toy_bundle / graph.file), {"history": ("2B",)}))
    seen: list[np.ndarray] = []

    def observe(run: StageRun) -> None:
        if run.graph == TRANSFORMER:
            seen.append(run.outputs["history"])

    found = Pipeline(toy_bundle, backend).generate([1, 2], guidance_scales=2, observe=observe, **SETTINGS)
    assert [values.shape for values in seen] == [(4,), (4,), (2,)] and all(values.all() for values in seen)
    assert equal(found, Pipeline(toy_bundle).generate([1, 2], guidance_scales=2, **SETTINGS))


@pytest.mark.parametrize("wrong", [0, K + 1, -1, 1.5, True, "2"])
def test_wrong_numbers_are_refused(pipeline: Pipeline, wrong: object) -> None:
    for settings in ({"guidance_scales": wrong}, {"sampling": Sampling(guidance_scales=wrong)}):  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match=f"guidance_scales: expected 1 to {K}, found "):
            pipeline.generate([1], **settings)  # type: ignore[arg-type]


def test_the_command(toy_bundle: Path, tmp_path: Path) -> None:
    arguments = ["--bundle", str(toy_bundle), "--label", "1", "--cfg", "2", "--out", str(tmp_path / "a.png")]
    arguments += ["--dump", str(tmp_path / "a.npz"), "--dump-logits", "--guidance-scales"]
    for m in (1, 3):
        result = CliRunner().invoke(generate, [*arguments, str(m)])
        assert result.exit_code == 0, result.output
        dump, expected = np.load(tmp_path / "a.npz"), Pipeline(toy_bundle).generate([1], cfg=2.0, guidance_scales=m)
        assert all(np.array_equal(dump[f"tokens_{k}"], maps) for k, maps in enumerate(expected.tokens))
        assert dump["logits_2"].shape == (1, 9, V)
    result = CliRunner().invoke(generate, [*arguments, "4"])
    assert (result.exit_code, result.stderr) == (1, "Error: guidance_scales: expected 1 to 3, found 4\n")
    result = CliRunner().invoke(generate, [*arguments, "0"])
    assert result.exit_code == 2 and "--guidance-scales" in result.stderr and result.stderr.count("\n") == 1
