"""One set of limits: Python, C++ (limits.hpp) and the tables of docs/manifest.md say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime import limits
from runtime.bundle import engine_record, manifest
from runtime.errors import LENGTH
from runtime.limits import LISTS, MODEL, Range

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "cpp" / "src"

# Limits of what only the Python commands read: recipes, calibrations, checkpoints, pictures, evaluation sets,
# requests to a server, the settings in images, the page.
PYTHON_ALONE = {
    *("CALIBRATION_BYTES", "TOML_BYTES", "TOML_DOTS", "GRAPH_BYTES", "PICTURE_BYTES", "PIXELS", "STORED_SEED"),
    *(
        "PICTURES_BEFORE",
        "SET_SEED",
        "HISTOGRAM",
        "CHANNEL_SCALING",
        "COLLECTED",
        "KL",
        "ALPHA",
        "WORKSPACE",
        "VERIFIED",
    ),
    *("RUNS", "TESTED_TOKENS", "SERVED", "TIMEOUT", "RECORD_BYTES", "PORT"),
}
# Limits that C++ needs no constant for: the ranges of int64_t and uint64_t, and top_k, which is at most the vocabulary.
TYPES = {"INTEGER", "SEED", "TOP_K"}


def python_limits() -> dict[str, object]:
    """Return every Python limit by its name in limits.hpp."""
    found: dict[str, object] = {
        name: value for name, value in vars(limits).items() if name.isupper() and name not in ("MODEL", "LISTS")
    }
    found.pop("UNPRINTABLE")
    found |= {name.upper(): allowed for name, allowed in MODEL.items()}
    found |= dict(zip(("SIDES", "SIDE"), LISTS["patch_nums"], strict=True))
    found |= dict(zip(("MULTIPLIERS", "MULTIPLIER"), LISTS["ch_mult"], strict=True))
    return found


def cpp_limits() -> dict[str, object]:
    """Return every constant in limits.hpp; fail on a constant in a form that this function does not know."""
    text = re.sub(r"//.*", "", (SOURCE / "limits.hpp").read_text()).replace("INT32_MAX", "2**31 - 1").replace("'", "’")
    text = re.sub(r"(?<=\d)’(?=\d)", "", text)
    found: dict[str, object] = {}
    for kind, rest in re.findall(r"constexpr (struct|[\w:]+) ?([^;]*(?:\{[^}]*;[^}]*\}[^;]*)?);", text):
        if kind in ("bool", "struct"):  # a function of Range; JSON_COUNTS
            continue
        for name, body in re.findall(r"(\w+)(?:\[\])?(?: = |(?=\{))(\{[^}]*\}|[^,]+)", rest):
            values = eval(body.replace("{", "(").replace("}", ",)").replace("true", "True"), {})
            found[name] = Range(*values) if kind == "Range" else values
    found["JSON_COUNTS"] = {mark: eval(most, {}) for mark, most in re.findall(r"\{’(.)’, ([^}]+)\}", text)}
    return found


def test_python_and_cpp_have_the_same_limits() -> None:
    found, expected = cpp_limits(), python_limits()
    assert len(found) > 30
    assert expected.keys() - PYTHON_ALONE - TYPES == found.keys()
    for name, value in found.items():
        wanted = expected[name]
        if isinstance(value, Range) and isinstance(wanted, Range):
            assert (value.least, value.most, value.above) == (wanted.least, wanted.most, wanted.above), name
        else:
            assert value == wanted, name


def constant(file: str, name: str) -> str:
    match = re.search(rf"\b{name} = ([^;,]+)[;,]", (SOURCE / file).read_text())
    assert match, f"{file}: {name}"
    return match[1]


def test_python_and_cpp_read_the_same_versions() -> None:
    assert int(constant("bundle/manifest.hpp", "SCHEMA_VERSION")) == manifest.SCHEMA_VERSION
    assert int(constant("bundle/engine_record.cpp", "ENGINE_SCHEMA_VERSION")) == engine_record.SCHEMA_VERSION
    assert int(constant("text.cpp", "LONGEST_LINE")) == LENGTH


def documented() -> dict[str, str]:
    """Return key -> limit from the tables under "Limits" in docs/manifest.md."""
    text = (ROOT / "docs" / "manifest.md").read_text().split("## Limits")[1]
    rows = re.findall(r"^\| ([^|]+) \| (.+) \|$", text, re.MULTILINE)
    return {key.replace("`", ""): limit for key, limit in rows}


@pytest.mark.parametrize("key", MODEL)
def test_the_documentation_says_the_limits_of_the_model(key: str) -> None:
    allowed = MODEL[key]
    listed = "1, 3, 5 or 7" if isinstance(allowed, tuple) else str(allowed)
    assert documented()[key].startswith(listed)


def test_the_documentation_says_the_other_limits() -> None:
    rows = documented()
    count, each = LISTS["patch_nums"]
    assert rows["patch_nums"].startswith(f"{count} growing sides of {each}; at most {limits.TOKENS} tokens")
    count, each = LISTS["ch_mult"]
    assert rows["ch_mult"] == f"{count} entries of {each}"
    assert rows["cfg"] == str(limits.CFG)
    assert rows["batch"] == str(limits.BATCH)
    assert rows["images of one call"] == str(limits.PICTURES)
    assert rows["threads"] == str(limits.THREADS)
    assert rows["top_p"] == f"0 (all), or {limits.LEAST_TOP_P:.6f} to 1"
    assert rows["names"] == f"printable, 1 to {limits.NAME_BYTES} bytes"
    assert rows["shapes"] == f"at most {limits.RANK} axes of {limits.SIZE}"
    assert rows["graphs, files, tensors of a graph"] == f"at most {limits.COUNT} each"
    assert f"{limits.HEADER_BYTES:,} bytes" in rows["header of a safetensors file"]
    assert f"{limits.JSON_BYTES >> 20} MiB" in rows["JSON"] and f"{limits.JSON_DEPTH} deep" in rows["JSON"]
    versions = f"{manifest.SCHEMA_VERSION} in `manifest.json`, {engine_record.SCHEMA_VERSION} in `engine.json`"
    assert rows["schema_version"] == f"exactly {versions}"
    assert rows["guidance_scales of engine.json"] == str(limits.GUIDANCE_SCALES)
    assert rows["batches of engine.json"] == f"1 to {limits.BATCHES} sizes of {limits.BATCH}"
