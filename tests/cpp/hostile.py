"""Files that no exporter writes, and whether a reader accepts them: one list for Python and C++."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import engine_record
from runtime.bundle.manifest import FILE_NAME, WEIGHTS
from runtime.bundle.precision import Precision

CLASSES = "classes.txt"
RECORD = {
    "schema_version": engine_record.SCHEMA_VERSION,
    "built": {
        "flavour": "tensorrt",
        "version": "10.3.0",
        "compute_capabilities": ["8.7"],
        "gpu": None,
        "hardware_compatible": False,
        "version_compatible": False,
    },
    "weights_sha256": "0",
    "batches": [1],
    "guidance_scales": 3,
    "options": {},
    "engines": {
        "condition": {
            "file": "condition.plan",
            "source_sha256": "0",
            "profiles": [{"labels": [1]}],
            "build_seconds": 1.5,
            "weight_bytes": 1,
            "layers": {"gemm": 1},
            "int8_planned": 0,
            "int8_built": [],
        }
    },
    "peak_bytes": 1,
    "created": "2026-01-01T00:00:00Z",
}


@dataclass(frozen=True)
class Case:
    name: str
    file: str
    accepted: bool
    content: Callable[[bytes], bytes]  # of the file, from that of the good one

    def write(self, bundle: Path, folder: Path) -> None:
        """Writes the bundle with this file changed into `folder`; the manifest tells the new size."""
        shutil.copytree(bundle, folder, copy_function=os.link)
        if self.file == engine_record.FILE_NAME:
            (folder / self.file).write_text(json.dumps(RECORD))
        path = folder / self.file
        _rewrite(path, self.content(path.read_bytes()))
        if self.file != FILE_NAME:
            document = json.loads((folder / FILE_NAME).read_text())
            if self.file in document["files"]:
                document["files"][self.file]["size"] = path.stat().st_size
            if self.file == CLASSES:
                document["model"]["num_classes"] = 5
            _rewrite(folder / FILE_NAME, json.dumps(document).encode())


def _rewrite(path: Path, content: bytes) -> None:
    path.unlink()  # the others' link to it stays as it is
    path.write_bytes(content)


def _at(*path: str | int, value: object) -> Callable[[bytes], bytes]:
    """Puts `value` where `path` leads in a JSON file; the key may be new."""

    def change(data: bytes) -> bytes:
        document = json.loads(data)
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = copy.deepcopy(value)
        return json.dumps(document).encode()

    return change


def _model(**values: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        document = json.loads(data)
        document["model"] |= values
        return json.dumps(document).encode()

    return change


def _text(old: str, new: str) -> Callable[[bytes], bytes]:
    """Replaces text in the file as it is written."""

    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return change


def _nested(depth: int) -> Callable[[bytes], bytes]:
    """A list in a list … in provenance.options, three levels down already."""
    return lambda data: _text('"options": {}', f'"options": {{"x": {"[" * (depth - 3) + "]" * (depth - 3)}}}')(data)


def _header(
    change: Callable[[dict[str, Any]], object], data_bytes: Callable[[bytes], bytes] = bytes
) -> Callable[[bytes], bytes]:
    """Changes the header of a safetensors file, or its data."""

    def rewrite(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        changed = change(header)
        text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data_bytes(data[8 + length :])

    return rewrite


def _entry(**values: object) -> Callable[[bytes], bytes]:
    """Changes the header's entry of up.0, which is (1, 9) float32."""
    return _header(lambda header: header["up.0"].update(values))


def _cases(file: str, accepted: bool, changes: dict[str, Callable[[bytes], bytes]]) -> list[Case]:
    return [Case(name, file, accepted, change) for name, change in changes.items()]


def _scales(count: int) -> Callable[[bytes], bytes]:
    """A manifest of that many scales, of sides 1, 2, 3 …"""

    def change(data: bytes) -> bytes:
        document = json.loads(data)
        sides = range(1, count + 1)
        document["model"] |= {"patch_nums": list(sides), "image_size": count * document["model"]["image_size"] // 3}
        document["scales"] = [
            {
                "side": side,
                "tokens": side * side,
                "offset": sum(earlier * earlier for earlier in range(1, side)),
                "phi": 0,
                "upsample": "up.0",
                "downsample": "down.1" if side > 1 else None,
            }
            for side in sides
        ]
        return json.dumps(document).encode()

    return change


def _graph_input(key: str, value: object) -> Callable[[bytes], bytes]:
    return _at("graphs", "condition", "inputs", 0, key, value=value)


def _profile(name: str, shape: list[int]) -> Callable[[bytes], bytes]:
    return _at("engines", "condition", "profiles", value=[{name: shape}])


MANIFESTS = _cases(
    FILE_NAME,
    True,
    {
        "as it is": bytes,
        **{f"precision {precision}": _at("precision", value=precision.value) for precision in Precision},
        "spaces behind": lambda data: data + b" \n\t\r",
        "minus zero": _at("provenance", "options", "x", value=-0),
        "largest integer": _at("provenance", "options", "x", value=2**63 - 1),
        "smallest integer": _at("provenance", "options", "x", value=-(2**63)),
        "surrogate pair": _text('"options": {}', '"options": {"x": "\\ud83d\\ude00"}'),
        "an escaped NUL": _text('"options": {}', '"options": {"x": "\\u0000"}'),
        "64 deep": _nested(64),
        "numbers without a point": _model(norm_eps=1, mlp_ratio=4, quant_resi=1),
        "57 scales": _scales(57),
        "one phi each": _model(share_quant_resi=0),
        "no smoothing": _model(quant_resi=0),
        "largest sizes": _model(depth=256, ch=4096, code_size=4096, num_res_blocks=64),
        "name in another script": _model(name="模型"),
        "name with a joiner": _model(name="a\u200db"),
        "longest name": _model(name="n" * 1024),
        "eight axes": _graph_input("shape", [1] * 8),
        "largest axis": _graph_input("shape", [2**31 - 1]),
        "seed": _at("provenance", "source", "random_weights", value=7),
        "a hash of the VQVAE": _at("provenance", "source", "vqvae_sha256", value="0123456789abcdef" * 4),
    },
) + _cases(
    FILE_NAME,
    False,
    {
        "empty": lambda data: b"",
        "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda data: data.decode().encode("utf-16"),
        "NUL behind": lambda data: data + b"\0",
        "NUL and more behind": lambda data: data + b"\0{}",
        "a second document": lambda data: data + b"{}",
        "not UTF-8": lambda data: data.replace(b'"toy"', b'"t\xff\xfey"', 1),
        "overlong UTF-8": lambda data: data.replace(b'"toy"', b'"t\xc0\xafy"', 1),
        "surrogate in UTF-8": lambda data: data.replace(b'"toy"', b'"t\xed\xa0\x80y"', 1),
        "lone high surrogate": _text('"options": {}', '"options": {"x": "\\ud800"}'),
        "lone low surrogate": _text('"options": {}', '"options": {"x": "\\udc00"}'),
        "lone surrogate in a key": _text('"options": {}', '"options": {"\\ud800": 1}'),
        "a key twice": _text('"options": {}', '"options": {"x": 1, "x": 1}'),
        "a known key twice": _text('"precision"', '"precision": "fp32", "precision"'),
        "an unknown precision": _at("precision", value="fp8"),
        "65 deep": _nested(65),
        "66 deep": _nested(66),
        "1,000 deep": _nested(1_000),
        "100,000 deep": _nested(100_000),
        "100,000 deep and open": lambda data: b"[" * 100_000,
        "objects 100,000 deep": lambda data: b'{"a":' * 100_000,
        "100,000 deep as a size": _text('"depth": 2', f'"depth": {"[" * 100_000 + "]" * 100_000}'),
        "too large an integer": _at("provenance", "options", "x", value=2**63),
        "too small an integer": _at("provenance", "options", "x", value=-(2**63) - 1),
        "5,000 digits": _text('"depth": 2', f'"depth": {"9" * 5_000}'),
        "an infinite number": _text('"options": {}', '"options": {"x": 1e999}'),
        "Infinity": _text('"options": {}', '"options": {"x": Infinity}'),
        "NaN": _text('"options": {}', '"options": {"x": NaN}'),
        "NaN as a number": _text('"norm_eps": 1e-06', '"norm_eps": NaN'),
        "a control character": _text('"toy"', '"t\x1b[31moy"'),
        "an escaped control character": _model(name="t\x1b[31moy"),
        "a line separator": _model(name="t\u2028oy"),
        "right to left": _model(name="t\u202eoy"),
        "too long a name": _model(name="n" * 1025),
        "an empty name": _model(name=""),
        "a name with folders": _model(name="../toy"),
        "a list": lambda data: b"[]",
        "a number": lambda data: b"3",
        "schema 2": _at("schema_version", value=2),
        "schema 3.5": _text('"schema_version": 3', '"schema_version": 3.5'),
        "schema 3.0": _text('"schema_version": 3', '"schema_version": 3.0'),
        "schema as text": _at("schema_version", value="3"),
        "schema null": _at("schema_version", value=None),
        "schema 4": _at("schema_version", value=4),
        "no schema": lambda data: json.dumps(
            {key: value for key, value in json.loads(data).items() if key != "schema_version"}
        ).encode(),
        "58 scales": _scales(58),  # of more than 65,536 tokens
        "65 scales": _scales(65),
        "unknown key": _at("extra", value=1),
        "unknown key of a megabyte": _at("x" * 2**20, value=1),
        "size as true": _model(depth=True),
        "size with a point": _model(depth=2.0),
        "size as text": _model(depth="2"),
        "size as null": _model(depth=None),
        "depth 0": _model(depth=0),
        "depth 257": _model(depth=257),
        "width 2^18": _model(width=2**18),
        "width 65537": _model(width=65537, heads=1),
        "width no multiple": _model(width=65, heads=2),
        "heads 1025": _model(heads=1025, width=1025),
        "vocabulary 63": _model(vocab_size=63),
        "vocabulary 2^20 + 1": _model(vocab_size=2**20 + 1),
        "code size 4097": _model(code_size=4097),
        "classes 2^20 + 1": _model(num_classes=2**20 + 1),
        "image 10^30": _model(image_size=10**30),
        "ch 4097": _model(ch=4097),
        "ch_mult empty": _model(ch_mult=[]),
        "ch_mult of 20,000": _model(ch_mult=[1] * 20_000),
        "ch_mult 65": _model(ch_mult=[1, 65]),
        "no residual block": _model(num_res_blocks=0),
        "one scale": _model(patch_nums=[1]),
        "falling sides": _model(patch_nums=[1, 3, 2]),
        "equal sides": _model(patch_nums=[1, 3, 3]),
        "many sides": _model(patch_nums=list(range(1, 3000))),
        "phi -1": _at("scales", 0, "phi", value=-1),
        "phi 4 of 4": _at("scales", 0, "phi", value=4),
        "phi 2^63": _text('"phi": 0', f'"phi": {2**63}'),
        "norm_eps 0": _model(norm_eps=0),
        "norm_eps 2": _model(norm_eps=2),
        "norm_eps as text": _model(norm_eps="1e-6"),
        "norm_eps as true": _model(norm_eps=True),
        "mlp_ratio 0": _model(mlp_ratio=0),
        "mlp_ratio 65": _model(mlp_ratio=65.0),
        "quant_resi -0.5": _model(quant_resi=-0.5),
        "quant_resi 1.5": _model(quant_resi=1.5),
        "share_quant_resi -1": _model(share_quant_resi=-1),
        "share_quant_resi 65": _model(share_quant_resi=65),
        "share_quant_resi 1.0": _model(share_quant_resi=1.0),
        "using_znorm 0": _model(using_znorm=0),
        "quant_conv_ks 2": _model(quant_conv_ks=2),
        "quant_conv_ks 9": _model(quant_conv_ks=9),
        "nine axes": _graph_input("shape", [1] * 9),
        "axis of 2^31": _graph_input("shape", [2**31]),
        "axis of -1": _graph_input("shape", [-1]),
        "axis of true": _graph_input("shape", [True]),
        "unknown axis": _graph_input("shape", ["Q"]),
        "unknown dtype": _graph_input("dtype", "complex64"),
        "dtype as a list": _graph_input("dtype", []),
        "unprintable tensor": _graph_input("name", "a\nb"),
        "unprintable graph": _at("graphs", "a\x07", value={"file": "condition.onnx", "inputs": [], "outputs": []}),
        "5,000 tensors": _at(
            "graphs", "condition", "inputs", value=[{"name": "a", "dtype": "bool", "shape": []}] * 5_000
        ),
        "5,000 files": _at("files", value={f"f{i}": {"size": 1, "sha256": "0"} for i in range(5_000)}),
        "a file outside": _at("files", "../outside", value={"size": 1, "sha256": "0"}),
        "a file of a folder": _at("files", "a/b", value={"size": 1, "sha256": "0"}),
        "a file of -1 bytes": _at("files", "a", value={"size": -1, "sha256": "0"}),
        "the manifest as a file": _at("files", FILE_NAME, value={"size": 1, "sha256": "0"}),
        "a tool's version as a number": _at("provenance", "tools", "onnx", value=1),
        "source as text": _at("provenance", "source", value="here"),
        "a checkpoint outside": _at("provenance", "source", "var_checkpoint", value={"file": "../x", "sha256": "0"}),
        "a short hash of the VQVAE": _at("provenance", "source", "vqvae_sha256", value="0" * 63),
        "a hash of the VQVAE in capitals": _at("provenance", "source", "vqvae_sha256", value="A" * 64),
        "a hash of the VQVAE as null": _at("provenance", "source", "vqvae_sha256", value=None),
        "a seed of -1": _at("provenance", "source", "random_weights", value=-1),
        "a plan of numbers": _at("provenance", "options", "plan", value={"int8": [1]}),
        "a downsample at scale 0": _at("scales", 0, "downsample", value="down.1"),
        "17 MB of spaces": lambda data: data + b" " * (17 << 20),
        "6 million commas": lambda data: b"[" + b"0," * 6_000_000 + b"0]",
    },
)
CLASS_LISTS = _cases(
    CLASSES,
    True,
    {
        "no line break at the end": lambda data: data.rstrip(b"\n"),
        "line breaks of Windows": lambda data: data.replace(b"\n", b"\r\n"),
        "other scripts": lambda data: "犬, 狗\nكلب\nσκύλος\nпёс\n🐕\n".encode(),
        "1,024 characters": lambda data: "é".encode() * 1024 + b"\nb\nc\nd\ne\n",
        "joiners and wide spaces": lambda data: "👨‍👩‍👧\nمی‌خواهم\n小\u3000犬\nco\u00adop\na\u00a0b\n".encode(),
        "classes without names": lambda data: b"\n" * 5,
    },
) + _cases(
    CLASSES,
    False,
    {
        "no line": lambda data: b"",
        "one line more": lambda data: data + b"six\n",
        "byte order mark ": lambda data: b"\xef\xbb\xbf" + data,
        "not UTF-8 ": lambda data: data.replace(b"tench", b"t\xe9nch"),
        "NUL": lambda data: data.replace(b"tench", b"t\0nch"),
        "a direction mark": lambda data: data.replace(b"tench", "t\u202eench".encode()),
        "a C1 control": lambda data: data.replace(b"tench", "t\u009bench".encode()),
        "a terminal's escape": lambda data: data.replace(b"tench", b"\x1b[2Jtench"),
        "line breaks of another kind": lambda data: data.replace(b"\n", b"\x0b"),
        "1,025 characters": lambda data: "é".encode() * 1025 + b"\nb\nc\nd\ne\n",
    },
)
WEIGHT_FILES = _cases(
    WEIGHTS,
    True,
    {
        "the same header": _header(lambda header: None),
        "metadata": _header(lambda header: header.update(__metadata__={"format": "pt"})),
        "no metadata": _header(lambda header: header.update(__metadata__={})),
        "spaces behind the header": _header(lambda header: json.dumps(header).encode() + b" " * 100),
        "an empty tensor": _header(
            lambda header: header.update(a={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
        ),
        "nothing times much": _header(
            lambda header: header.update(a={"dtype": "F32", "shape": [2**31 - 1] * 7 + [0], "data_offsets": [0, 0]})
        ),
        "BF16": _entry(dtype="BF16", shape=[1, 18]),
    },
) + _cases(
    WEIGHTS,
    False,
    {
        "nothing": lambda data: b"",
        "seven bytes": lambda data: data[:7],
        "a header longer than the file": lambda data: (2**40).to_bytes(8, "little") + data[8:],
        "a header of 2^63": lambda data: (2**63).to_bytes(8, "little") + data[8:],
        "an empty header": lambda data: bytes(8),
        "header: byte order mark": _header(lambda header: b"\xef\xbb\xbf" + json.dumps(header).encode()),
        "header: NUL": _header(lambda header: json.dumps(header).encode() + b"\0"),
        "header: a list": _header(lambda header: b"[]"),
        "header: 100,000 deep": _header(lambda header: b"[" * 100_000 + b"]" * 100_000),
        "header: a key twice": _header(
            lambda header: json.dumps(header).encode()[:-1] + b', "up.0": ' + json.dumps(header["up.0"]).encode() + b"}"
        ),
        "dtype 100,000 deep": _header(
            lambda header: json.dumps(header).encode().replace(b'"F32"', b"[" * 100_000 + b"]" * 100_000, 1)
        ),
        "data_offsets 2,000 deep": _header(
            lambda header: (
                json.dumps(header)
                .encode()
                .replace(b'"data_offsets": [', b'"data_offsets": [' + b"[" * 2000 + b"]" * 2000 + b",", 1)
            )
        ),
        "more data than tensors": _header(lambda header: None, lambda data: data + b"x"),
        "less data than tensors": _header(lambda header: None, lambda data: data[:-1]),
        "a gap": _header(lambda header: header.pop("up.1")),
        "an overlap": _header(lambda header: header.update(twice=header["up.0"])),
        "another key": _entry(extra=1),
        "no shape": _header(lambda header: header["up.0"].pop("shape")),
        "unknown dtype ": _entry(dtype="F31"),
        "dtype as a number": _entry(dtype=32),
        "shape of another size": _entry(shape=[1, 8]),
        "shape of 2^62 twice": _entry(shape=[2**62, 2**62]),
        "negative shape": _entry(shape=[-1, -9]),
        "nine axes ": _entry(shape=[1] * 8 + [9]),
        "shape with a point": _entry(shape=[1.0, 9]),
        "three offsets": _entry(data_offsets=[0, 36, 36]),
        "offsets backwards": _entry(data_offsets=[36, 0]),
        "an offset of -1": _entry(data_offsets=[-36, 0]),
        "an offset of 2^63 - 1": _entry(data_offsets=[2**63 - 37, 2**63 - 1]),
        "metadata of numbers": _header(lambda header: header.update(__metadata__={"a": 1})),
        "metadata as a list": _header(lambda header: header.update(__metadata__=[])),
        "metadata as null": _header(lambda header: header.update(__metadata__=None)),
        "an unprintable name": _header(
            lambda header: header.update({"a\x1b": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
        ),
    },
)
ENGINE_RECORDS = _cases(
    engine_record.FILE_NAME,
    True,
    {
        "record as it is": bytes,
        "64 guided scales": _at("guidance_scales", value=64),
        "64 batches": _at("batches", value=list(range(1, 65))),
        "one number as a version": _at("built", "version", value="10"),
        "two capabilities": _at("built", "compute_capabilities", value=["8.7", "12.0"]),
        "a profile of eight axes": _profile("labels", [1] * 8),
        "a profile's largest axis": _profile("labels", [2**31 - 1]),
        "no engine": _at("engines", value={}),
        "a file without a name": _at("engines", "condition", "file", value=""),
        "seconds without a point": _at("engines", "condition", "build_seconds", value=2),
    },
) + _cases(
    engine_record.FILE_NAME,
    False,
    {
        "record of nothing": lambda data: b"",
        "record 100,000 deep": lambda data: b"[" * 100_000 + b"]" * 100_000,
        "other schema": _at("schema_version", value=1),
        "no batch": _at("batches", value=[]),
        "no guided scale": _at("guidance_scales", value=0),
        "65 guided scales": _at("guidance_scales", value=65),
        "guided scales as null": _at("guidance_scales", value=None),
        "batch 0": _at("batches", value=[0]),
        "batch 1025": _at("batches", value=[1025]),
        "batch 10^20": _at("batches", value=[10**20]),
        "65 batches": _at("batches", value=list(range(1, 66))),
        "other schema with a point": _text('"schema_version": 3', '"schema_version": 3.5'),
        "the schema before": _at("schema_version", value=2),
        "schema as text": _at("schema_version", value="3"),
        "unknown flavour": _at("built", "flavour", value="tensorrt_11"),
        "no version": _at("built", "version", value=""),
        "a version of letters": _at("built", "version", value="10.x"),
        "a version that ends in a dot": _at("built", "version", value="10.3."),
        "a version of ten digits": _at("built", "version", value="1234567890"),
        "no capability": _at("built", "compute_capabilities", value=[]),
        "a capability without a dot": _at("built", "compute_capabilities", value=["87"]),
        "a capability of one digit": _at("built", "compute_capabilities", value=["8"]),
        "a capability of three numbers": _at("built", "compute_capabilities", value=["8.6.1"]),
        "a capability of 1,000": _at("built", "compute_capabilities", value=["1000.1"]),
        "a capability with a letter": _at("built", "compute_capabilities", value=["9.a"]),
        "an engine of an unknown graph": lambda data: data.replace(b'"condition": {', b'"other": {', 1),
        "a profile of nine axes": _profile("labels", [1] * 9),
        "a profile of axis -1": _profile("labels", [-1]),
        "a profile of axis 2^31": _profile("labels", [2**31]),
        "a profile of an unprintable input": _profile("a\x1b", [1]),
        "layers as a list": _at("engines", "condition", "layers", value=[]),
        "peak as text": _at("peak_bytes", value="1"),
        "profile of text": _at("engines", "condition", "profiles", value=["1"]),
        "options as a list ": _at("options", value=[]),
        "gpu as a number": _at("built", "gpu", value=1),
        "an engine with a key more": _at("engines", "condition", "extra", value=1),
    },
)
CASES = MANIFESTS + CLASS_LISTS + WEIGHT_FILES + ENGINE_RECORDS
