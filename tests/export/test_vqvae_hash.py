"""The hash of the VQVAE in the manifest: equal for models that share a VQVAE, in every precision, and for no others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.make import Request, make_int8
from calibration.plan import MIXED
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import Weights, empty_models, formula_weights
from runtime.bundle.manifest import Manifest
from runtime.errors import BundleError
from tests.conftest import DATA


def of(bundle: Path) -> str | None:
    return Manifest.load(bundle, verify=False).vqvae_sha256


def hash_of(changes: Mapping[str, np.ndarray]) -> str:
    """Return the hash of the tiny VQVAE with some of its tensors replaced."""
    recipe = Recipe.load(str(DATA / "tiny.toml"))
    readers: dict[str, Any] = {name: (lambda value=value: value) for name, value in changes.items()}
    weights = formula_weights(recipe, 0)
    return Weights(weights.readers | readers, {}).sha256_of(empty_models(recipe)[1])


def test_precision_and_transformer_do_not_change_it(
    tiny_bundle: Path, fp16_tiny_bundle: Path, other_tiny_bundle: Path, tmp_path: Path
) -> None:
    make_int8(tiny_bundle, tmp_path / "int8", Request("cpu", MIXED))
    found = {of(bundle) for bundle in (tiny_bundle, fp16_tiny_bundle, other_tiny_bundle, tmp_path / "int8")}
    assert found == {hash_of({})}


@pytest.mark.parametrize("name", ["quantize.embedding.weight", "decoder.conv_in.weight", "quantize.quant_resi"])
def test_every_tensor_of_the_vqvae_changes_it(name: str) -> None:
    weights = formula_weights(Recipe.load(str(DATA / "tiny.toml")), 0)
    full = next(key for key in weights.readers if key.startswith(name))
    changed = weights.read(full).copy()
    changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(np.inf))
    assert hash_of({full: changed}) != hash_of({})
    assert hash_of({full: weights.read(full).astype(np.float64)}) == hash_of({})  # how it is stored does not matter


def test_a_hash_that_is_none_is_refused(tiny_bundle: Path) -> None:
    manifest = Manifest.load(tiny_bundle, verify=False)
    source = manifest.provenance.source | {"vqvae_sha256": "abc"}
    with pytest.raises(BundleError, match="vqvae_sha256: expected 64 hexadecimal digits; found 'abc'"):
        replace(manifest, provenance=replace(manifest.provenance, source=source)).check("m")


def test_a_bundle_without_it_is_of_the_same_checkpoints(tiny_bundle: Path, other_tiny_bundle: Path) -> None:
    """A folder may hold a bundle that was exported before there was a hash beside new ones."""
    new, other = (Manifest.load(path, verify=False).provenance for path in (tiny_bundle, other_tiny_bundle))
    old = replace(new, source={key: value for key, value in new.source.items() if key != "vqvae_sha256"})
    assert old.source != new.source
    assert old.same_checkpoints(new) and new.same_checkpoints(old)
    assert not old.same_checkpoints(other) and not new.same_checkpoints(other)
