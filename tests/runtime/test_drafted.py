"""Draft large, refine small: what is drafted is the draft's own, what follows is the refiner's, and seeds hold."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from runtime import BundleError, NumericError, Pipeline, Sampling, SettingsError
from runtime.base_pipeline import Maps, Result, ScaleView
from runtime.drafted import DRAFT, DraftedPipeline
from runtime.drawing import Watch
from runtime.edit import main as edit
from runtime.errors import OutOfMemoryError
from runtime.generate import main as generate
from runtime.sample_set import main as sample_set
from tests.runtime.toy import SIDES, reference, write_bundle

K = len(SIDES)
LABELS = [0, 1, 5, 3, 4, 1, 2]
SETTINGS = {"seed": 7, "cfg": 2.0, "top_k": 3, "top_p": 0.5}
LARGE = 0.25  # `half` of the toy model that drafts


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "bundle"
    write_bundle(folder, LARGE)
    return folder


@pytest.fixture
def pair(large: Path, toy_bundle: Path) -> tuple[Pipeline, Pipeline]:
    return Pipeline(large), Pipeline(toy_bundle)


def equal(first: Result, second: Result) -> bool:
    maps = zip(first.tokens + first.drawn, second.tokens + second.drawn, strict=True)
    return np.array_equal(first.images, second.images) and all(np.array_equal(a, b) for a, b in maps)


@pytest.mark.parametrize("count", range(K + 1))
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("guidance_scales", [None, 1, 2])
def test_pictures_are_those_of_the_reference(
    pair: tuple[Pipeline, Pipeline], count: int, batch: int, guidance_scales: int | None
) -> None:
    """One image has the same tokens in every batch."""
    drafted = DraftedPipeline(*pair, count)
    result = drafted.generate(LABELS, batch=batch, guidance_scales=guidance_scales, **SETTINGS)
    for i, label in enumerate(LABELS):
        guided = {"guidance_scales": guidance_scales or K}
        lead = reference(label, 7 + i, 2.0, 1.5, LARGE, **guided)[0][:count]
        maps, image = reference(label, 7 + i, 2.0, 1.5, lead=lead, **guided)
        assert all(np.array_equal(result.tokens[k][i], maps[k]) for k in range(K))
        assert np.array_equal(result.images[i], image)


def test_no_scale_is_the_refiner_and_all_are_the_draft(pair: tuple[Pipeline, Pipeline]) -> None:
    """The toy models share a decoder, so with all scales the images are those of the draft, too."""
    alone = [pipeline.generate(LABELS, **SETTINGS) for pipeline in pair]
    results = [DraftedPipeline(*pair, count).generate(LABELS, **SETTINGS) for count in range(K + 1)]
    assert equal(results[0], alone[1]) and equal(results[K], alone[0])
    assert not any(equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_each_picture_may_have_its_own_seed(pair: tuple[Pipeline, Pipeline]) -> None:
    drafted = DraftedPipeline(*pair, 2)
    result = drafted.generate([1, 2], [9, 4], top_k=2)
    for i, (label, seed) in enumerate([(1, 9), (2, 4)]):
        assert np.array_equal(result.images[i], drafted.generate(label, seed, top_k=2).images[0])


def test_kept_tokens_are_kept_by_both(pair: tuple[Pipeline, Pipeline]) -> None:
    keep = [np.arange(p * p)[None] % 2 == 0 for p in SIDES]
    kept = [np.full((2, p * p), 11, np.int32) for p in SIDES]
    result = DraftedPipeline(*pair, 2).generate([1, 2], keep=keep, kept_tokens=kept, **SETTINGS)
    by_draft = pair[0].generate([1, 2], keep=keep, kept_tokens=kept, **SETTINGS)
    for k, mask in enumerate(keep):
        assert (result.tokens[k][:, mask[0]] == 11).all()
        assert np.array_equal(result.tokens[k][:, ~mask[0]], result.drawn[k][:, ~mask[0]])
        assert k == 2 or np.array_equal(result.drawn[k], by_draft.drawn[k])
    assert (result.drawn[1] != 11).any()


def test_a_scale_is_shown_once_by_the_model_that_drew_it(pair: tuple[Pipeline, Pipeline]) -> None:
    seen: list[tuple[int, range]] = []

    def on_scale(view: ScaleView) -> None:
        seen.append((view.index, view.pictures))
        assert np.array_equal(view.logits().argmax(axis=2), view.tokens())  # without filters the toy draws the largest

    DraftedPipeline(*pair, 2).generate([1, 2, 3], top_k=0, batch=2, on_scale=on_scale)
    parts = [range(2), range(2, 3)]
    assert seen == [(k, part) for part in parts for k in (0, 1)] + [(2, part) for part in parts]


def test_a_draft_draws_its_scales_only(pair: tuple[Pipeline, Pipeline]) -> None:
    """It never decodes, and the refiner runs all scales: it needs the keys and values of what was drafted."""
    runs: list[tuple[str, int | None]] = []
    seen: list[tuple[str, int | None]] = []
    DraftedPipeline(*pair, 2).generate(
        [1],
        on_stage=lambda graph, scale, seconds: runs.append((graph, scale)),
        observe=lambda run: seen.append((run.graph, run.scale)),
    )
    steps = [(graph, k) for k in range(K) for graph in ("transformer", "bridge")]
    drafted = [(DRAFT + graph, k) for graph, k in steps[:4]]
    assert runs == [(DRAFT + "condition", None), *drafted, ("condition", None), *steps, ("decoder", None)]
    assert seen == runs


def test_calls_are_those_of_a_pipeline(pair: tuple[Pipeline, Pipeline]) -> None:
    """A program can be given either. Settings may be positional, too."""
    for method in ("generate", "edit"):
        assert signature(getattr(DraftedPipeline, method)) == signature(getattr(Pipeline, method))
    drafted = DraftedPipeline(*pair, 2)
    assert equal(drafted.generate(LABELS, 7, 2.0, 3, 0.5), drafted.generate(LABELS, **SETTINGS))


def test_a_pipeline_in_use_makes_no_room(pair: tuple[Pipeline, Pipeline]) -> None:
    """And nobody waits for it: two drafts that wait for each other would wait for ever."""
    expected = pair[0].generate(LABELS, **SETTINGS)
    assert equal(pair[0].generate(LABELS, on_scale=lambda view: pair[0].free_batches(), **SETTINGS), expected)
    pair[0].close()
    pair[0].free_batches()


def test_an_edit_makes_room_for_the_encoder(pair: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[Pipeline] = []
    expected = [np.zeros((1, 1), np.int32)]

    def encode(pipeline: Pipeline, images: np.ndarray) -> Maps:
        if not freed:
            raise OutOfMemoryError("no memory")
        return expected

    monkeypatch.setattr(Pipeline, "encode", encode)
    monkeypatch.setattr(Pipeline, "free_batches", lambda pipeline: freed.append(pipeline))
    assert DraftedPipeline(*pair, 1).encode(np.zeros((1, 6, 6, 3), np.uint8)) is expected
    assert freed == [pair[0]]


def test_a_draft_that_may_draw_nan_hands_none_to_a_refiner_that_may_not(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = Pipeline(toy_bundle, finite=False)
    monkeypatch.setattr(draft.backend, "tokens", lambda k: np.full((1, SIDES[k] ** 2), -1, np.int32))
    with pytest.raises(NumericError, match="logits of scale 0"):
        DraftedPipeline(draft, Pipeline(toy_bundle), 2).generate([1])
    result = DraftedPipeline(draft, Pipeline(toy_bundle, finite=False), 2).generate([1])
    assert (result.tokens[0] == -1).all()


def test_nobody_listens_to_a_refiner_that_draws_nothing(
    pair: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a GPU need not stop at its scales."""
    heard: list[bool] = []
    draw = Pipeline.draw
    monkeypatch.setattr(
        Pipeline, "draw", lambda self, request: heard.append(request.on_scale is not None) or draw(self, request)
    )
    for count in (K - 1, K):
        DraftedPipeline(*pair, count).generate([1], on_scale=lambda view: None)
    assert heard == [True, False]


def test_a_listener_would_slow_either_model(pair: tuple[Pipeline, Pipeline]) -> None:
    pair[0].backend.launches_whole = True
    assert [DraftedPipeline(*pair, count).launches_whole for count in (0, 1)] == [False, True]
    watch = Watch(False, False, lambda tokens: None)
    assert watch.of(DraftedPipeline(*pair, 1)) is None and watch.of(DraftedPipeline(*pair, 0)) is watch


def test_close_closes_both(pair: tuple[Pipeline, Pipeline]) -> None:
    with DraftedPipeline(*pair, 1) as drafted:
        drafted.generate([1])
    for pipeline in pair:
        with pytest.raises(SettingsError, match="closed"):
            pipeline.generate([1])


def test_smooth_sampling_is_refused(pair: tuple[Pipeline, Pipeline]) -> None:
    with pytest.raises(SettingsError, match="smooth: expected no smooth sampling with a draft"):
        DraftedPipeline(*pair, 1).generate([1], smooth=True)


@pytest.mark.parametrize("wrong", [-1, K + 1, 1.0, True])
def test_wrong_numbers_are_refused(pair: tuple[Pipeline, Pipeline], wrong: int) -> None:
    for make in (
        lambda: DraftedPipeline(*pair, wrong),
        lambda: DraftedPipeline.load(pair[0].bundle, pair[1].bundle, wrong),
    ):
        with pytest.raises(SettingsError, match=f"draft_scales: expected 0 to {K}, found "):
            make()


def test_settings_are_checked_before_anything_is_drawn(pair: tuple[Pipeline, Pipeline]) -> None:
    runs: list[str] = []
    for settings in ({"guidance_scales": K + 1}, {"cfg": -1.0}, {"sampling": Sampling(), "cfg": 2.0}):
        with pytest.raises(SettingsError):
            DraftedPipeline(*pair, 1).generate([1], on_stage=lambda graph, *_: runs.append(graph), **settings)  # type: ignore[arg-type]
    assert not runs


def changed(bundle: Path, **source: str) -> Path:
    """Change the provenance in a manifest, where no other check notices it."""
    document = json.loads((bundle / "manifest.json").read_text())
    document["provenance"]["source"] = source
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


def test_another_vqvae_is_refused(large: Path, own_bundle: Path) -> None:
    changed(own_bundle, vqvae_sha256="f" * 64)
    with pytest.raises(
        SettingsError, match=r"draft \S+: expected the VQVAE of \S+ \(f{12}…\), found another \(0{12}…\)"
    ):
        DraftedPipeline.load(large, own_bundle, 1)


@pytest.mark.parametrize("which", [0, 1])
def test_an_old_bundle_is_refused(large: Path, own_bundle: Path, which: int) -> None:
    changed(own_bundle)
    pair = [large, large]
    pair[which] = own_bundle
    with pytest.raises(BundleError, match=f"{own_bundle}: does not say which VQVAE .* export it again"):
        DraftedPipeline.load(*pair, 1)


def test_other_sizes_are_refused(tiny_bundle: Path, toy_bundle: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected patch_nums \(1, 2, 3\) as in \S+, found \(1, 2, 4\)"):
        DraftedPipeline.load(tiny_bundle, toy_bundle, 1)


@pytest.mark.parametrize(("key", "value"), [("quant_resi", 0.25), ("share_quant_resi", 0), ("num_classes", 6)])
def test_another_use_of_equal_tensors_is_refused(large: Path, own_bundle: Path, key: str, value: float) -> None:
    """The hash of the VQVAE's tensors does not tell these apart."""
    document = json.loads((own_bundle / "manifest.json").read_text())
    found = document["model"][key]
    document["model"][key] = value
    (own_bundle / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(SettingsError, match=rf"draft \S+: expected {key} {value} as in {own_bundle}, found {found};"):
        DraftedPipeline.load(large, own_bundle, 1)


def run(command: object, *arguments: object) -> str:
    result = CliRunner().invoke(command, [*map(str, arguments)])  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands(large: Path, toy_bundle: Path, tmp_path: Path) -> None:
    options = ("--bundle", toy_bundle, "--draft", large, "--draft-scales", 2, "--guidance-scales", 2)
    out, dump = tmp_path / "a.png", tmp_path / "a.npz"
    said = run(generate, *options, "--label", "1,2", "--out", out, "--dump", dump, "--preview-dir", tmp_path / "p")
    assert "with onnxruntime for 2 scale(s), then onnxruntime" in said
    expected = DraftedPipeline(Pipeline(large), Pipeline(toy_bundle), 2).generate([1, 2], guidance_scales=2)
    assert np.array_equal(np.load(dump)["image"], expected.images)
    assert len(list((tmp_path / "p").iterdir())) == K
    for _ in range(2):  # the second has nothing left to do
        run(sample_set, *options, "--per-class", 2, "--classes", "1,2", "--out", tmp_path / "set")
    settings = json.loads((tmp_path / "set" / "settings.json").read_text())
    assert (settings["guidance_scales"], settings["draft_scales"]) == (2, 2) and settings["draft"] != settings["bundle"]
    result = CliRunner().invoke(
        sample_set,
        ["--bundle", str(toy_bundle), "--per-class", "2", "--classes", "1,2", "--out", str(tmp_path / "set")],
    )
    assert result.exit_code == 1 and "another set" in result.stderr


@pytest.mark.parametrize("command", [generate, edit, sample_set])
def test_half_of_the_options_is_refused(command: object, large: Path, toy_bundle: Path, tmp_path: Path) -> None:
    given = [
        "--bundle",
        str(toy_bundle),
        "--out",
        str(tmp_path / "a.png"),
        *(("--image", "x") if command is edit else ()),
    ]
    for option in (["--draft", str(large)], ["--draft-scales", "1"]):
        result = CliRunner().invoke(command, [*given, *option])  # type: ignore[arg-type]
        assert result.exit_code == 2, result.output
        assert "Expected both of '--draft' and '--draft-scales', or neither" in result.stderr


def test_nothing_is_written_over_the_draft(large: Path, toy_bundle: Path) -> None:
    given = ["--bundle", str(toy_bundle), "--draft", str(large), "--draft-scales", "1"]
    result = CliRunner().invoke(sample_set, [*given, "--out", str(large.parent)])
    assert result.exit_code == 1 and f"is or holds {large}, which the command reads" in result.stderr
