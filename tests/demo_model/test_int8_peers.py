"""The comparison with other INT8 tools, with the one tool that this project's own environment has."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.int8_peers import __main__ as peers
from examples.int8_peers import tools
from examples.int8_peers.inputs import GRAPHS, record_inputs, write_graphs
from runtime.bundle.manifest import Manifest
from runtime.pipeline import Pipeline


def test_tools_run_without_the_project() -> None:
    """They run in environments that have other packages."""
    tree = ast.parse(Path(tools.__file__).read_text())
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    names = {alias.name if isinstance(node, ast.Import) else str(node.module) for node in nodes for alias in node.names}
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots == {"numpy", "onnx", "onnxruntime", "modelopt", "quark", "onnx_neural_compressor"}


@pytest.mark.parametrize("tool", ["ort-static", "ort-dynamic"])
def test_a_tool_s_graphs_make_a_bundle(
    tool: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "WORK", tmp_path)
    monkeypatch.setattr(peers, "environment", lambda tool: Path(sys.executable))
    write_graphs(tiny_bundle, tmp_path / "graphs")
    record_inputs(tiny_bundle, tmp_path / "inputs", 2)
    scales = len(Manifest.load(tiny_bundle).scales)
    counts = {graph: len(list((tmp_path / "inputs" / graph).iterdir())) for graph in GRAPHS}
    assert counts == {"condition": 1, "transformer": scales - 1, "decoder": 2}  # without the first scale
    inputs = tools.Inputs(tmp_path / "inputs" / "transformer")
    for _ in range(2):
        found = [inputs.get_next() for _ in range(len(inputs) + 1)]
        assert [item is None for item in found] == [False] * len(inputs) + [True]
        inputs.rewind()

    bundle, version, graphs = peers.quantised(tool, tiny_bundle)
    assert (version.split()[0], graphs) == ("onnxruntime", list(GRAPHS))
    images = [Pipeline(folder).generate([0, 1], seed=3).images.astype(int) for folder in (tiny_bundle, bundle)]
    assert 0 < np.abs(images[0] - images[1]).mean() < 64
    assert peers.used_bytes(bundle) < 0.5 * peers.used_bytes(tiny_bundle)


def test_a_graph_that_a_tool_cannot_quantise_stays_fp32(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "WORK", tmp_path)
    monkeypatch.setattr(peers, "environment", lambda tool: Path(sys.executable))
    bundle, version, graphs = peers.quantised("ort-dynamic", tiny_bundle)  # without the graphs
    assert (version, graphs) == ("?", [])
    assert "ort-dynamic: decoder stays FP32; see" in capsys.readouterr().err
    assert Manifest.load(bundle).graphs["decoder"] == Manifest.load(tiny_bundle).graphs["decoder"]
