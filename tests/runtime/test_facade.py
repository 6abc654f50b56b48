"""`import var_edge` works, also in folders that hold another project's runtime.py or export.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import runtime
import var_edge

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an application that has modules with these names."""
    for name in ("runtime", "export"):
        (tmp_path / f"{name}.py").write_text(f"MINE = '{name}'\n")
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in this folder, as if the project was installed."""
    start = f"import sys; sys.path.append({str(ROOT)!r}); import runpy\n"
    if arguments[0] == "-m":  # the folder comes first, as Python has it
        code = f"sys.argv = ['-m', *sys.argv[2:]]; runpy.run_module({arguments[1]!r}, run_name='__main__')"
        arguments = ("-c", start + "sys.path.insert(0, '')\n" + code, *arguments[1:])
    else:
        arguments = ("-c", start + arguments[1], *arguments[2:])
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, env={"PATH": ""}
    )


def test_the_facade_is_the_runtime() -> None:
    for name in var_edge.__all__:
        assert getattr(var_edge, name) == getattr(runtime, name)
    assert issubclass(var_edge.NumericError, var_edge.VarEdgeError)
    assert var_edge.Sampling().fitted(4096, 10).top_k == 900
    with pytest.raises(AttributeError, match="nothing"):
        var_edge.nothing  # noqa: B018


def test_an_application_may_have_a_runtime_of_its_own(folder: Path, toy_bundle: Path) -> None:
    code = (
        "import runtime, export, var_edge\n"
        "images = var_edge.Pipeline(sys.argv[1], 'onnxruntime').generate(['goldfish'], top_k=3, top_p=0.5).images\n"
        "try: var_edge.Pipeline('nowhere')\n"
        "except var_edge.BundleError as error: assert 'nowhere' in str(error)\n"
        "print(runtime.MINE, export.MINE, images.tolist(), var_edge.__version__)"
    )
    result = python(folder, "-c", code, str(toy_bundle))
    expected = runtime.Pipeline(toy_bundle, "onnxruntime").generate(["goldfish"], top_k=3, top_p=0.5).images
    assert result.stdout == f"runtime export {expected.tolist()} {runtime.__version__}\n", result.stderr


@pytest.mark.parametrize(
    ("command", "shadow"), [("export", "runtime"), ("calibration", "runtime"), ("calibration", "export")]
)
def test_a_command_names_what_shadows_it(command: str, shadow: str, folder: Path) -> None:
    for file in folder.glob("*.py"):
        if file.stem != shadow:
            file.unlink()
    result = python(folder, "-m", command, "--help")
    said = f"Error: {folder / shadow}.py: Python takes it for VAR Edge's package {shadow}; rename it"
    assert result.returncode == 1
    assert result.stderr.startswith(said)
    assert len(result.stderr.splitlines()) == 1
    assert python(folder, "-m", "var_edge", command, "--help").returncode == 0  # which works anywhere


def test_an_unknown_command(folder: Path) -> None:
    result = python(folder, "-m", "var_edge", "json.tool")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: No such command 'json.tool'; ")
