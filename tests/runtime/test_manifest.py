"""A bundle is either understood completely or refused with a message that names the faulty place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import BundleError
from runtime.bundle.manifest import FILE_NAME, WEIGHTS, Manifest

Document = dict[str, Any]


def rewrite(bundle: Path, change: Callable[[Document], object]) -> None:
    document = json.loads((bundle / FILE_NAME).read_text())
    change(document)
    (bundle / FILE_NAME).write_text(json.dumps(document))


def test_round_trip(own_bundle: Path) -> None:
    manifest = Manifest.load(own_bundle)
    text = (own_bundle / FILE_NAME).read_text()
    manifest.write(own_bundle)
    assert (own_bundle / FILE_NAME).read_text() == text
    assert Manifest.load(own_bundle) == manifest


BAD: dict[str, tuple[Callable[[Document], object], str]] = {
    "other version": (lambda d: d.update(schema_version=2), "expected schema_version 3, found 2"),
    "no version": (lambda d: d.pop("schema_version"), "expected schema_version 3, found None"),
    "unknown key": (lambda d: d.update(extra=1), "unknown key.*extra"),
    "unknown key inside": (
        lambda d: d["graphs"]["bridge"].update(extra=1),
        "graphs.bridge: unknown key.*extra",
    ),
    "missing key": (lambda d: d.pop("files"), "missing key.*files"),
    "missing key inside": (lambda d: d["scales"][1].pop("phi"), r"scales\[1\]: missing key.*phi"),
    "string for a number": (
        lambda d: d["model"].update(depth="2"),
        "model.depth: expected an integer, found '2'",
    ),
    "number for a string": (lambda d: d.update(precision=32), "precision: expected one of fp32, fp16, .*, found 32"),
    "unknown precision": (lambda d: d.update(precision="fp8"), "precision: expected one of fp32, .*, found 'fp8'"),
    "true for a number": (lambda d: d["model"].update(depth=True), "model.depth: expected an integer"),
    "string for a float": (lambda d: d["model"].update(quant_resi="1"), "model.quant_resi: expected a number"),
    "true for a float": (lambda d: d["model"].update(norm_eps=True), "model.norm_eps: expected a number"),
    "list for an object": (lambda d: d.update(model=[]), "model: expected an object"),
    "object for a list": (lambda d: d.update(scales={}), "scales: expected a list"),
    "wrong item": (lambda d: d["model"].update(patch_nums=[1, 2.0]), r"patch_nums\[1\]: expected an integer"),
    "wrong class file": (lambda d: d.update(classes=1), "classes: expected a string or null"),
    "unknown step constant": (
        lambda d: d.update(step_constants=["activation_scales_00"]),
        r"step_constants: expected inputs of the transformer; found \['activation_scales_00'\]",
    ),
    "zero size": (lambda d: d["model"].update(ch=0), "model.ch: expected 1 to 4096, found 0"),
    "shrinking sides": (lambda d: d["model"].update(patch_nums=[1, 3, 2]), "two or more growing sides"),
    "width": (lambda d: d["model"].update(width=65, heads=2), "model.width: expected a multiple of heads"),
    "image size": (lambda d: d["model"].update(image_size=7), "model.image_size: expected 6"),
    "too few scales": (lambda d: d["scales"].pop(), r"scales: expected the sides \[1, 2, 3\]"),
    "scale side": (lambda d: d["scales"][1].update(side=3), "scales: expected the sides"),
    "scale tokens": (
        lambda d: d["scales"][1].update(tokens=5),
        r"scales\[1\]: expected tokens, offset \(4, 1\)",
    ),
    "scale offset": (
        lambda d: d["scales"][2].update(offset=4),
        r"scales\[2\]: expected tokens, offset \(9, 5\)",
    ),
    "no downsample": (lambda d: d["scales"][2].update(downsample=None), r"scales\[2\].downsample"),
    "first downsample": (lambda d: d["scales"][0].update(downsample="down.1"), r"scales\[0\].downsample"),
    "no bridge": (lambda d: d["graphs"].pop("bridge"), "graphs: expected bridge"),
    "unknown dtype": (
        lambda d: d["graphs"]["bridge"]["inputs"][0].update(dtype="float128"),
        "logits: .*dtype",
    ),
    "unknown size": (
        lambda d: d["graphs"]["bridge"]["inputs"][0].update(shape=["Q"]),
        "logits: .*shape; found Q",
    ),
    "absolute file": (lambda d: d["files"].update({"/etc/passwd": d["files"][WEIGHTS]}), "plain names"),
    "parent file": (lambda d: d["files"].update({"..": d["files"][WEIGHTS]}), "plain names"),
    "nested file": (lambda d: d["files"].update({"a/b": d["files"][WEIGHTS]}), "plain names"),
    "backslash": (lambda d: d["files"].update({"a\\b": d["files"][WEIGHTS]}), "plain names"),
    "itself": (lambda d: d["files"].update({FILE_NAME: d["files"][WEIGHTS]}), "plain names"),
    "unlisted weights": (lambda d: d["files"].pop(WEIGHTS), "weights.safetensors, which the bundle uses"),
    "unlisted graph": (
        lambda d: d["graphs"]["decoder"].update(file="x.onnx"),
        "x.onnx, which the bundle uses",
    ),
    "unlisted classes": (lambda d: d.update(classes="x.txt"), "x.txt, which the bundle uses"),
    "file not there": (lambda d: d["files"].update({"x": d["files"][WEIGHTS]}), "x: missing; copy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_manifest_is_refused(own_bundle: Path, case: str) -> None:
    change, message = BAD[case]
    rewrite(own_bundle, change)
    with pytest.raises(BundleError, match=message) as error:
        Manifest.load(own_bundle)
    assert str(own_bundle) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "null"])
def test_not_a_manifest(own_bundle: Path, text: str) -> None:
    (own_bundle / FILE_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=FILE_NAME):
        Manifest.load(own_bundle)


def test_a_whole_number_may_be_written_without_a_point(own_bundle: Path) -> None:
    rewrite(own_bundle, lambda d: d["model"].update(mlp_ratio=4, quant_resi=1))
    model = Manifest.load(own_bundle).model
    assert [type(model.mlp_ratio), model.mlp_ratio, model.quant_resi] == [float, 4.0, 1.0]


def test_folder_without_manifest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BundleError, match=r"no manifest.json, so not a bundle"):
            Manifest.load(folder)


def test_truncated_file_is_noticed_even_without_hashes(own_bundle: Path) -> None:
    with (own_bundle / WEIGHTS).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(BundleError, match=r"weights.safetensors: expected \d+ bytes, found 100"):
        Manifest.load(own_bundle, verify=False)


def test_altered_file_is_noticed_by_its_hash(own_bundle: Path) -> None:
    with (own_bundle / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    Manifest.load(own_bundle, verify=False)
    with pytest.raises(BundleError, match=r"weights.safetensors: altered: expected SHA-256"):
        Manifest.load(own_bundle)


def test_a_contradiction_is_not_written(own_bundle: Path) -> None:
    manifest = Manifest.load(own_bundle)
    (own_bundle / FILE_NAME).unlink()
    object.__setattr__(manifest, "classes", "elsewhere.txt")
    with pytest.raises(BundleError, match="elsewhere"):
        manifest.write(own_bundle)
    assert not (own_bundle / FILE_NAME).exists()
