"""The C and C++ API, feature by feature: tests/features on a bundle of toy graphs, also under sanitizers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from runtime.pipeline import Pipeline
from tests.cpp.conftest import SOURCE, Configure, run

FEATURES = (
    *("busy", "scramble", "fork", "cancel", "values", "structs", "labels", "seeds", "stop", "stop_between"),
    *("stages", "scales", "progress", "memory", "log", "provider", "share", "version"),
    *("guidance", "draft", "draft_shown", "draft_scramble", "draft_stop"),
)
# What the thread sanitizer may say something about.
THREADED = ("busy", "scramble", "stop", "stop_between", "share", "cancel", "draft", "draft_scramble", "draft_stop")


@pytest.fixture(scope="session")
def threaded_features(build: Configure) -> Path:
    options = ("-DVAR_EDGE_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    return build("tsan", *options, targets=("tests/features",)) / "tests" / "features"


@pytest.mark.parametrize("feature", FEATURES)
def test_features(feature: str, release: Path, toy: Path) -> None:
    assert run(release / "tests" / "features", toy, feature, timeout=60).stdout == ""


@pytest.mark.parametrize("feature", FEATURES)
def test_features_under_the_address_sanitizer(feature: str, checked: Path, toy: Path) -> None:
    leaks = f"suppressions={SOURCE / 'tests' / 'lsan.supp'}:print_suppressions=0"
    result = run(checked / "tests" / "features", toy, feature, timeout=120, env=os.environ | {"LSAN_OPTIONS": leaks})
    assert result.stdout == "" and "runtime error" not in result.stderr


@pytest.mark.parametrize("feature", THREADED)
def test_features_under_the_thread_sanitizer(feature: str, threaded_features: Path, toy: Path) -> None:
    program: list[str | Path] = ["setarch", "-R", threaded_features, toy, feature]  # see test_library
    options = f"suppressions={SOURCE / 'tests' / 'tsan.supp'}"
    assert run(*program, timeout=120, env=os.environ | {"TSAN_OPTIONS": options}).stdout == ""


def test_a_program_of_an_older_header(release: Path, toy: Path) -> None:
    """tests/compat.c is compiled against the header of 0.1.0, whose structs are shorter. It draws the same."""
    tokens = np.concatenate(Pipeline(toy, "onnxruntime").generate([1]).tokens, axis=1)[0]
    assert run(release / "tests" / "compat", toy).stdout.split() == list(map(str, tokens))


def test_handles_share_their_weights(release: Path, demo_bundle: Path) -> None:
    assert run(release / "tests" / "features", demo_bundle, "share_memory").stdout == ""


def test_a_picture_in_a_batch_and_alone(release: Path, demo_bundle: Path) -> None:
    """The same tokens, and pixels within 1/255."""
    assert run(release / "tests" / "features", demo_bundle, "batch").stdout == ""


def test_edit_with_a_mask_and_a_callback(release: Path, tiny_bundle: Path) -> None:
    assert run(release / "tests" / "features", tiny_bundle, "edit").stdout == ""


def test_a_directory_by_its_descriptor(release: Path, toy: Path) -> None:
    """As a sandbox hands it over: without a name."""
    descriptor = os.open(toy, os.O_RDONLY | os.O_DIRECTORY)
    try:
        program = release / "tests" / "features"
        assert run(program, f"/proc/self/fd/{descriptor}", "seeds", pass_fds=(descriptor,)).stdout == ""
    finally:
        os.close(descriptor)
