"""python -m runtime.generate: its files, its one line of output, and one clear line for every mistake."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime import Pipeline
from runtime.generate import main
from runtime.images import FRAME, LAST_FRAME, grid, write_animation
from tests.runtime.toy import V


def generate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_one_picture(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    result = generate("--bundle", toy_bundle, "--label", "golden retriever", "--seed", 3, "--top-k", 5, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{out}: 1 image(s) in ")
    assert "with onnxruntime" in result.output
    expected = Pipeline(toy_bundle).generate([4], seed=3, top_k=5).images[0]
    assert np.array_equal(np.asarray(Image.open(out)), expected)


def test_the_default_top_k_fits_a_small_vocabulary(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    result = generate("--bundle", toy_bundle, "--label", "1", "--out", out)
    assert result.exit_code == 0, result.output
    expected = Pipeline(toy_bundle).generate(1, top_k=V).images[0]  # all of it
    assert np.array_equal(np.asarray(Image.open(out)), expected)
    assert np.array_equal(Pipeline(toy_bundle).generate(1).images[0], expected)
    asked = generate("--bundle", toy_bundle, "--label", "1", "--top-k", "900", "--out", out)  # the default's number
    assert asked.exit_code == 1
    assert f"top_k: expected 0 (all) to {V}, found 900" in asked.output


def test_dump_holds_the_whole_generation(toy_bundle: Path, tmp_path: Path) -> None:
    out, dump = tmp_path / "picture.png", tmp_path / "dump.npz"
    labels = ["--label", "1, 2", "--label", "tench"]
    result = generate(
        "--bundle",
        toy_bundle,
        *labels,
        "--top-k",
        5,
        "--batch",
        2,
        "--out",
        out,
        "--dump",
        dump,
        "--dump-logits",
    )
    assert result.exit_code == 0, result.output
    dump = np.load(dump)
    expected = Pipeline(toy_bundle).generate([1, 2, 0], top_k=5)
    names = [f"{kind}_{k}" for kind in ("tokens", "logits") for k in range(3)]
    assert sorted(dump.files) == sorted(["image", *names])
    assert np.array_equal(dump["image"], expected.images)
    for k, tokens in enumerate(expected.tokens):
        assert np.array_equal(dump[f"tokens_{k}"], tokens)
        assert dump[f"logits_{k}"].shape == (*tokens.shape, 64)
        assert dump[f"logits_{k}"].dtype == np.float32


def test_previews_and_animation_go_from_coarse_to_fine(toy_bundle: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "picture.png", tmp_path / "previews"
    folder.mkdir()
    (folder / "scale_02.png").write_text("of an earlier run")
    common = ["--bundle", toy_bundle, "--label", "1,2,3", "--top-k", 5, "--batch", 2, "--out", out]
    result = generate(*common, "--preview-dir", folder, "--animation", tmp_path / "a.webp")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == [
        "scale_00.png",
        "scale_01.png",
        "scale_02.png",
    ]
    assert (folder / "scale_02.png").read_bytes() == out.read_bytes()
    previews: list[list[np.ndarray]] = [[], [], []]
    Pipeline(toy_bundle).generate(
        [1, 2, 3], top_k=5, batch=2, on_scale=lambda view: previews[view.index].append(view.preview())
    )
    for k, batches in enumerate(previews):
        sheet = grid(np.concatenate(batches))
        assert np.array_equal(np.asarray(Image.open(folder / f"scale_{k:02}.png")), sheet)

    assert generate(*common, "--animation", tmp_path / "a.gif").exit_code == 0
    for name in ("a.webp", "a.gif"):
        with Image.open(tmp_path / name) as animation:
            assert (animation.n_frames, animation.size) == (3, Image.open(out).size)
            durations = []
            for k in range(3):
                animation.seek(k)
                animation.load()
                durations.append(animation.info["duration"])
            assert durations == [FRAME, FRAME, LAST_FRAME]


def test_an_animated_frame_looks_like_its_picture(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32, 1).repeat(3, 2)
    for name in ("a.webp", "a.gif"):
        write_animation(tmp_path / name, [ramp, 255 - ramp])
        with Image.open(tmp_path / name) as animation:
            animation.seek(1)
            error = np.asarray(animation.convert("RGB")).astype(int) - (255 - ramp)
        assert np.abs(error).mean() < 4


def test_list_classes(toy_bundle: Path) -> None:
    result = generate("--bundle", toy_bundle, "--list-classes")
    assert result.exit_code == 0
    assert result.output.splitlines()[0].split(maxsplit=1) == ["0", "tench; Tinca tinca"]
    assert len(result.output.splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--label", "6"], 1, "label: expected 0 to 5"),
        (["--label", "1,"], 1, "label ''"),
        (["--label", "gold fish"], 1, "did you mean 1 (goldfish)?"),
        (["--label", "1", "--top-k", "65"], 1, "top_k: expected"),
        (["--label", "1", "--top-k", "5", "--seed", "-1"], 2, "seed': expected"),
        (["--label", "1", "--out", "picture.jpg"], 1, "ends in .png"),
        (["--label", "1", "--out", "missing/picture.png"], 1, "there is no folder"),
        (["--label", "1", "--dump", "dump.npy"], 1, "ends in .npz"),
        (["--label", "1", "--animation", "a.png"], 1, "a.png: expected a name that ends in .webp or .gif"),
        (["--label", "1", "--preview-dir", "missing/previews"], 1, "there is no folder missing"),
        (["--label", "1", "--bundle", "missing"], 1, "not a bundle"),
        (["--label", "1", "--dump-logits"], 2, "--dump-logits needs --dump"),
        (["--label", "1", "--backend", "cuda"], 2, "'cuda' is not one of"),
        ([], 2, "Missing option '--label'"),
    ],
)
def test_mistakes(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = generate("--bundle", toy_bundle, *arguments)
    assert result.exit_code == code
    assert message in result.output
    if code == 1:
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_altered_file(own_bundle: Path, tmp_path: Path) -> None:
    with (own_bundle / "bridge.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x00")
    result = generate("--bundle", own_bundle, "--label", "1", "--out", tmp_path / "picture.png")
    assert result.exit_code == 1
    assert "bridge.onnx: altered" in result.output


def test_interrupt_leaves_no_file(toy_bundle: Path, tmp_path: Path) -> None:
    code = """
import signal, sys
import runtime.generate, runtime.images
from runtime.files.atomic import atomic_file

def interrupted(path, image, record):
    with atomic_file(path) as file:
        file.write(b"half")
        signal.raise_signal(signal.SIGINT)

runtime.images.write_png = interrupted
runtime.generate.main(sys.argv[1:])
"""
    arguments = ["--bundle", str(toy_bundle), "--label", "1", "--top-k", "0", "--out", str(tmp_path / "picture.png")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate", "edit", "sample_set"])
def test_help_waits_for_no_library(command: str) -> None:
    code = f"import sys, runtime.{command} as c; c.main(['--help'], standalone_mode=False); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--bundle" in output
    assert not {"numpy", "onnxruntime", "PIL", "rich"} & set(output.splitlines()[-1].split())
