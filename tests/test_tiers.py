"""The fast tier stays fast: what waits for an export, a compiler or a training is not in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUNDLES = {"golden_bundle", "shared_bundle", "tiny_bundle", "demo_bundle", "fp16_demo_bundle", "int8_bundles"}


def test_what_waits_for_an_export_is_not_fast(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        waits = (
            BUNDLES & {*getattr(item, "fixturenames", ())} or "/cpp/" in item.nodeid or "/demo_model/" in item.nodeid
        )
        assert not (waits and item.get_closest_marker("fast")), item.nodeid
    assert not request.node.get_closest_marker("fast")  # which could get a bundle by its name
    assert any(item.get_closest_marker("fast") for item in request.session.items)


def test_every_tier_has_its_command() -> None:
    text = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^(test[a-z-]*):.*\n\t@(.*)$", text, re.MULTILINE))
    assert set(recipes) == {"test", "test-fast", "test-full"}
    assert recipes["test-fast"].endswith("-m fast")
    assert recipes["test-full"].endswith("-m ''")
    assert " -m " not in recipes["test"].replace("-m pytest", "")  # pyproject.toml leaves out full
