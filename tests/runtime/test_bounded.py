"""No file from outside makes a reader block, fill the memory, or fail with anything but one line."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from calibration.ranges import CalibrationError
from calibration.record import Calibration
from export.checkpoint.recipe import Recipe
from runtime import BundleError, SettingsError, VarEdgeError, limits
from runtime.bundle.classes import ClassNames
from runtime.bundle.manifest import FILE_NAME, WEIGHTS, Manifest
from runtime.bundle.weight_file import open_weights, read_header, weight_bytes
from runtime.files import bounded
from runtime.images import read_picture


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a":' * 100_000, "nested more than 64 deep"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b"[" * 1_000_000, r"expected at most \d+ '\[' characters, found 1000000"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[-Infinity]", "not a JSON number"),
        (b"[1e999]", "not finite"),
        (b"[9223372036854775808]", "more than 64 bits"),
        (b"9" * 5000, "more than 64 bits"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"{} {}", "Extra data"),
        (b'["\\ud800"]', "an unpaired surrogate"),
        (b'{"\\udc00": 1}', "an unpaired surrogate"),
        (b'["\xff"]', "not UTF-8 at byte 2"),
        (b'["\0"]', "without NUL"),
        (b"", "not valid JSON"),
    ],
)
def test_json_that_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        bounded.parse_json(data, "x.json")


def test_json_that_is_read() -> None:
    deepest: Any = 1
    for _ in range(limits.JSON_DEPTH):
        deepest = [deepest]
    for value in (deepest, [2**63 - 1, -(2**63), 0.5, "\U0001f600", None, True], {"12345678901234567890": 1e300}):
        assert bounded.parse_json(json.dumps(value).encode(), "x.json") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth = " + "9" * 5000, "depth|number|digits|64 bits"),
        ("depth = 1" + "0" * 30, "more than 64 bits"),
        ("depth = 20000", "depth: expected 1 to 256, found 20000"),
        ("patch_nums = " + "[" * 20_000, "nested"),
        (".".join("a" * 20_000) + " = 1", "dots in a line"),
        ("mlp_ratio = nan", "not finite"),
        (f"patch_nums = {list(range(1, 3000))}", "patch_nums: expected 2 to 64 entries, found 2999"),
        (f"patch_nums = {list(range(1, 65))}", "patch_nums: expected at most 65536 tokens"),
        (f"ch_mult = {[1] * 20_000}", "ch_mult: expected 1 to 16 entries, found 20000"),
        ("num_classes = 1152921504606846976", "num_classes: expected 1 to 1048576"),
    ],
)
def test_recipes_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    lines = ["depth = 1", "patch_nums = [1, 2]", "ch = 32", 'var_checkpoint = "a"', 'vae_checkpoint = "b"']
    path.write_text("\n".join([*(line for line in lines if line.split()[0] != text.split()[0]), text]))
    with pytest.raises(SettingsError, match=message):
        Recipe.load(str(path))


def irregular(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFO")
@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "socket", "loop"])
def test_only_regular_files_are_opened(own_bundle: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader must not block on a FIFO or read an endless device."""
    manifest = Manifest.load(own_bundle)
    monkeypatch.chdir(own_bundle)  # the name of a socket has 108 bytes at most
    for name in (FILE_NAME, WEIGHTS, "classes.txt"):
        Path(name).unlink()
        irregular(Path(name), kind)
    irregular(Path("x.toml"), kind)
    for read in (
        lambda: Manifest.load(Path()),
        lambda: weight_bytes(Path(), ["bridge.onnx"]),
        lambda: ClassNames.load(Path(), manifest),
        lambda: Calibration.load(Path(FILE_NAME)),
        lambda: Recipe.load("x.toml"),
        lambda: read_picture(Path(FILE_NAME), 8),
        lambda: manifest.check_files(Path()),
    ):
        with pytest.raises(VarEdgeError, match=r"expected a (regular )?file, found|cannot be opened|missing|no recipe"):
            read()


def test_a_file_that_grows_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 101)
    with pytest.raises(BundleError, match="expected at most 100 bytes, found 101"):
        bounded.read_bytes(tmp_path / "large", 100)


HEADERS: dict[str, tuple[Any, str]] = {
    "a list": ([], "expected an object"),
    "not a tensor": ({"a": 1}, "expected dtype, shape and data_offsets"),
    "another key": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}, "expected dtype, shape and"),
    "dtype": ({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, "expected a dtype"),
    "shape": ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "expected a shape"),
    "huge shape": ({"a": {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 4]}}, "expected a shape"),
    "rank": ({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, "expected a shape"),
    "size": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "expected 8 bytes"),
    "backwards": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "expected 4 bytes"),
    "gap": ({"a": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]}}, "expected to begin at byte 0, found 1"),
    "short": ({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, r"expected \d+ bytes, as its header says"),
    "metadata": ({"__metadata__": {"a": 1}}, "__metadata__: expected an object of strings"),
    "name": ({"a\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "expected a printable name"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_weight_headers_that_are_refused(case: str, tmp_path: Path) -> None:
    header, message = HEADERS[case]
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + b"1234")
    with pytest.raises(BundleError, match=message), open_weights(tmp_path):
        pass


def test_a_header_longer_than_its_file(tmp_path: Path) -> None:
    for length in (2**63, 101, 10**8 + 1):
        (tmp_path / WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 90)
        with pytest.raises(BundleError, match="its header is longer than the file"):
            read_header(tmp_path / WEIGHTS)


CALIBRATION: dict[str, dict[str, Any]] = {
    "endless pictures": {"pictures": [[0, 10**13]]},
    "pictures twice": {"pictures": [[0, 8], [4, 9]]},
    "no pair": {"pictures": [1]},
    "limit 0": {"histograms": {"a": [{"limit": 0, "low": 0, "high": 0, "first": 0, "counts": []}]}},
    "odd limit": {"histograms": {"a": [{"limit": 0.3, "low": 0, "high": 0, "first": 0, "counts": []}]}},
    "bins": {"histograms": {"a": [{"limit": 1, "low": 0, "high": 0, "first": 2047, "counts": [1, 2]}]}},
    "before": {"histograms": {"a": [{"limit": 1, "low": 0, "high": 0, "first": -1, "counts": [1]}]}},
    "negative": {"histograms": {"a": [{"limit": 1, "low": 0, "high": 0, "first": 0, "counts": [-1]}]}},
    "outside": {"histograms": {"a": [{"limit": 1, "low": 0, "high": 2, "first": 0, "counts": [1]}]}},
    "a number": {"histograms": {"a": 1}},
    "smoothing": {"smoothing": {"a": [0]}},
    "smoothing is empty text": {"smoothing": ""},
    "smoothing text": {"smoothing": {"a": "1"}},
    "alpha": {"settings": {"seed": 0, "cfg": 4, "top_k": 9, "top_p": 1, "smoothing": "all", "alpha": 5}},
}


@pytest.mark.parametrize("case", CALIBRATION)
def test_calibrations_that_are_refused(case: str, tmp_path: Path) -> None:
    settings = {"seed": 0, "cfg": 4, "top_k": 9, "top_p": 1, "smoothing": "all", "alpha": 0.5}
    good = {
        "schema_version": 1,
        "bundle": {},
        "settings": settings,
        "pictures": [],
        "smoothing": None,
        "histograms": {},
    }
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(good))
    Calibration.load(path)
    path.write_text(json.dumps(good | CALIBRATION[case]))
    with pytest.raises(CalibrationError, match=r"damaged: .*; remove it and calibrate again"):
        Calibration.load(path)


def test_messages_are_one_line() -> None:
    for text in ("a\nb\x1b[31m\u202e\udcff", "x" * 10**7, "\x1b" * 1000):
        message = str(VarEdgeError(text))
        assert len(message) <= 300 and message.isprintable()
    assert str(VarEdgeError("é " + "x" * 500 + "; do this")).endswith("; do this")
