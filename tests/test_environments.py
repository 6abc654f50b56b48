"""Environments of other packages are made once, and again when the packages change."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from examples.environments import environment
from tests import web_environment


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run."""
    ran: list[list[str]] = []

    def run(command: list[Any], check: bool) -> None:
        ran.append([str(part) for part in command])
        if "-m" in command and "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
        if "no-such-package" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_an_environment_is_made_again_for_other_packages(commands: list[list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert environment(folder, "gradio>=6", "numpy") == folder / "bin" / "python"
    assert environment(folder, "gradio>=6", "numpy") == folder / "bin" / "python"
    assert [command[-2:] for command in commands] == [["--clear", str(folder)], ["gradio>=6", "numpy"]]
    environment(folder, "gradio>=7", "numpy")
    assert [command[-2:] for command in commands[2:]] == [["--clear", str(folder)], ["gradio>=7", "numpy"]]


def test_an_environment_that_failed_is_tried_again(commands: list[list[str]], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            environment(tmp_path / "made", "no-such-package")
    assert len(commands) == 4


def test_the_page_is_tested_with_what_its_extra_brings(tmp_path: Path) -> None:
    text = (web_environment.ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace('web = ["gradio>=6"]', 'web = ["gradio>=7"]'))
    assert "gradio>=6" in web_environment.packages()
    assert "gradio>=7" in web_environment.packages(tmp_path / "pyproject.toml")
    assert "pillow>=9.1" in web_environment.packages()
