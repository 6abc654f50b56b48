"""What users of pip get: the wheel in an environment of its own, and the command var-edge in any folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import runtime
from packages.wheels import PIP, pure_wheel
from tests.conftest import DATA
from tests.runtime.toy import write_bundle
from var_edge.commands import COMMANDS, group

ROOT = Path(__file__).parents[1]
TYPED = ("calibration", "export", "runtime", "var_edge")
VarEdge = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with VAR Edge's wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "venv"
    wheel = pure_wheel(folder)
    assert wheel.name == f"var_edge-{runtime.__version__}-py3-none-any.whl"
    venv.create(environment, symlinks=os.name != "nt")
    bin_folder = environment / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / Path(sys.executable).name
    install = ["--python", str(python), "install", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([*PIP, *install], check=True)
    site = next(environment.rglob("site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


@pytest.fixture
def var_edge(installed: Path, tmp_path: Path) -> VarEdge:
    """var_edge(*arguments): runs the command in a folder that holds nothing of the project."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / "var-edge", *arguments],
            cwd=tmp_path,
            env={"PATH": "", "HOME": str(tmp_path), "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_the_wheel_has_the_types_the_weights_and_the_class_names(installed: Path) -> None:
    site = next(installed.parent.rglob("site-packages"))
    for package in TYPED:
        assert (site / package / "py.typed").is_file()
    assert (site / "export/recipes/demo/var_demo.safetensors").is_file()
    assert (site / "runtime/bundle/class_lists/imagenet.txt").is_file()
    assert not list(site.glob("tests*"))


def test_version_and_help(var_edge: VarEdge) -> None:
    assert var_edge("--version").stdout == f"var-edge, version {runtime.__version__}\n"
    listed = var_edge().stdout
    assert listed == var_edge("--help").stdout
    for name, (_, summary) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", listed, re.MULTILINE)
    assert var_edge("export", "--help").stdout.startswith("Usage: var-edge export [OPTIONS]\n")


def test_usage_errors_name_the_command(var_edge: VarEdge) -> None:
    for arguments, message in (
        (["nothing"], "Error: No such command 'nothing'; var-edge --help lists the options\n"),
        (["generate"], "Error: Missing option '--bundle'; var-edge generate --help lists the options\n"),
        (["--nothing"], "Error: No such option '--nothing'; var-edge --help lists the options\n"),
    ):
        result = var_edge(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.replace(": --nothing", " '--nothing'") == message  # click before 8.2


def test_every_recipe_finds_its_weights(installed: Path, tmp_path: Path) -> None:
    """Those of the demo model come with the package, beside its recipe."""
    code = (
        "from export.checkpoint.recipe import RECIPES, Recipe\n"
        "recipe = Recipe.load('var_demo'); folder = recipe.folder / recipe.checkpoints\n"
        "assert folder.resolve().is_relative_to(RECIPES.resolve())\n"
        "print((folder / recipe.var_checkpoint).is_file(), (folder / recipe.vae_checkpoint).is_file(), RECIPES)"
    )
    result = subprocess.run([installed / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.startswith("True True "), result.stderr
    assert str(installed.parent) in result.stdout  # not this repository's


@pytest.mark.slow
def test_a_recipe_brings_its_own_class_names(var_edge: VarEdge, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.toml").write_text((DATA / "tiny.toml").read_text() + 'classes = "colours"\n')
    (tmp_path / "models/colours.txt").write_text("".join(f"colour {i}\n" for i in range(10)))
    exported = var_edge("export", "--model", "models/mine.toml", "--random-weights", "0", "--out", "bundle")
    assert exported.returncode == 0, exported.stderr
    assert "colour 7" in var_edge("generate", "--bundle", "bundle", "--list-classes").stdout


def test_a_toy_bundle_is_drawn_the_same(var_edge: VarEdge, tmp_path: Path) -> None:
    write_bundle(tmp_path / "toy")
    arguments = ["--bundle", "toy", "--label", "1", "--top-k", "5", "--out"]
    assert var_edge("generate", *arguments, "a.png").returncode == 0
    assert var_edge("runtime.generate", *arguments, "b.png").returncode == 0  # as in python -m runtime.generate
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    result = CliRunner().invoke(group, [], prog_name="var-edge", env={"_VAR_EDGE_COMPLETE": f"{shell}_source"})
    assert "_VAR_EDGE_COMPLETE" in result.output
    words = {"COMP_WORDS": "var-edge generate --ba", "COMP_CWORD": "--ba" if shell == "fish" else "2"}
    complete = words | {"_VAR_EDGE_COMPLETE": f"{shell}_complete"}
    result = CliRunner().invoke(group, [], prog_name="var-edge", env=complete)
    assert "--backend" in result.output and "--batch" in result.output


@pytest.mark.parametrize(
    "arguments",
    # An ablation runs only where the exporter and the calibration are installed anyway.
    [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS if name != "ablation")],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """A device should not wait for what it does not use."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'tensorrt'} & {*sys.modules}),"
        " file=sys.stderr))\n"
        "from var_edge.__main__ import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert result.stderr == "\n", result.stderr


def test_the_list_says_what_the_commands_say() -> None:
    for name, (_, summary) in COMMANDS.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None and command.help is not None
        assert " ".join(command.help.split()).startswith(summary.removesuffix(".")), name


def test_one_version() -> None:
    """runtime/version.py has it, pyproject.toml and CMake read it, and the C header, compiled alone, repeats it."""
    header = (ROOT / "runtime/cpp/include/var_edge.h").read_text()
    parts = [re.search(rf"#define VAR_EDGE_VERSION_{part} (\d+)\n", header) for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(part[1] for part in parts if part) == runtime.__version__
    assert 'version = { attr = "runtime.version.__version__" }' in (ROOT / "pyproject.toml").read_text()
    cmake = (ROOT / "runtime/cpp/CMakeLists.txt").read_text()
    assert "project(var_edge VERSION ${VERSION_IN_HEADER} " in cmake
