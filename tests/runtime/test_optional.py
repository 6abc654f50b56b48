"""Commands look for optional packages before the work, and name the package to install."""

from __future__ import annotations

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import calibration.__main__
import export.__main__
import export.engine.__main__
import runtime.bench.__main__
import runtime.web.__main__
from runtime.optional import INSTALL, advice, require

ROOT = Path(__file__).parents[2]
BASE = {"numpy", "onnxruntime", "safetensors", "PIL", "click", "rich"}  # the packages that pip install . installs
OWN = {"runtime", "export", "calibration", "var_edge"}


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """A set for a test to fill: modules named in it count as not installed."""
    names: set[str] = set()
    monkeypatch.setattr("runtime.optional.find_spec", lambda name: None if name in names else find_spec(name))
    return names


@pytest.mark.parametrize(
    ("command", "arguments", "module", "said"),
    [
        (
            calibration.__main__.main,
            ["BUNDLE", "--out", "OUT", "--budget", "1"],
            "matplotlib",
            "--budget: needs matplotlib",
        ),
        (calibration.__main__.main, ["BUNDLE", "--out", "OUT"], "onnx", "calibration: needs onnx"),
        (export.engine.__main__.main, ["BUNDLE"], "polygraphy", "export.engine: needs polygraphy"),
        (export.__main__.main, ["--model", "var_demo", "--out", "OUT"], "torch", "export: needs torch"),
        (
            runtime.bench.__main__.main,
            ["--bundle", "BUNDLE", "--plot", "x.png"],
            "matplotlib",
            "--plot: needs matplotlib",
        ),
        (runtime.web.__main__.main, ["--bundle", "BUNDLE"], "gradio", "runtime.web: needs gradio"),
    ],
)
def test_before_any_work(
    command: object, arguments: list[str], module: str, said: str, absent: set[str], own_bundle: Path, tmp_path: Path
) -> None:
    absent.add(module)
    before = sorted(tmp_path.rglob("*"))
    places = {"BUNDLE": str(own_bundle), "OUT": str(tmp_path / "out"), "x.png": str(tmp_path / "x.png")}
    result: Result = CliRunner().invoke(command, [places.get(part, part) for part in arguments])  # type: ignore[arg-type]
    assert result.exit_code == 1
    assert result.output == f"Error: {said}, which is not installed; {INSTALL[module]}\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_every_optional_module_is_in_the_table() -> None:
    imported: set[str] = set()
    for file in (file for folder in OWN - {"var_edge"} for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.split(".")[0] for name in names}
    others = {name for name in imported - BASE - OWN if name not in sys.stdlib_module_names and name != "tomllib"}
    assert others <= INSTALL.keys()
    assert {"torch", "onnx", "polygraphy", "matplotlib", "huggingface_hub"} <= others


def test_every_extra_is_one_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for command in INSTALL.values():
        for extra in re.findall(r"var-edge\[(.+?)\]", command):
            assert f"\n{extra} = [" in text


def test_what_is_missed_after_all() -> None:
    error = ModuleNotFoundError("No module named 'polygraphy.backend'", name="polygraphy.backend")
    assert advice(error) == f"No module named 'polygraphy.backend'; {INSTALL['polygraphy']}"
    assert "'var-edge[trt-cu12]' (CUDA 12" in INSTALL["polygraphy"]
    require("nothing", "click", "json")
