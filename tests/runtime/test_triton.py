"""python -m runtime.triton: a repository that can be moved, and replaces only what it wrote."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runtime.bundle.manifest import Manifest
from runtime.serving.tensors import INPUTS, OUTPUTS
from runtime.triton import main


def write(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_repository_holds_everything(own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    result = write(repository, "--bundle", own_bundle, "--batch", 4)
    assert (result.exit_code, result.output.count("\n")) == (0, 1), result.output
    monkeypatch.chdir(tmp_path)
    shutil.move(repository, "moved")
    model = Path("moved/var_edge")
    shutil.rmtree(own_bundle)
    Manifest.load(model / "bundle")  # complete, also without the bundle that it came from
    text = (model / "config.pbtxt").read_text()
    assert str(tmp_path) not in text
    assert "decoupled: true" in text and "max_batch_size: 4\n" in text
    assert set(re.findall(r'^  \{ name: "(\w+)"', text, re.MULTILINE)) == {*INPUTS, *OUTPUTS}
    assert re.findall(r'name: "(\w+)" data_type: \w+ dims: \S+ }', text)[0] == "label"  # the only one that is required
    assert "runtime.serving.model" in (model / "1" / "model.py").read_text()


def test_a_repository_is_replaced_with_its_old_model(own_bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write(repository, "--bundle", own_bundle, "--name", "first")
    assert write(repository, "--bundle", own_bundle, "--name", "second").exit_code == 0
    assert [entry.name for entry in repository.iterdir()] == ["second"]


def test_a_repository_with_the_model_of_another_is_kept(own_bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write(repository, "--bundle", own_bundle)
    (repository / "other").mkdir()
    (repository / "other" / "config.pbtxt").write_text('name: "other"\n')
    before = sorted(repository.rglob("*"))
    result = write(repository, "--bundle", own_bundle)
    assert result.exit_code == 1
    assert "expected a new or empty folder or a model repository of VAR Edge, found 'other'" in result.output
    assert sorted(repository.rglob("*")) == before


def test_the_copy_does_not_depend_on_the_bundle(own_bundle: Path, tmp_path: Path) -> None:
    """Links to another disk are followed, and no half-written file of a run that was killed is copied."""
    weights = own_bundle / "weights.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    (own_bundle / ".weights.safetensors.01234567.var-edge").touch()
    write(tmp_path / "repository", "--bundle", own_bundle)
    copy = tmp_path / "repository/var_edge/bundle"
    assert not (copy / "weights.safetensors").is_symlink()
    assert (copy / "weights.safetensors").stat().st_ino == (tmp_path / "elsewhere").stat().st_ino
    assert not list(copy.glob(".*"))


def test_what_is_refused(own_bundle: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--bundle", tmp_path / "none"), "no manifest.json"),
        (("--bundle", own_bundle, "--name", "a/b"), "name: expected letters, digits, _ and -, at most 64, found 'a/b'"),
        (
            ("--bundle", own_bundle, "--draft", own_bundle, "--draft-scales", 9),
            "draft_scales: expected 0 to 3, found 9",
        ),
    ):
        result = write(tmp_path / "repository", *arguments)
        assert result.exit_code == 1
        assert message in result.output and result.output.count("\n") == 1
    closed = tmp_path / "file"
    closed.touch()
    result = write(closed / "repository", "--bundle", own_bundle)
    assert result.output == f"Error: {closed}/repository: cannot be written: Not a directory; choose another place\n"
    assert not (tmp_path / "repository").exists()
