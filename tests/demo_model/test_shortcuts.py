"""The table of shortcuts: every point is drawn as it is named, timed in turns, and compared with the exact path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from examples.shortcuts import __main__ as shortcuts
from examples.shortcuts.judge import Judge, Quality
from examples.shortcuts.models import Bundles, Candidate, Models, candidates
from examples.shortcuts.plot import front
from examples.shortcuts.point import Point, default_points
from examples.shortcuts.table import fastest_good, table
from examples.shortcuts.times import STAGES, Times, in_turns, run_of
from runtime.base_pipeline import BasePipeline
from runtime.bench.measure import Run
from runtime.bench.summary import Summary
from runtime.drafted import DraftedPipeline
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from tests.runtime.toy import write_bundle

Named = Callable[..., list[Candidate]]
GOOD = Quality(0.93, 0.5, 0.2, 1.1, 0.1, 0.01)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles of the toy model.

    large and small can draw together. Without a tiny decoder: plain, half in FP16, other with another VQVAE, reseeded
    with other weights.
    """
    folder = tmp_path_factory.mktemp("toys")
    write_bundle(folder / "large", 0.25, tiny=True)
    write_bundle(folder / "small", tiny=True)
    for name in ("plain", "half", "other", "reseeded"):
        write_bundle(folder / name)
    alter(folder / "half", lambda manifest: manifest.update(precision="fp16"))
    alter(folder / "other", lambda manifest: manifest["provenance"]["source"].update(vqvae_sha256="1" * 64))
    alter(folder / "reseeded", lambda manifest: manifest["provenance"]["source"].update(random_weights=1))
    return folder


def alter(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(shortcuts.main, [str(argument) for argument in arguments])


def rows(output: str) -> dict[str, list[str]]:
    """Return the cells of each row of the table that is printed, by its first cell."""
    cells = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


@pytest.fixture
def named(toys: Path) -> Named:
    """Candidates of the toy models, by the names of their points."""
    bundles = Bundles(toys / "large", toys / "small")
    return lambda *points: [Candidate(bundles, Point.parse(point)) for point in points]


def times(*samples: float) -> Times:
    return Times(Summary.of(samples), dict.fromkeys(STAGES, 0.0))


@pytest.mark.parametrize("text", ["exact", "draft-0", "guided-3", "tiny", "draft-4+guided-4+tiny", "guided-2+tiny"])
def test_a_point_is_written_as_it_is_read(text: str) -> None:
    assert str(Point.parse(text)) == text


def test_the_default_points_are_each_shortcut_alone_and_combined() -> None:
    assert list(map(str, default_points(6, refiner=False, tiny=False))) == [
        *("exact", "guided-5", "guided-4", "guided-3"),
    ]
    assert list(map(str, default_points(6, refiner=True, tiny=True))) == [
        *("exact", "draft-5", "draft-4", "draft-3", "guided-5", "guided-4", "guided-3", "tiny"),
        *("draft-4+guided-4", "draft-4+tiny", "guided-4+tiny"),
        *("draft-5+guided-5+tiny", "draft-4+guided-4+tiny", "draft-3+guided-3+tiny", "draft-0"),
    ]


def test_a_point_is_drawn_by_the_bundles_and_settings_that_it_names(toys: Path) -> None:
    wanted = candidates([Bundles(toys / "large", toys / "small")], [])
    by_name = {str(candidate): candidate for candidate in wanted}
    with Models(wanted, threads=1) as models:
        drafted = models.pipeline(by_name["FP32 draft-2"])
        assert isinstance(drafted, DraftedPipeline)
        assert (drafted.draft.bundle, drafted.refiner.bundle) == (toys / "large", toys / "small")
        assert drafted.draft_scales == 2
        assert models.pipeline(by_name["FP32 draft-0"]).bundle == toys / "small"
        for name in ("FP32 exact", "FP32 guided-2", "FP32 tiny"):
            assert models.pipeline(by_name[name]).bundle == toys / "large"
    sampling = by_name["FP32 draft-2+guided-2+tiny"].point.sampling(shortcuts.SAMPLING)
    assert (sampling.cfg, sampling.guidance_scales, sampling.decoder) == (shortcuts.SAMPLING.cfg, 2, "tiny")


def test_a_timed_run_draws_the_point(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = candidates([Bundles(toys / "large", toys / "small")], [])
    sampled: list[Sampling] = []
    whole = BasePipeline.generate

    def generate(pipeline: BasePipeline, *arguments: Any, sampling: Sampling, **others: Any) -> Any:
        sampled.append(sampling)
        return whole(pipeline, *arguments, sampling=sampling, **others)

    monkeypatch.setattr(BasePipeline, "generate", generate)
    with Models(wanted, threads=1) as models:
        for each in wanted:
            graphs = {graph for graph, _ in run_of(models, each, Sampling(cfg=2.0, top_k=3), threads=1).stages}
            assert ("draft transformer" in graphs) == bool(each.point.draft_scales)
            assert ("decoder_tiny" in graphs, "decoder" in graphs) == (each.point.tiny, not each.point.tiny)
            assert sampled[-1].guidance_scales == (each.point.guidance_scales or 3)
            assert (sampled[-1].cfg, sampled[-1].top_k) == (2.0, 3)


def test_only_bundles_that_a_point_needs_are_loaded(toys: Path) -> None:
    wanted = candidates([Bundles(toys / "large", toys / "small")], [Point(guidance_scales=1)])
    with Models(wanted, threads=1) as models:
        assert models.loaded == [toys / "large"]


def test_rounds_begin_with_another_point_and_a_run_before_the_timed_one_prepares_it(named: Named) -> None:
    a, b, c = wanted = named("exact", "tiny", "guided-1")
    drawn: list[Candidate] = []
    seen: list[int] = []

    def run(candidate: Candidate) -> Run:
        drawn.append(candidate)
        timed = drawn.count(candidate) % 2 == 0
        return Run(1.0 + wanted.index(candidate) if timed else 100.0, {}, 0.0, {})

    found = in_turns(wanted, 4, run, lambda candidate, runs: seen.append(len(runs)))
    assert drawn == [a, a, b, b, c, c, b, b, c, c, a, a, c, c, a, a, b, b, a, a, b, b, c, c]
    assert {candidate: found[candidate].seconds.samples for candidate in found} == {
        **{a: (1.0,) * 4, b: (2.0,) * 4, c: (3.0,) * 4},
    }
    assert list(found) == wanted  # the table keeps its order
    assert seen == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3


def test_the_seconds_of_graphs_are_those_of_their_stage() -> None:
    graphs = {("draft transformer", 0): 1.0, ("draft condition", None): 2.0, ("transformer", 0): 4.0, ("step", 1): 8.0}
    graphs |= {("bridge", 0): 16.0, ("bridge", 1): 32.0, ("decoder_tiny", None): 64.0, ("condition", None): 128.0}
    stages = Times.of([Run(1.0, graphs, 256.0, {})]).stages  # type: ignore[arg-type]
    assert stages == {"draft": 3.0, "transformer": 12.0, "bridge": 48.0, "decoder": 64.0, "rest": 384.0}


def test_ratios_are_to_the_exact_path_of_the_same_round(named: Named) -> None:
    exact, tiny, guided = named("exact", "tiny", "guided-1")
    found = {exact: times(2.0, 4.0, 3.0), tiny: times(1.0, 1.0, 1.0), guided: times(4.0, 8.0, 6.0)}
    cells = rows(table(found, {}))
    assert cells["FP32 exact"] == ["3", *["0"] * 5, "1.00 (1.00 to 1.00)"]
    assert cells["FP32 tiny"][-1] == "3.00 (2.00 to 4.00)"
    assert cells["FP32 guided-1"][-1] == "0.50 (0.50 to 0.50)"
    assert "accuracy" not in table(found, {})


def test_the_fastest_good_point_loses_little_and_is_the_fastest_of_these(named: Named) -> None:
    exact, tiny, guided, draft = named("exact", "tiny", "guided-1", "draft-2")
    found = {exact: times(4.0), tiny: times(3.0), guided: times(2.0), draft: times(1.0)}
    good = dict.fromkeys(found, GOOD)
    assert fastest_good(found, good).endswith("FP32 draft-2, 4.00 times as fast.")
    far = Quality(0.93, 0.5, 0.2, 1.3, 0.1, 0.01)
    assert fastest_good(found, good | {draft: far}).endswith("FP32 guided-1, 2.00 times as fast.")
    worse = Quality(0.9, 1.5, 0.2, 1.1, 0.1, 0.01)
    assert fastest_good(found, good | {draft: far, guided: worse}).endswith("FP32 tiny, 1.33 times as fast.")
    assert fastest_good(found, dict.fromkeys(found, far)).startswith("No shortcut has ")


def test_the_front_has_what_nothing_else_beats(named: Named) -> None:
    a, b, c, d = named("exact", "tiny", "guided-1", "draft-2")
    assert front({a: (4.0, 1.0), b: (2.0, 2.0), c: (3.0, 3.0), d: (1.0, 9.0)}) == [d, b, a]


def test_random_weights_and_other_classes_are_timed_only_and_the_output_says_so(toys: Path, tmp_path: Path) -> None:
    random = tmp_path / "random"
    write_bundle(random)
    alter(random, lambda manifest: manifest["provenance"]["source"].update(random_weights=0))
    found = command(random, "--rounds", 1)
    assert "Time only: random weights draw nothing that could be judged." in found.stdout

    plot = tmp_path / "plot.png"
    found = command(toys / "large", "--refiner", toys / "small", "--rounds", 2, "--plot", plot)
    assert not found.exit_code, found.output
    assert "Time only: its classes are not those of the demo model" in found.stdout
    assert "accuracy" not in found.output and "Fréchet" not in found.output
    expected = [f"FP32 {point}" for point in default_points(3, refiner=True, tiny=True)]
    assert list(rows(found.stdout))[2:] == expected
    assert sorted(line.partition(":")[0] for line in found.stderr.splitlines()) == sorted(expected)
    with Image.open(plot) as image:
        assert image.width == 1200


def test_images_of_the_demo_model_are_judged_once(
    demo_bundle: Path, int8_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    points = ("--points", "exact,guided-1", "--int8", int8_bundles["cpu"])
    few = ("--per-class", 2, "--tokens", 16, "--rounds", 1, "--plot", "plot.png")
    found = command(demo_bundle, *points, *few)
    assert not found.exit_code, found.output
    first = rows(found.stdout)
    assert list(first)[2:] == ["FP32 exact", "FP32 guided-1", "INT8 exact", "INT8 guided-1"]
    _, drop, frechet, kl = first["FP32 exact"][-4:]
    assert (float(drop.split(" ± ")[0]), float(frechet.split(" ± ")[0]), float(kl)) == (0, 1, 0)
    fp32, int8, both = (float(first[name][-1]) for name in ("FP32 guided-1", "INT8 exact", "INT8 guided-1"))
    assert fp32 > 0.1 > int8 > 0.001  # dropping the guidance of five of six scales; INT8
    assert both > 0.1 and both != fp32
    assert "FP32 guided-1: accuracy" in found.stderr
    assert Path("plot.png").exists()

    def judged_again(*_: object) -> Quality:
        raise AssertionError("what is kept is not judged again")

    monkeypatch.setattr(Judge, "quality", judged_again)
    other_tokens = command(demo_bundle, *points, *few, "--tokens", 17)
    assert isinstance(other_tokens.exception, AssertionError)
    again = command(demo_bundle, *points, *few)
    assert {name: cells[-4:] for name, cells in rows(again.stdout).items()} == {
        name: cells[-4:] for name, cells in first.items()
    }


def test_quality_is_that_of_the_point(demo_bundle: Path) -> None:
    """The image of a point decides; the same images lose nothing."""
    with Pipeline(demo_bundle) as pipeline:
        judge = Judge(pipeline, per_class=2, tokens=16)
        exact, all_guided, none = (judge.quality(pipeline, Point(guidance_scales=m)) for m in (None, 6, 1))
    assert exact == all_guided
    assert (exact.lost, exact.frechet, exact.kl) == (0, 1, 0)
    assert none.frechet > 1.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{large}", "--points", "draft-2"], "--points: draft-2: needs a smaller model beside {large}; give it as"),
        (["{large}", "--refiner", "{small}", "--points", "draft-4"], "draft-4: draft_scales: expected 0 to 3, found 4"),
        (["{large}", "--points", "guided-0"], "--points: guided-0: guidance_scales: expected 1 to 3, found 0"),
        (["{large}", "--points", "guided-4"], "--points: guided-4: guidance_scales: expected 1 to 3, found 4"),
        (["{plain}", "--points", "tiny"], "--points: tiny: {plain} has no tiny decoder; export it with --tiny-decoder"),
        (["{large}", "--refiner", "{plain}", "--points", "draft-1+tiny"], "{plain} has no tiny decoder"),
        (["{large}", "--points", "draft-2+quick"], "--points: expected exact, or draft-N, guided-M and tiny joined by"),
        (["{large}", "--points", "tiny+tiny"], "--points: expected exact, or"),
        (["{large}", "--points", "draft-" + "9" * 5000], "--points: expected exact, or"),
        (["{large}", "--refiner", "{other}"], "draft {large}: expected the VQVAE of {other}"),
        (["{large}", "--int8", "{small}"], "{small}: expected another precision than {large}, found FP32"),
        (["{large}", "--int8", "{reseeded}"], "{reseeded}: expected the model of {large}, found another"),
        (
            ["{large}", "--refiner", "{small}", "--int8", "{half}", "--int8-refiner", "{small}"],
            "{small}: expected another precision than {small}, found FP32",
        ),
        (["{large}", "--int8-refiner", "{small}"], "--int8-refiner needs --int8"),
        (["{large}", "--int8", "{large}", "--refiner", "{small}"], "Expected both of '--refiner' and '--int8-refiner'"),
        (["nowhere"], "nowhere: no manifest.json, so not a bundle; make onnx makes one"),
        (["{large}", "--plot", "{folder}/none/plot.png"], "there is no folder {folder}/none; make it first"),
        (["{large}", "--plot", "{folder}/plot.jpg"], "expected a name that ends in .png"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    toys: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Models, "__init__", None)  # nothing is loaded
    names = {path.name: path for path in toys.iterdir()} | {"folder": tmp_path}
    found = command(*(argument.format(**names) for argument in arguments))
    assert found.exit_code in (1, 2)
    assert message.format(**names) in found.output
    assert found.output.startswith("Error: ") and found.output.count("\n") == 1
    assert not list(tmp_path.iterdir())
