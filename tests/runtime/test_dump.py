"""A dump of an edit must show what was drawn as well as what was kept."""

from pathlib import Path

import numpy as np

from runtime import Pipeline
from runtime.dump import write_dump
from tests.runtime.toy import SIDES


def test_dump_of_an_edit(toy_bundle: Path, tmp_path: Path) -> None:
    keep = [np.ones((1, p * p), bool) for p in SIDES]
    kept = [np.full((1, p * p), 11, np.int32) for p in SIDES]
    result = Pipeline(toy_bundle).generate(1, top_k=2, keep=keep, kept_tokens=kept)
    write_dump(tmp_path / "dump.npz", result)
    dump = np.load(tmp_path / "dump.npz")
    assert sorted(dump.files) == sorted(["image", *(f"{kind}_{k}" for kind in ("tokens", "drawn") for k in range(3))])
    for k in range(3):
        assert np.array_equal(dump[f"tokens_{k}"], kept[k])
        assert np.array_equal(dump[f"drawn_{k}"], result.drawn[k])
