"""No command overwrites what it did not write: a user's folder, its source, the current directory."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.conftest import DATA

EXPORT = ("export.__main__", "--model", str(DATA / "tiny.toml"), "--random-weights", "0", "--out")
DIRECTORIES = {
    "export": EXPORT,
    "calibration": ("calibration.__main__", "BUNDLE", "--images", "8", "--out"),
    "ablation": ("calibration.ablation", "BUNDLE", "--images", "8", "--naive"),
    "engine": ("export.engine.__main__", "BUNDLE", "--out"),
    "verify": ("export.verify.__main__", "BUNDLE", "--against", "BUNDLE", "--report"),
    "gpu_check": ("export.gpu_check", "BUNDLE", "BUNDLE", "--report"),
    "sample_set": ("runtime.sample_set", "--bundle", "BUNDLE", "--top-k", "9", "--out"),
    "triton": ("runtime.triton", "--bundle", "BUNDLE"),
    "previews of the client": ("runtime.client", "--preview-dir"),
    "previews": ("runtime.generate", "--bundle", "BUNDLE", "--label", "1", "--top-k", "9", "--preview-dir"),
    "previews of an edit": ("runtime.edit", "--bundle", "BUNDLE", "--image", "photo.png", "--box", "0,0,1,0.5",
                            "--top-k", "9", "--preview-dir"),
}  # fmt: skip
GENERATE = ("runtime.generate", "--bundle", "BUNDLE", "--label", "1", "--top-k", "9")
EDIT = ("runtime.edit", "--bundle", "BUNDLE", "--image", "photo.png", "--box", "0,0,1,0.5", "--top-k", "9")
BENCH = ("runtime.bench.__main__", "--bundle", "BUNDLE", "--runs", "1", "--top-k", "9")
FILES = {  # the option's file name stands last
    "generate --out": (*GENERATE, "--out", "{}.png"),
    "generate --dump": (*GENERATE, "--dump", "{}.npz"),
    "generate --animation": (*GENERATE, "--animation", "{}.webp"),
    "edit --out": (*EDIT, "--out", "{}.png"),
    "edit --dump": (*EDIT, "--dump", "{}.npz"),
    "edit --animation": (*EDIT, "--animation", "{}.gif"),
    "client --out": ("runtime.client", "--out", "{}.png"),
    "bench --json": (*BENCH, "--json", "{}.json"),
    "bench --plot": (*BENCH, "--plot", "{}.png"),
    "calibration --calibration": (*DIRECTORIES["calibration"], "new", "--calibration", "{}.json"),
    "engine --timing-cache": ("export.engine.__main__", "BUNDLE", "--timing-cache", "{}.timing"),
}


@pytest.fixture
def place(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a bundle, an image, and a user's folder that resembles every kind of output."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    shutil.copytree(tiny_bundle, "BUNDLE")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("photo.png")
    Path("photos").mkdir()
    names = (
        "manifest.json",
        "engine.json",
        "report.json",
        "report.html",
        "settings.json",
        "scale_00.png",
        "me.jpg",
        "config.pbtxt",
    )
    for name in names:
        Path("photos", name).write_text('{"name": "a web page"}')
    return here


def run(arguments: tuple[str, ...]) -> Result:
    return CliRunner().invoke(import_module(arguments[0]).main, list(arguments[1:]))


def state(folder: Path) -> dict[str, bytes | str]:
    """Return every file below `folder` with its content, and every link and directory."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink()
        else path.read_bytes() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }  # fmt: skip


@pytest.mark.parametrize("command", DIRECTORIES)
@pytest.mark.parametrize(
    "target", ["photos", ".", "", "..", "BUNDLE", "BUNDLE/", "photo.png", "dangling", "loop", "link", "n" * 300, "/"]
)
def test_a_directory_that_is_not_its_own_is_refused(place: Path, command: str, target: str) -> None:
    if target == "BUNDLE" and command == "export":
        pytest.skip("a bundle is what the exporter may replace: tests/export/test_command.py")
    if target == "BUNDLE/" and command == "export":
        target = "photos/"
    for name, to in (("dangling", "nowhere"), ("loop", "loop"), ("link", "photos")):
        Path(name).symlink_to(to)
    before = state(place.parent)
    result = run((*DIRECTORIES[command], target))
    assert result.exit_code == (1 if target else 2), result.output  # no path at all is wrong usage
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert state(place.parent) == before


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("target", ["folder", "missing/file", "dangling", "n" * 300, "fifo"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(place: Path, command: str, target: str) -> None:
    *arguments, name = FILES[command]
    suffix = Path(name.format("x")).suffix
    Path(f"folder{suffix}").mkdir()
    Path(f"dangling{suffix}").symlink_to("nowhere")
    os.mkfifo(f"fifo{suffix}")
    before = state(place)
    result = run((*arguments, name.format(target)))
    assert result.exit_code == 1, result.output
    assert result.output.count("\n") == 1
    assert state(place) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*EDIT, "--out", "photo.png"), "photo.png: the command reads this file"),
        ((*GENERATE, "--out", "a.png", "--preview-dir", "a.png"), "two outputs have this name"),
        ((*GENERATE, "--out", "BUNDLE/../a.png", "--preview-dir", "a.png"), "two outputs have this name"),
        ((*BENCH, "--json", "BUNDLE/manifest.json"), "manifest.json: the command reads this file"),
        ((*DIRECTORIES["calibration"], "new", "--calibration", "BUNDLE/manifest.json"), "the command reads this file"),
        (
            ("export.engine.__main__", "BUNDLE", "--timing-cache", "photo.png"),
            "expected a name that ends in .timing or .cache",
        ),
    ],
)
def test_outputs_that_meet(place: Path, arguments: tuple[str, ...], message: str) -> None:
    before = state(place)
    result = run(arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert state(place) == before


def test_an_int8_bundle_is_not_replaced_by_an_export(place: Path) -> None:
    text = Path("BUNDLE/manifest.json").read_text()
    Path("BUNDLE/manifest.json").write_text(text.replace('"precision": "fp32"', '"precision": "int8 for cpu"', 1))
    before = state(place)
    result = run((*EXPORT, "BUNDLE"))
    assert "expected a new or empty folder or an exported bundle" in result.output
    assert state(place) == before
