"""A release: its notes come from the changelog, and the workflow that makes it is well-formed and pinned."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import runtime
from packages.debs import PROGRAMS
from packages.release_notes import current, main, notes

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2026-12-01

### Added

- Packages.

## [0.1.0] - 2026-11-01

- A start.
"""


def test_the_notes_of_a_version() -> None:
    assert notes(CHANGELOG, "0.2.0") == "### Added\n\n- Packages."
    assert notes(CHANGELOG, "0.1.0") == "- A start."


@pytest.mark.parametrize("version", ["0.3.0", "Unreleased", "0.2"])
def test_a_version_without_notes_is_not_released(version: str) -> None:
    with pytest.raises(SystemExit) as error:
        notes(CHANGELOG, version)
    expected = f"CHANGELOG.md: expected a section '## [{version}] - DATE' with text, found Unreleased, 0.2.0, 0.1.0; "
    assert str(error.value).startswith(expected)


def test_the_changelog_has_notes_of_the_next_release_or_of_this_one() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = "Unreleased" if "## [Unreleased]\n\n### " in text else current()
    # Without any package: a machine that makes a release has only Python.
    command = [sys.executable, "-S", "-m", "packages.release_notes", version]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("### "), result.stdout


def test_the_current_version() -> None:
    assert current() == runtime.__version__


def test_documents_do_not_repeat_the_version() -> None:
    """They would be wrong after the next release. The changelog is about versions."""
    documents = [ROOT / "Makefile", ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    assert [path.name for path in documents if re.search(rf"\b{re.escape(current())}\b", path.read_text())] == []


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_release_notes() -> None:
    command = ["make", "--no-print-directory", "release-notes", "VERSION=9.9.9"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "CHANGELOG.md: expected a section '## [9.9.9] - DATE'" in result.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_well_formed(workflow: Path) -> None:
    checker = shutil.which("check-jsonschema", path=sysconfig.get_path("scripts"))
    if checker is None:
        pytest.skip("check-jsonschema is not installed, which knows GitHub's schema: pip install check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.github-workflows", str(workflow)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned(workflow: Path) -> None:
    """By commit: a tag of somebody else's repository can be moved."""
    used = re.findall(r"uses: *(.*)", workflow.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action), action


def test_the_workflow_runs_what_is_there() -> None:
    text = "".join(workflow.read_text() for workflow in WORKFLOWS)
    makefile = (ROOT / "Makefile").read_text()
    assert ".ci/run" in text
    lines = re.findall(r"(?:run: |^ +)make ([a-z -]+?)(?: TAG=.*)?$", text, re.MULTILINE)
    targets = {target for line in lines for target in line.split()}
    assert targets == {"wheel", "deb", "release-notes"}
    for target in targets:
        assert f"\n{target}:" in makefile, target


def test_a_container_of_the_workflow_lets_git_read_the_checkout() -> None:
    """Whose owner is not the container's root; Git refuses it otherwise, and CMake asks for the commit."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    jobs = re.split(r"^  (?=\w+:$)", text.partition("\njobs:\n")[2], flags=re.MULTILINE)
    in_containers = [job for job in jobs if "    container:" in job]
    assert len(in_containers) == 2
    for job in in_containers:
        checkout, safe = job.index("actions/checkout@"), job.index('--add safe.directory "$GITHUB_WORKSPACE"')
        assert checkout < safe < job.index("run: ", safe), job


def test_packages_are_built_with_what_reads_their_files() -> None:
    """CPack needs dpkg-shlibdeps and file for Depends, in the workflow and in the check of a bare machine."""
    (packages,) = re.findall(
        r"^ +(ca-certificates dpkg-dev .*)", "".join(w.read_text() for w in WORKFLOWS), re.MULTILINE
    )
    check = (ROOT / ".ci" / "run").read_text()
    for program, package in PROGRAMS.items():
        assert package in packages.split()
        assert f" {program}:{package} " in check


def test_a_tag_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["release_notes", "--tag", "v9.9.9"])
    with pytest.raises(SystemExit) as error:
        main()
    assert str(error.value).startswith(f"--tag: expected v{current()}, found v9.9.9; ")


def test_the_tag_of_a_version_with_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("packages.release_notes.current", lambda: "0.2.0")
    monkeypatch.setattr("packages.release_notes.notes", lambda changelog, version: f"notes of {version}")
    monkeypatch.setattr("sys.argv", ["release_notes", "--tag", "v0.2.0"])
    main()
    assert capsys.readouterr().out == "notes of 0.2.0\n"
