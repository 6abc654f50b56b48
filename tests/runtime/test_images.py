"""Pictures on disk: whole or not at all, and every one of them on the sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import SettingsError
from runtime.files import check_target, whole_directory, whole_file
from runtime.images import GAP, grid, write_png


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (8, 3, 3), (9, 3, 3)])
def test_grid_holds_every_picture(count: int, rows: int, columns: int) -> None:
    images = np.arange(count * 4 * 6 * 3, dtype=np.uint8).reshape(count, 4, 6, 3)
    sheet = grid(images)
    assert sheet.shape == (rows * (4 + GAP) - GAP, columns * (6 + GAP) - GAP, 3)
    for i, image in enumerate(images):
        y, x = i // columns * (4 + GAP), i % columns * (6 + GAP)
        assert np.array_equal(sheet[y : y + 4, x : x + 6], image)


def test_png_keeps_every_value(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "picture.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), image)


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with whole_directory(path) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_directory(path) as folder:
        (folder / "file").write_text("half")
        raise ZeroDivisionError
    assert (path / "file").read_text() == "old"
    with whole_directory(path) as folder:
        (folder / "other").write_text("new")
    assert [file.name for file in path.iterdir()] == ["other"]
    assert list(tmp_path.iterdir()) == [path]


def test_targets_are_refused_before_the_work(tmp_path: Path) -> None:
    check_target(tmp_path / "picture.PNG", ".png")
    (tmp_path / "folder.png").mkdir()
    for path, message in [
        (tmp_path / "picture.jpg", "ends in .png"),
        (tmp_path / "missing" / "picture.png", "there is no folder"),
        (tmp_path / "folder.png", "cannot be written"),
    ]:
        with pytest.raises(SettingsError, match=message):
            check_target(path, ".png")
