"""What an embedding developer relies on: the C API's errors, a clean library, no leaks, no races."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cpp.conftest import SOURCE, Configure, require, run
from tests.cpp.dumps import Case
from tests.cpp.hostile import RECORD

CASE = Case((0, 5), 3, 4.0, 0, 0.9).line
LONGEST_INPUT = 300_000  # bytes
FUZZ_RUNS = {"manifest": 8_000, "weights": 20_000, "engine_record": 5_000}


def dump(build: Path, bundle: Path, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(build / "tests" / "dump"), str(bundle), str(tmp_path / "out"), *more]
    environment = os.environ | {"LSAN_OPTIONS": f"suppressions={SOURCE / 'tests' / 'lsan.supp'}:print_suppressions=0"}
    return subprocess.run(command, input=CASE, capture_output=True, text=True, env=environment)


def test_the_api_from_c11(release: Path, demo_bundle: Path) -> None:
    """tests/api.c, compiled as strict C11, goes through the calls and every wrong argument."""
    assert run(release / "tests" / "api", demo_bundle).stdout == ""


def test_only_the_api_is_exported(release: Path) -> None:
    symbols = run("nm", "-D", "--defined-only", release / "libvar_edge.so").stdout.split()[2::3]
    header = (SOURCE / "include" / "var_edge.h").read_text()
    declared = {line.split("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if "VAR_EDGE_API " in line}
    declared -= {"VAR_EDGE_API", "__attribute__"}
    assert set(symbols) == {name for name in declared if name.startswith("var_edge_")}


def test_stripped_size(release: Path, tmp_path: Path) -> None:
    run("strip", "-o", tmp_path / "stripped.so", release / "libvar_edge.so")
    assert (tmp_path / "stripped.so").stat().st_size <= 1.5e6


def test_no_growth_over_500_generations(release: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    early, late = map(int, dump(release, tiny_bundle, tmp_path, "500").stderr.split())
    assert late <= early + 2048, f"{early} kB after 50 generations, {late} kB after 500"


def test_clean_under_address_and_undefined_sanitizers(checked: Path, demo_bundle: Path, tmp_path: Path) -> None:
    environment = os.environ | {"LSAN_OPTIONS": f"suppressions={SOURCE / 'tests' / 'lsan.supp'}:print_suppressions=0"}
    assert run(checked / "tests" / "api", demo_bundle, env=environment).stdout == ""
    result = dump(checked, demo_bundle, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "runtime error" not in result.stderr  # of UBSan, which goes on


def test_clean_under_the_thread_sanitizer(build: Configure, demo_bundle: Path) -> None:
    folder = build("tsan", "-DVAR_EDGE_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", targets=("threads",))
    options = f"suppressions={SOURCE / 'tests' / 'tsan.supp'}"
    # Without a fixed layout of memory the sanitizer's own mapping may find no room.
    program = ["setarch", "-R", folder / "tests" / "threads", demo_bundle]
    assert run(*program, env=os.environ | {"TSAN_OPTIONS": options}).stdout == "equal\n"


def damage_truncated(bundle: Path) -> None:
    with (bundle / "bridge.onnx").open("r+b") as file:
        file.truncate(100)


def damage_altered(bundle: Path) -> None:
    with (bundle / "decoder.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x00")


def damage_missing(bundle: Path) -> None:
    (bundle / "weights.safetensors").unlink()


def _manifest(bundle: Path, change: dict[str, object]) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def damage_unknown_key(bundle: Path) -> None:
    _manifest(bundle, {"extra": 1})


def damage_version(bundle: Path) -> None:
    _manifest(bundle, {"schema_version": 99})


def damage_traversal(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"]["../outside"] = {"size": 1, "sha256": "0" * 64}
    (bundle / "manifest.json").write_text(json.dumps(document))


def damage_no_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"{\xff\xfe")


def damage_header(bundle: Path) -> None:
    """The weight file's header claims more than there is; its hash is mended, so that only the parser can tell."""
    from dataclasses import asdict

    from runtime.bundle.manifest import File

    path = bundle / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[:8] = (2**63).to_bytes(8, "little")
    path.write_bytes(data)
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"][path.name] = asdict(File.of(path))
    (bundle / "manifest.json").write_text(json.dumps(document))


DAMAGES = {
    damage_truncated: "bridge.onnx: expected",
    damage_altered: "decoder.onnx: altered: expected SHA-256",
    damage_missing: "weights.safetensors: missing; copy the whole bundle again",
    damage_unknown_key: "manifest.json: unknown key(s) extra",
    damage_version: "expected schema_version 3, found 99; export the bundle again",
    damage_traversal: "expected plain names of other files; found ../outside",
    damage_no_json: "manifest.json: not UTF-8",
    damage_header: "weights.safetensors: ",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_bundles(damage: object, checked: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Status and message, no crash, no leak: run under the sanitizers."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    damage(tmp_path / "bundle")  # type: ignore[operator]
    result = dump(checked, tmp_path / "bundle", tmp_path)
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("2: ")  # VAR_EDGE_BAD_BUNDLE
    assert DAMAGES[damage] in line  # type: ignore[index]


def test_engines_without_the_backend(release: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """AUTO draws with ONNX Runtime where engines cannot be used; asked for, TensorRT is not replaced."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "engines" / "some").mkdir(parents=True)
    (bundle / "engines" / "some" / "engine.json").write_text("{}")
    generate = release / "examples" / "var_edge_generate"
    options = ("--top-k", "50", "--out", tmp_path / "picture.png")
    run(generate, bundle, "1", *options)
    result = subprocess.run([generate, bundle, "1", "--backend", "tensorrt", *options], capture_output=True, text=True)
    assert result.returncode == 1
    assert "built without TensorRT" in result.stderr


@pytest.mark.parametrize("target", FUZZ_RUNS)
def test_fuzzed_input_is_refused(target: str, build: Configure, demo_bundle: Path, tmp_path: Path) -> None:
    """A short run; the long ones are in docs/embedding.md."""
    require("clang++")
    folder = build(
        *("fuzz", "-DVAR_EDGE_FUZZ=ON", "-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_C_COMPILER=clang"),
        *("-DVAR_EDGE_TESTS=OFF", "-DVAR_EDGE_EXAMPLES=OFF"),
        targets=(f"fuzz_{target}",),
    )
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = {"manifest": (demo_bundle / "manifest.json").read_bytes(), "engine_record": json.dumps(RECORD).encode()}
    weights = (demo_bundle / "weights.safetensors").read_bytes()
    seeds["weights"] = weights[8 : 8 + int.from_bytes(weights[:8], "little")]
    (corpus / "seed").write_bytes(seeds[target])
    (corpus / "nested").write_bytes(b"[" * LONGEST_INPUT)  # deeper than any stack, were it not refused
    run(
        folder / "tests" / "fuzz" / f"fuzz_{target}",
        f"-runs={FUZZ_RUNS[target]}",
        f"-max_len={LONGEST_INPUT}",
        f"-dict={SOURCE / 'tests' / 'fuzz' / 'json.dict'}",
        corpus,
        cwd=tmp_path,
    )
