"""Verification holds what is exact in the shortcuts to exactness, and notices a shortcut that draws something else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from export.verify.__main__ import main
from export.verify.check import Row
from export.verify.run import verify
from export.verify.shortcuts import DRAFTING, Shortcuts
from export.verify.tolerances import GUIDANCE
from runtime.backends.wiring import ColumnCopy, _Columns
from runtime.bundle.manifest import WEIGHTS
from runtime.errors import BundleError, SettingsError
from runtime.pipeline import Pipeline
from tests.runtime.fake_tensorrt import write_engines


@pytest.fixture
def candidate(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy: a bundle is not compared with itself."""
    return shutil.copytree(tiny_bundle, tmp_path / "candidate")


def shortcut_rows(candidate: Path, against: Path, shortcuts: Shortcuts) -> dict[str, Row]:
    (entry,) = verify([candidate], against=against, pictures=3, shortcuts=shortcuts, with_bisect=True).entries
    found = {row.name: row for row in entry.rows if row.stage.startswith((GUIDANCE, DRAFTING))}
    assert entry.failed == [row for row in found.values() if row.misses]
    assert ("the shortcut differs" in str(entry.finding)) == bool(entry.failed)
    return found


def test_sound_shortcuts_pass(candidate: Path, tiny_bundle: Path, other_tiny_bundle: Path) -> None:
    rows = shortcut_rows(candidate, tiny_bundle, Shortcuts(1, other_tiny_bundle, 2))
    assert {name: row.verdict for name, row in rows.items()} == dict.fromkeys(
        (
            "guidance at 1 scale(s), scale 1",
            "guidance at 1 scale(s), scale 2",
            "guidance at all scales",
            "draft of 2 scale(s), drafted",
            "draft of 2 scale(s), refined",
            "draft of no scale",
            "draft of all scales",
        ),
        "passed",
    )
    assert not shortcut_rows(candidate, tiny_bundle, Shortcuts())


def test_keys_that_are_not_taken_over_fail(candidate: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: _Columns, other: _Columns, tokens: int) -> Iterator[ColumnCopy]:
        return iter(())

    monkeypatch.setattr(_Columns, "taken_over", nothing)
    rows = shortcut_rows(candidate, tiny_bundle, Shortcuts(2))
    assert rows["guidance at 2 scale(s), scale 2"].verdict == "FAILED"
    assert rows["guidance at all scales"].verdict == "passed"


def test_a_draft_that_is_not_the_draft_fails(
    candidate: Path, tiny_bundle: Path, other_tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Pipeline.draw_tokens

    def other(self: Pipeline, *arguments: object, **settings: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
        tokens, drawn = draw(self, *arguments, **settings)  # type: ignore[arg-type]
        tokens[1] = tokens[1] ^ 1
        return tokens, drawn

    monkeypatch.setattr(Pipeline, "draw_tokens", other)
    rows = shortcut_rows(candidate, tiny_bundle, Shortcuts(None, other_tiny_bundle, 2))
    assert rows["draft of 2 scale(s), drafted"].verdict == rows["draft of all scales"].verdict == "FAILED"
    assert rows["draft of no scale"].verdict == "passed"


def test_a_draft_that_cannot_run_is_one_failed_row(
    candidate: Path, tiny_bundle: Path, other_tiny_bundle: Path, tmp_path: Path
) -> None:
    """What was measured before is kept."""
    draft = shutil.copytree(other_tiny_bundle, tmp_path / "draft")
    (entry,) = verify(
        [candidate], against=tiny_bundle, pictures=1, shortcuts=Shortcuts(None, write_engines(draft), 1)
    ).entries
    assert [row.name for row in entry.failed] == ["draft of 1 scale(s)"]
    assert "engines" in entry.failed[0].misses[0]
    assert len(entry.rows) > 10
    with (draft / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(BundleError, match="altered"):
        verify([candidate], against=tiny_bundle, pictures=1, shortcuts=Shortcuts(None, draft, 1))


def test_bad_input(candidate: Path, tiny_bundle: Path, demo_bundle: Path) -> None:
    for shortcuts, message in (
        (Shortcuts(4), "guidance_scales: expected 1 to 3, found 4"),
        (Shortcuts(None, tiny_bundle, 4), "draft_scales: expected 0 to 3, found 4"),
        (Shortcuts(None, demo_bundle, 1), "expected patch_nums"),
    ):
        with pytest.raises(SettingsError, match=message):
            verify([candidate], against=tiny_bundle, pictures=1, shortcuts=shortcuts)
    result = CliRunner().invoke(main, [str(candidate), "--draft", str(tiny_bundle)])
    assert result.exit_code == 2 and "Expected both of '--draft' and '--draft-scales'" in result.stderr
