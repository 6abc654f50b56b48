"""An evaluation set has the same bytes however it was drawn: a FID must not depend on a power cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime import Pipeline, SettingsError
from runtime.backends import create
from runtime.backends.base import Backend
from runtime.bundle.manifest import Manifest
from runtime.evaluation_set import SAMPLES, SETTINGS, EvaluationSet, Picture, kind_of_backend
from runtime.sample_set import main
from runtime.sampling import Sampling
from tests.runtime.fake_tensorrt import rewrite_manifest

SMALL = ["--per-class", 6, "--batch", 4, "--top-k", 5]  # 5 classes: some batches span two classes


def sample_set(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that was drawn without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "set"
    result = sample_set("--bundle", toy_bundle, "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert result.output == f"{out}: 30 of 30 image(s) drawn with onnxruntime; complete, with samples.npz\n"
    return out


def test_pictures_are_those_of_their_class_and_seed(toy_bundle: Path, whole: Path) -> None:
    names = {f"{label:04}_{index:05}.png" for label in range(5) for index in range(6)}
    assert set(contents(whole)) == names | {SETTINGS, SAMPLES}
    expected = Pipeline(toy_bundle).generate(3, seed=(3 << 20) + 4, cfg=1.5, top_k=5, top_p=0.96).images[0]
    assert np.array_equal(np.asarray(Image.open(whole / "0003_00004.png")), expected)


def test_samples_are_what_the_fid_toolkit_reads(whole: Path) -> None:
    samples = np.load(whole / SAMPLES)
    assert samples.files == ["arr_0"]
    assert samples["arr_0"].shape == (30, 6, 6, 3)
    assert samples["arr_0"].dtype == np.uint8
    names = sorted((path.name for path in whole.glob("*.png")), key=lambda n: (n[5:], sha256(n.encode()).digest()))
    for image, name in zip(samples["arr_0"], names, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(whole / name)))
    # It reads the header itself and streams what follows.
    with zipfile.ZipFile(whole / SAMPLES) as archive, archive.open("arr_0.npy") as stream:
        assert np.lib.format.read_magic(stream) == (1, 0)
        assert np.lib.format.read_array_header_1_0(stream) == ((30, 6, 6, 3), False, np.dtype("u1"))


@pytest.mark.parametrize(("classes", "per_class"), [(200, 50), (29, 50), (10, 15)])
def test_every_tenth_of_the_samples_is_scored_like_the_whole(whole: Path, classes: int, per_class: int) -> None:
    """The usual evaluator computes the Inception Score of successive tenths, in the order of the file."""
    settings = json.loads((whole / SETTINGS).read_text()) | {"classes": tuple(range(classes)), "per_class": per_class}
    wanted = EvaluationSet(**settings)

    def score(order: Sequence[Picture]) -> float:
        """Return the score by a classifier that gives every image's own class a probability of 3/4."""
        p = np.full((len(order), classes), 0.25 / classes)
        p[np.arange(len(order)), [picture.label for picture in order]] += 0.75
        parts = np.array_split(p, 10)
        return float(np.mean([np.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in parts]))

    shuffled = score([wanted.pictures[i] for i in np.random.default_rng(0).permutation(len(wanted.pictures))])
    assert set(wanted.samples) == set(wanted.pictures)
    assert score(wanted.samples) > 0.98 * shuffled
    assert score(wanted.pictures) < 0.5 * shuffled  # class by class


def test_settings_say_what_the_set_is(whole: Path) -> None:
    settings = json.loads((whole / SETTINGS).read_text())
    assert settings["classes"] == [0, 1, 2, 3, 4]
    expected = {"per_class": 6, "seed": 0, "cfg": 1.5, "top_k": 5, "top_p": 0.96, "batch": 4, "model": "toy"}
    assert expected.items() <= settings.items()


def test_shards_together_are_the_whole(toy_bundle: Path, whole: Path, tmp_path: Path) -> None:
    first = sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", *SMALL, "--shard", "1/2")
    assert first.output.endswith("16 of 30 image(s) drawn with onnxruntime; the other shards draw the rest\n")
    assert not (tmp_path / "set" / SAMPLES).exists()
    second = sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", *SMALL, "--shard", "2/2")
    assert "14 of 30" in second.output
    assert contents(tmp_path / "set") == contents(whole)


def test_killed_and_started_again(toy_bundle: Path, tmp_path: Path) -> None:
    """A run may be killed at any moment: between files, while it writes one, while it writes samples.npz."""
    settings = ["--bundle", toy_bundle, "--per-class", 120, "--batch", 3, "--top-k", 5, "--out"]
    assert sample_set(*settings, tmp_path / "unbroken").exit_code == 0
    command = [sys.executable, "-m", "runtime.sample_set", *map(str, settings), str(tmp_path / "broken")]
    draw = np.random.default_rng(os.getpid())
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        there = len(list(tmp_path.glob("broken/*.png")))
        while process.poll() is None and len(list(tmp_path.glob("broken/*.png"))) < there + 10:
            time.sleep(0.01)
        time.sleep(draw.random() / 4)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert sample_set(*settings, tmp_path / "broken").exit_code == 0
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


def test_what_was_half_written_is_cleared_away(toy_bundle: Path, whole: Path, tmp_path: Path) -> None:
    """A kill leaves an unfinished file of each kind; the next run removes it."""
    out = tmp_path / "set"
    sample_set("--bundle", toy_bundle, "--out", out, *SMALL)
    (out / SAMPLES).unlink()
    (out / "0002_00003.png").unlink()
    for name in (SAMPLES, SETTINGS, "0002_00003.png"):
        (out / f".{name}.0123abcd.var-edge").write_bytes(b"half")
    result = sample_set("--bundle", toy_bundle, "--out", out, *SMALL)
    assert ": 4 of 30 image(s) drawn" in result.output  # the batch of the missing image
    assert contents(out) == contents(whole)


def test_what_does_not_change_the_bytes_is_not_part_of_a_set(
    toy_bundle: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not part: threads, naming the default backend, unusable engines that appear between two shards."""
    out = tmp_path / "set"
    arguments = ["--bundle", toy_bundle, "--out", out, *SMALL, "--shard"]
    assert sample_set(*arguments, "1/3").exit_code == 0
    assert sample_set(*arguments, "2/3", "--threads", 1, "--backend", "onnxruntime").exit_code == 0
    monkeypatch.setattr("runtime.backends._best", lambda *found: _with_unused_engines(*found))
    result = sample_set(*arguments, "3/3")
    assert "with onnxruntime (engines not used: none fits); complete" in result.output
    assert contents(out) == contents(whole)


def _with_unused_engines(bundle: Path, manifest: Manifest, threads: int | None, verify: bool) -> Backend:
    backend = create("onnxruntime", bundle, manifest, threads, verify)
    backend.name += " (engines not used: none fits)"
    return backend


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime with 2 thread(s) (engines not used: a on b)", "onnxruntime"),
        ("onnxruntime on NVIDIA Orin with 2 thread(s)", "onnxruntime on cuda"),
        ("tensorrt_rtx 1.4.0.76 on NVIDIA RTX", "tensorrt_rtx"),
    ],
)
def test_kinds_of_backends(name: str, kind: str) -> None:
    assert kind_of_backend(name) == kind


def test_of_two_sets_begun_at_once_one_is_refused(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, out = Pipeline(toy_bundle), tmp_path / "set"
    first, second = (EvaluationSet.of(pipeline, [1], 1, seed, Sampling(1.5, 5, 0.96)) for seed in (0, 1))
    first.claim(out)
    settings = (out / SETTINGS).read_bytes()
    monkeypatch.setattr(Path, "exists", lambda path: path.name != SETTINGS and os.path.exists(path))  # as if too early
    with pytest.raises(SettingsError, match="another set: seed: expected 1, found 0"):
        second.claim(out)
    first.claim(out)
    assert (out / SETTINGS).read_bytes() == settings


def test_two_runs_share_a_set(toy_bundle: Path, tmp_path: Path) -> None:
    """Neither run removes what the other is writing, and both succeed."""
    settings = ["--bundle", toy_bundle, "--per-class", 60, "--batch", 3, "--top-k", 5, "--out"]
    assert sample_set(*settings, tmp_path / "alone").exit_code == 0
    command = [sys.executable, "-m", "runtime.sample_set", *map(str, settings), str(tmp_path / "shared")]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_nothing_is_drawn_twice(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    for expected in ("12 of 12", "0 of 12"):
        result = sample_set("--bundle", toy_bundle, "--out", out, *SMALL, "--classes", "goldfish,3,1")
        assert expected in result.output
    assert sorted(path.name for path in out.glob("*_00000.png")) == ["0001_00000.png", "0003_00000.png"]


def test_a_picture_depends_on_nothing_but_class_and_index(toy_bundle: Path, whole: Path, tmp_path: Path) -> None:
    sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", "--per-class", 2, "--classes", "4,2", "--top-k", 5)
    files = contents(tmp_path / "set")
    for name in ("0002_00001.png", "0004_00000.png"):
        assert files[name] == contents(whole)[name]


def test_seeds_never_meet() -> None:
    seeds = {Picture(c, j).seed(s) for c in (0, 1, 1000) for j in (0, 1, 2**20 - 1) for s in (0, 1, 2**24 - 1)}
    assert len(seeds) == 27
    assert max(seeds) < 2**64


def test_published_settings_are_the_default(toy_bundle: Path, demo_bundle: Path) -> None:
    wanted = EvaluationSet.of(Pipeline(demo_bundle))
    assert (wanted.cfg, wanted.top_k, wanted.top_p, wanted.per_class) == (1.5, 900, 0.96, 50)
    assert len(wanted.pictures) == 29 * 50
    assert EvaluationSet.of(Pipeline(toy_bundle)).top_k == 64  # all tokens of a smaller vocabulary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per-class", 7], "settings.json: another set: per_class: expected 7, found 6; give another folder"),
        (["--top-p", 0.9], "another set: top_p: expected 0.9, found 0.96"),
        (["--classes", "1"], "another set: classes: expected (1,), found (0, 1, 2, 3, 4)"),
    ],
)
def test_a_folder_of_another_set(toy_bundle: Path, whole: Path, arguments: list[object], message: str) -> None:
    before = contents(whole)
    result = sample_set("--bundle", toy_bundle, "--out", whole, *SMALL, *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1
    assert contents(whole) == before


def test_a_folder_of_another_bundle(whole: Path, own_bundle: Path) -> None:
    path = own_bundle / "classes.txt"
    manifest = Manifest.load(own_bundle)
    path.write_bytes(path.read_bytes().replace(b"goldfish", b"fishgold"))
    rewrite_manifest(own_bundle, manifest)
    result = sample_set("--bundle", own_bundle, "--out", whole, *SMALL)
    assert result.exit_code == 1
    assert "another set: bundle: expected '" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--per-class", 0], 2, "'--per-class': expected an integer of 1 to 1048576, found '0'"),
        (["--per-class", 2**20], 1, "per_class: expected at most 1048576 pictures of all classes, found 5242880"),
        (["--batch", 0], 2, "'--batch': expected an integer of 1 to 1024"),
        (["--seed", -1], 2, "'--seed': expected an integer of 0 to 16777215, found '-1'"),
        (["--classes", "6"], 1, "label: expected 0 to 5"),
        (["--top-k", 65], 1, "top_k: expected 0 (all) to 64, found 65"),
        (["--cfg", "nan"], 2, "'--cfg': expected a number of 0 to 1000, found 'nan'"),
        (["--out", "missing/set"], 1, "there is no folder missing"),
        (["--out", "file"], 1, "file: expected a folder, found a file"),
        (["--out", "other"], 1, "expected a new or empty folder or an evaluation set, found 'notes.txt'; give another"),
        (["--out", "broken"], 1, "or an evaluation set, found 'settings.json'; give another"),
        (["--shard", "0/2"], 2, "--shard: expected I/N with I from 1 to N, such as 2/8, found '0/2'"),
        (["--shard", "3/2"], 2, "--shard: expected"),
        (["--shard", "2"], 2, "--shard: expected"),
    ],
)
def test_mistakes(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for folder, name in (("other", "notes.txt"), ("broken", SETTINGS)):
        Path(folder).mkdir()
        Path(folder, name).write_text("{}")
    result = sample_set("--bundle", toy_bundle, "--out", "set", *arguments)
    assert result.exit_code == code
    assert message in result.output
    if code == 1:
        assert result.output.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["broken", "file", "notes.txt", "other", SETTINGS]


def test_a_picture_that_was_altered(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    sample_set("--bundle", toy_bundle, "--out", out, *SMALL)
    (out / SAMPLES).unlink()
    Image.new("RGB", (7, 6)).save(out / "0001_00001.png")
    result = sample_set("--bundle", toy_bundle, "--out", out, *SMALL)
    assert result.exit_code == 1
    assert "0001_00001.png: expected pixels (6, 6, 3), found (6, 7, 3); delete it and run again" in result.output
    assert not (out / SAMPLES).exists()
