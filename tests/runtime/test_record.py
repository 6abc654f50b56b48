"""A picture holds the settings that drew it, and they draw it again."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, PngImagePlugin

import runtime.edit
import runtime.generate
import runtime.sample_set
from runtime import Pipeline, Sampling, SettingsError
from runtime.images import write_animation, write_png
from runtime.limits import RECORD_BYTES
from runtime.record import KEY, Record
from runtime.version import __version__
from tests.runtime.toy import CLASS_FILE, V, write_bundle

DRAWN_BY = {"model": "toy", "precision": "fp32", "bundle": "0" * 64, "backend": "onnxruntime"}
SETTINGS = ["--cfg", "3", "--top-k", "5", "--top-p", "0.9", "--guidance-scales", "2", "--batch", "2"]


def run(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def drawn(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of three images, with all other files of a generation beside it."""
    folder = tmp_path_factory.mktemp("drawn")
    files = ["--out", folder / "a.png", "--animation", folder / "a.webp", "--preview-dir", folder / "scales"]
    files += ["--dump", folder / "a.npz"]
    result = run(
        runtime.generate, "--bundle", toy_bundle, "--label", "1,4,none", "--seed", 2**64 - 3, *SETTINGS, *files
    )
    assert result.exit_code == 0, result.output
    return folder


def test_the_record_says_what_drew_the_picture(toy_bundle: Path, drawn: Path) -> None:
    stored = json.loads(Image.open(drawn / "a.png").info[KEY])
    assert stored == {
        "schema_version": 1,
        "version": __version__,
        "drawn_by": {
            "model": "toy",
            "precision": "fp32",
            "bundle": Pipeline(toy_bundle).manifest.fingerprint,
            "backend": "onnxruntime",
        },
        "draft": None,
        "draft_scales": 0,
        "labels": [1, 4, 5],
        "classes": ["goldfish", "golden retriever", "none"],
        "seeds": [str(2**64 - 3), str(2**64 - 2), str(2**64 - 1)],
        "batch": 2,
        "cfg": 3.0,
        "top_k": 5,
        "top_p": 0.9,
        "smooth": False,
        "guidance_scales": 2,
        "decoder": "full",
        "edit": None,
    }
    record = Record.read(drawn / "a.png")
    assert all(Record.read(path) == record for path in (drawn / "a.webp", *(drawn / "scales").iterdir()))


@pytest.mark.parametrize("file", ["a.png", "a.webp", "scales/scale_00.png"])
def test_a_picture_is_repeated_exactly(file: str, toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    out, dump = tmp_path / "b.png", tmp_path / "b.npz"
    result = run(runtime.generate, "--bundle", toy_bundle, "--from", drawn / file, "--out", out, "--dump", dump)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == (drawn / "a.png").read_bytes()
    first, second = np.load(drawn / "a.npz"), np.load(dump)
    assert first.files == second.files
    assert all(np.array_equal(first[name], second[name]) for name in first.files)


def test_a_drafted_picture_is_repeated_exactly(toy_bundle: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "draft", half=0.75)
    out, again = tmp_path / "a.png", tmp_path / "b.png"
    drafted = ["--draft", tmp_path / "draft", "--draft-scales", 2]
    first = run(runtime.generate, "--bundle", toy_bundle, "--label", "1,2", *SETTINGS, *drafted, "--out", out)
    assert first.exit_code == 0, first.output
    record = Record.read(out)
    assert record.draft is not None
    assert (record.draft_scales, record.draft.bundle == record.drawn_by.bundle) == (2, False)
    second = run(runtime.generate, "--bundle", toy_bundle, "--from", out, *drafted, "--out", again)
    assert second.exit_code == 0, second.output
    assert again.read_bytes() == out.read_bytes()
    for wrong, said in (
        ([], "expected a draft of 2 scale(s), found 0; give --draft DIR --draft-scales 2"),
        ([*drafted[:3], 1], "expected a draft of 2 scale(s), found 1"),
        (["--draft", toy_bundle, "--draft-scales", 2], "drafted by toy in fp32 ("),
    ):
        result = run(runtime.generate, "--bundle", toy_bundle, "--from", out, *wrong, "--out", again)
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert said in result.output


def test_a_smooth_picture_is_repeated_exactly(fp16_tiny_bundle: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "a.png", tmp_path / "b.png"
    first = run(runtime.generate, "--bundle", fp16_tiny_bundle, "--label", "1,2", "--smooth", "--out", out)
    assert first.exit_code == 0, first.output
    assert run(runtime.generate, "--bundle", fp16_tiny_bundle, "--from", out, "--out", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()


def test_a_picture_of_a_set_is_repeated(toy_bundle: Path, tmp_path: Path) -> None:
    arguments = ["--bundle", toy_bundle, "--per-class", 2, "--top-k", 5]
    assert run(runtime.sample_set, *arguments, "--out", tmp_path / "set").exit_code == 0
    original, again = tmp_path / "set" / "0003_00001.png", tmp_path / "b.png"
    assert run(runtime.generate, "--bundle", toy_bundle, "--from", original, "--out", again).exit_code == 0
    assert again.read_bytes() == original.read_bytes()
    plain = tmp_path / "plain"
    assert run(runtime.sample_set, *arguments, "--no-metadata", "--out", plain).exit_code == 0
    assert KEY not in Image.open(plain / original.name).info
    assert np.array_equal(pixels(plain / original.name), pixels(original))


def test_no_metadata(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    files = ["--out", tmp_path / "a.png", "--animation", tmp_path / "a.webp", "--preview-dir", tmp_path / "scales"]
    result = run(runtime.generate, "--bundle", toy_bundle, "--label", "1,4,none", *SETTINGS, *files, "--no-metadata")
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "a.png", tmp_path / "a.webp", *(tmp_path / "scales").iterdir()):
        assert b"var-edge" not in path.read_bytes()
        assert b"schema_version" not in path.read_bytes()
        with pytest.raises(SettingsError, match="holds no settings; it is not of VAR Edge"):
            Record.read(path)


@pytest.mark.parametrize(
    "option",
    [
        ["--label", "1"],
        ["--seed", "0"],  # also the default, if it is given
        ["--cfg", "4"],
        ["--top-k", "5"],
        ["--top-p", "1"],
        ["--smooth"],
        ["--guidance-scales", "1"],
        ["--decoder", "full"],
        ["--batch", "8"],
    ],
)
def test_an_option_that_the_picture_decides_is_refused(
    option: list[str], toy_bundle: Path, drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.png"
    result = run(runtime.generate, "--bundle", toy_bundle, "--from", drawn / "a.png", *option, "--out", out)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert f"remove {option[0]};" in result.output
    assert not out.exists()


def test_another_bundle_is_refused(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", half=0.75)
    result = run(
        runtime.generate, "--bundle", tmp_path / "other", "--from", drawn / "a.png", "--out", tmp_path / "b.png"
    )
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "a.png: drawn by toy in fp32 (" in result.output
    assert "give that bundle as --bundle" in result.output


def test_another_engine_or_version_is_told(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    record = Record.read(drawn / "a.png")
    for other, said in (
        (record, ""),
        (
            dataclasses.replace(record, drawn_by=dataclasses.replace(record.drawn_by, backend="tensorrt")),
            "drawn with tensorrt, now with onnxruntime, so it may differ",
        ),
        (
            dataclasses.replace(record, version="0.0.1"),
            f"drawn with version 0.0.1, now with version {__version__}, so it may differ",
        ),
    ):
        write_png(tmp_path / "a.png", pixels(drawn / "a.png"), other)
        arguments = ["--bundle", toy_bundle, "--from", tmp_path / "a.png", "--out", tmp_path / "b.png"]
        result = run(runtime.generate, *arguments)
        assert result.exit_code == 0
        assert said in result.output
        assert ("Warning: " in result.output) == (said != "")


def test_the_picture_is_not_overwritten_by_its_repetition(toy_bundle: Path, drawn: Path) -> None:
    result = run(runtime.generate, "--bundle", toy_bundle, "--from", drawn / "a.png", "--out", drawn / "a.png")
    assert "the command reads this file" in result.output


def test_an_edit_is_recorded_and_not_repeated(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    arguments = ["--image", tmp_path / "photo.png", "--box", "0,0,1,0.5", "--label", "1", "--seed", 5]
    result = run(runtime.edit, "--bundle", tiny_bundle, *arguments, "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    record = Record.read(tmp_path / "a.png")
    assert (record.edit, record.labels, record.seeds) == ("inpaint", (1,), ("5",))
    again = run(runtime.generate, "--bundle", tiny_bundle, "--from", tmp_path / "a.png", "--out", tmp_path / "b.png")
    assert (again.exit_code, again.output.count("\n")) == (1, 1)
    assert "an edit, which needs the given image and its region, which the file does not hold" in again.output
    compared = [*arguments, "--compare", "--preview-dir", tmp_path / "scales", "--out", tmp_path / "c.png"]
    assert run(runtime.edit, "--bundle", tiny_bundle, *compared).exit_code == 0
    with pytest.raises(SettingsError, match="holds no settings"):  # it shows three images, of which one was drawn
        Record.read(tmp_path / "c.png")
    assert Record.read(tmp_path / "scales" / "scale_00.png") == record


def test_names_of_every_script(tmp_path: Path) -> None:
    """Latin-1 fits a tEXt chunk, other scripts need iTXt; EXIF gets UTF-8."""
    for name, chunk in (("café", b"tEXt"), ("金魚", b"iTXt")):
        folder = tmp_path / name
        write_bundle(folder, class_file=CLASS_FILE.replace("goldfish", name))
        record = Record.of(Pipeline(folder), 1, 0, 1, Sampling())
        write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), record)
        assert chunk in (tmp_path / "a.png").read_bytes()
        write_animation(tmp_path / "a.webp", [np.zeros((4, 4, 3), np.uint8)] * 2, record)
        for file in ("a.png", "a.webp"):
            assert Record.read(tmp_path / file).classes == (name,)


def with_text(path: Path, text: str, zipped: bool = False) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, text, zip=zipped)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def changed(text: str, **values: object) -> str:
    return json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schema_version": 2}, "expected settings of schema_version 1, found 2; another version of VAR Edge wrote it"),
        ({"schema_version": [1]}, "found a list of 1"),
        ({"cfg": "4"}, "settings.cfg: expected a number, found '4'"),
        ({"cfg": 1e6}, "settings.cfg: expected 0 to 1000, found 1000000.0"),
        ({"batch": 10**9}, "settings.batch: expected 1 to 1024"),
        ({"batch": True}, "settings.batch: expected an integer, found True"),
        ({"top_k": -1}, "settings.top_k: expected"),
        ({"top_p": -0.1}, "settings.top_p: expected"),
        ({"guidance_scales": 0}, "settings.guidance_scales: expected"),
        ({"draft_scales": 3}, "settings.draft: expected one where draft_scales is above 0"),
        ({"edit": "erase"}, "settings.edit: expected inpaint or outpaint, or null, found 'erase'"),
        ({"version": "1\n2"}, "settings.version: expected a printable name"),
        ({"drawn_by": DRAWN_BY | {"model": "\x1b[2J"}}, "settings.drawn_by.model: expected a printable name"),
        ({"drawn_by": DRAWN_BY | {"backend": "x" * 1025}}, "settings.drawn_by.backend: expected a printable name"),
        ({"draft": DRAWN_BY | {"bundle": ""}, "draft_scales": 1}, "settings.draft.bundle: expected a printable name"),
        ({"classes": ["a", "b"]}, "settings.classes: expected none or 3, found 2"),
        ({"classes": ["a", "b", "c\u202e"]}, "settings.classes: expected printable names of at most 1024"),
        ({"decoder": "../x"}, "settings.decoder: expected full or tiny"),
        ({"labels": []}, "expected one or more labels and as many seeds, found 0 and 3"),
        ({"labels": [1] * 4}, "found 4 and 3"),
        ({"labels": [1, 2, {}]}, "settings.labels[2]: expected an integer"),
        ({"seeds": ["1", "2", "-3"]}, "settings.seeds: expected integers of 0 to"),
        ({"seeds": ["1", "2", "9" * 5000]}, "settings.seeds: expected integers of 0 to"),
        ({"seeds": ["1", "2", "٣"]}, "settings.seeds: expected integers of 0 to"),
        ({"drawn_by": None}, "settings.drawn_by: expected an object"),
        ({"unknown": 1}, "unknown key(s) unknown"),
    ],
)
def test_a_forged_record_is_refused(values: dict[str, Any], said: str, drawn: Path, tmp_path: Path) -> None:
    text = changed(Record.read(drawn / "a.png").text, **values)
    with pytest.raises(SettingsError) as caught:
        Record.read(with_text(tmp_path / "forged.png", text))
    assert str(tmp_path / "forged.png") in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"labels": [1, 2, 99]}, "label: expected 0 to 5"),
        ({"top_k": V + 1}, "top_k: expected 0 (all) to 64, found 65"),
        ({"guidance_scales": 4}, "guidance_scales: expected 1 to 3, found 4"),
        ({"smooth": True}, "no graph for smooth sampling"),
        ({"decoder": "tiny"}, "no tiny decoder in this bundle"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    values: dict[str, Any], said: str, toy_bundle: Path, drawn: Path, tmp_path: Path
) -> None:
    forged = with_text(tmp_path / "forged.png", changed(Record.read(drawn / "a.png").text, **values))
    result = run(runtime.generate, "--bundle", toy_bundle, "--from", forged, "--out", tmp_path / "b.png")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert f"{forged}: settings: " in result.output
    assert said in result.output


@pytest.mark.parametrize(
    ("text", "zipped", "said"),
    [
        ("{", False, "not valid JSON"),
        ("[" * 100_000, False, "nested more than"),
        ("x" * (RECORD_BYTES + 1), False, f"expected settings of at most {RECORD_BYTES} bytes"),
        ("x" * (100 << 20), True, "expected settings of at most"),
        ('{"schema_version": 1, "schema_version": 1}', False, "duplicate key"),
    ],
)
def test_hostile_text_is_refused(text: str, zipped: bool, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        Record.read(with_text(tmp_path / "hostile.png", text, zipped))


def test_other_files_are_refused(drawn: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.gif")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.webp")
    (tmp_path / "short.png").write_bytes((drawn / "a.png").read_bytes()[:60])
    (tmp_path / "short.webp").write_bytes((drawn / "a.webp").read_bytes()[:40])
    for name, said in (
        ("other.png", "holds no settings"),
        ("other.webp", "holds no settings"),
        ("other.gif", "no PNG or WebP file"),
        ("missing.png", "there is no such file"),
        ("short.png", "short.png: "),
        ("short.webp", "short.webp: "),
    ):
        with pytest.raises(SettingsError, match=said):
            Record.read(tmp_path / name)


def test_the_size_of_the_picture_costs_nothing(drawn: Path, tmp_path: Path) -> None:
    """Nothing is decoded, and Pillow's limit of 179 megapixels is not that of a grid."""
    data = bytearray((drawn / "a.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "large.png").write_bytes(data)
    assert Record.read(tmp_path / "large.png") == Record.read(drawn / "a.png")


def test_a_record_of_many_names_and_a_compressed_one_are_read(drawn: Path, tmp_path: Path) -> None:
    record = Record.read(drawn / "a.png")
    assert Record.read(with_text(tmp_path / "zTXt.png", record.text, zipped=True)) == record
    other = changed(record.text, classes=["金魚", "é", "none"])
    assert Record.read(with_text(tmp_path / "iTXt.png", other, zipped=True)).classes == ("金魚", "é", "none")


def chunk(kind: bytes, size: int) -> bytes:
    return size.to_bytes(4, "big") + kind


def test_large_chunks_are_not_read(drawn: Path, tmp_path: Path) -> None:
    start, rest = (data := (drawn / "a.png").read_bytes())[:33], data[33:]  # after IHDR
    most, large, file = 64 << 10, 512 << 20, tmp_path / "large.png"
    for keyword, said in ((b"another\0", None), (b"var-edge\0", f"expected settings of at most .* found {large}")):
        with file.open("wb") as hostile:
            hostile.write(start + chunk(b"tEXt", large) + keyword)
            hostile.seek(33 + 8 + large + 4)  # a hole
            hostile.write(rest)
        tracemalloc.start()
        if said:
            with pytest.raises(SettingsError, match=said):
                Record.read(file)
        else:
            assert Record.read(file) == Record.read(drawn / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 4 * most
        tracemalloc.stop()
        file.unlink()


def test_very_many_chunks_are_refused(drawn: Path, tmp_path: Path) -> None:
    data = (drawn / "a.png").read_bytes()
    (tmp_path / "many.png").write_bytes(data[:33] + (chunk(b"prVt", 0) + b"\0" * 4) * 100_000 + data[33:])
    with pytest.raises(SettingsError, match=r"cannot be read \(more than 4096 chunks\)"):
        Record.read(tmp_path / "many.png")


def test_a_damaged_record_is_refused(drawn: Path, tmp_path: Path) -> None:
    data = (drawn / "a.png").read_bytes().replace(b'"cfg": 3.0', b'"cfg": 4.0')
    (tmp_path / "damaged.png").write_bytes(data)
    with pytest.raises(SettingsError, match="wrong checksum"):
        Record.read(tmp_path / "damaged.png")


def test_what_could_not_be_read_is_not_drawn(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    many = ["--bundle", toy_bundle, "--label", ",".join(["1"] * 50_000), "--batch", 1024, "--out", out]
    result = run(runtime.generate, *many)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert f"{out}: expected settings of at most {RECORD_BYTES} bytes, found " in result.output
    assert result.output.endswith("; draw fewer images into one file, or give --no-metadata\n")
    assert not out.exists()
