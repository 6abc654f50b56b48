"""The comparison with other INT8 tools, with the one tool that this project's own environment has."""

from __future__ import annotations

import ast
import dataclasses
import errno
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from calibration.make import Request, make_int8
from examples.int8_peers import __main__ as peers
from examples.int8_peers import judge, tools
from examples.int8_peers.inputs import GRAPHS, record_inputs, write_graphs
from examples.int8_peers.judge import Accuracies, Found, products_in_engine, timed, used_bytes
from examples.kept_rows import KeptRows
from runtime.bench.summary import Summary
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
    monkeypatch.setattr(peers, "python_of", lambda tool: Path(sys.executable))
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
    assert used_bytes(bundle) < 0.5 * used_bytes(tiny_bundle)


def test_a_graph_that_a_tool_cannot_quantise_stays_fp32(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "WORK", tmp_path)
    monkeypatch.setattr(peers, "python_of", lambda tool: Path(sys.executable))
    bundle, version, graphs = peers.quantised("ort-dynamic", tiny_bundle)  # without the graphs
    assert (version, graphs) == ("?", [])
    assert "ort-dynamic: decoder stays FP32; see" in capsys.readouterr().err
    assert Manifest.load(bundle).graphs["decoder"] == Manifest.load(tiny_bundle).graphs["decoder"]


FOUND = Found(0.01, 0.02, 0.9, 40.0, 0.93, 1.1, 10**7, (4, 4), "")


class CountingJudge:
    """Stands in for the judge: counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: Counter[Path] = Counter()

    def find(self, bundle: Path) -> Found:
        self.asked[bundle] += 1
        return FOUND

    def accuracies(self) -> Accuracies:
        self.asked[Path()] += 1
        return Accuracies(0.93, 0.94)


def found(kept: KeptRows, judge: Any, bundle: Path) -> Found:
    return kept.row(Found, lambda: judge.find(bundle), bundle)


def test_what_was_found_is_kept_until_the_bundle_or_a_setting_changes(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, counting, file = tmp_path / "bundle", CountingJudge(), tmp_path / "work" / "rows.json"
    shutil.copytree(tiny_bundle, bundle)
    asked: Any = counting
    for _ in range(2):
        kept = peers.kept_rows(file, 2000, 1000)
        assert found(kept, asked, bundle) == FOUND
        assert kept.row(Accuracies, asked.accuracies, tiny_bundle, what="accuracies") == Accuracies(0.93, 0.94)
    assert counting.asked == {bundle: 1, Path(): 1}
    found(peers.kept_rows(file, 2000, 1001), asked, bundle)
    assert counting.asked[bundle] == 2
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0', 1))
    found(peers.kept_rows(file, 2000, 1000), asked, bundle)
    assert counting.asked[bundle] == 3


def test_what_was_found_with_other_versions_is_measured_anew(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingJudge()
    asked: Any = counting
    found(peers.kept_rows(tmp_path / "rows.json"), asked, tiny_bundle)
    for count, version in ((1, judge.versions()), (2, {"onnxruntime": "1.0"}), (2, {"onnxruntime": "1.0"})):
        monkeypatch.setattr(peers, "versions", lambda version=version: version)
        found(peers.kept_rows(tmp_path / "rows.json"), asked, tiny_bundle)
        assert counting.asked[tiny_bundle] == count
    assert judge.versions()["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("damage", ["truncated", "an older row", "no table", "no text"])
def test_a_damaged_or_older_file_is_measured_anew(
    damage: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, counting = tmp_path / "rows.json", CountingJudge()
    asked: Any = counting
    found(peers.kept_rows(file), asked, tiny_bundle)
    text = file.read_bytes()
    file.write_bytes(
        {
            "truncated": text[: len(text) // 2],
            "an older row": text.replace(b'"refused"', b'"reason"'),
            "no table": b"[1]",
            "no text": b"\xff",
        }[damage]
    )
    assert found(peers.kept_rows(file), asked, tiny_bundle) == FOUND
    assert capsys.readouterr().err == f"{file}: truncated or of another release; everything is measured anew\n"
    assert found(peers.kept_rows(file), asked, tiny_bundle) == FOUND
    assert counting.asked[tiny_bundle] == 2
    assert not capsys.readouterr().err


def test_rows_that_cannot_be_written_leave_those_before(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = tmp_path / "work" / "rows.json", cast(Any, CountingJudge())
    found(peers.kept_rows(file), asked, tiny_bundle)
    before, kept = file.read_bytes(), peers.kept_rows(file)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kept.row(Accuracies, asked.accuracies, tiny_bundle, what="accuracies")
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_without_tensorrt_the_rest_of_a_row_is_kept(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # an import fails
    assert products_in_engine(tiny_bundle) == ((), "not installed")
    assert judge.versions()["tensorrt_rtx"] == "not installed"
    found = dataclasses.replace(FOUND, int8_products=(), refused="not installed")
    row = peers.Candidate("a", "", ["decoder"], Path()), found, Summary.of([0.02])
    assert peers.table([row], Summary.of([0.04]), 5).splitlines()[-1].endswith("| 2.00x | ? of 5 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BUNDLE", "--ours", "foo"], "--ours: expected NAME=DIR, found 'foo'"),
        (["BUNDLE", "--ours", "=foo"], "--ours: expected NAME=DIR, found '=foo'"),
        (["BUNDLE", "--ours", "a=nowhere"], "nowhere: no manifest.json, so not a bundle; make onnx makes one"),
        (["nowhere"], "nowhere: no manifest.json, so not a bundle; make onnx makes one"),
    ],
)
def test_wrong_bundles_are_refused_in_one_line(
    arguments: list[str], message: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peers, "write_graphs", lambda *_: pytest.fail("work before the check"))
    result = CliRunner().invoke(peers.main, [str(tiny_bundle) if item == "BUNDLE" else item for item in arguments])
    assert (result.exit_code, result.stderr) == (1, f"Error: {message}\n")


def test_times_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        judge, "Pipeline", lambda bundle, verify: SimpleNamespace(generate=lambda *a, **b: drawn.append(bundle.name))
    )
    times = timed([Path("a"), Path("b")], 3)
    assert drawn == ["a", "b"] * 4  # the first round is not counted
    assert [len(summary.samples) for summary in times] == [3, 3]


def test_int8_products_are_counted_in_the_engine_and_a_refused_graph_says_why(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no package for this machine")
    make_int8(tiny_bundle, tmp_path / "int8", Request("trt"), tmp_path / "calibration.json")
    assert products_in_engine(tmp_path / "int8") == ((4, 4, 4), "")
    assert products_in_engine(tiny_bundle) == ((0, 0, 0), "")

    monkeypatch.setattr(peers, "WORK", tmp_path / "work")
    monkeypatch.setattr(peers, "python_of", lambda tool: Path(sys.executable))
    write_graphs(tiny_bundle, tmp_path / "work" / "graphs")
    record_inputs(tiny_bundle, tmp_path / "work" / "inputs", 1)
    bundle, _, _ = peers.quantised("ort-dynamic", tiny_bundle)
    products, reason = products_in_engine(bundle)
    assert products == ()
    assert "DynamicQuantizeLinear" in reason


def test_what_a_tool_writes_beside_its_graph_stays_in_its_folder(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quark writes `quantized_info.csv` into the current directory."""
    script, here = tmp_path / "tool.py", tmp_path / "here"
    script.write_text("open('report.csv', 'w'); print('1.0')")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(peers, "SCRIPT", script)
    monkeypatch.setattr(peers, "WORK", Path("work"))
    monkeypatch.setattr(peers, "python_of", lambda tool: Path(sys.executable))
    monkeypatch.setattr(peers, "assembled", lambda bundle, graphs, out: bundle)
    assert peers.quantised("quark", tiny_bundle) == (tiny_bundle, "1.0", [])
    assert [path.name for path in here.iterdir()] == ["work"]
    assert (here / "work" / "quark" / "report.csv").exists()


def test_the_table_has_the_best_first_and_notes_for_refused_graphs() -> None:
    def row(name: str, found: Found, seconds: float) -> tuple[peers.Candidate, Found, Summary]:
        return peers.Candidate(name, "tool 1.0", ["decoder"], Path()), found, Summary.of([seconds])

    refused, again = (Found(kl, 0.02, 0.9, 96.3, 0.93, 1.1, 10**7, (), f"no plugin (node '{kl}')") for kl in (0.5, 0.6))
    rows = [row("c", again, 0.1), row("b", refused, 0.1), row("a", FOUND, 0.02)]
    a, b, c, note = [line for line in peers.table(rows, Summary.of([0.04]), 5).splitlines()[2:] if line]
    assert a == (
        "| a (tool 1.0) | decoder | 0.0100 | 0.0200 | 90.0% | 40.0 dB | 93.0% | 1.10x | 10.0 | 20.0 | 2.00x | 4 of 5 |"
    )
    for line in (b, c):
        assert "| 90.0% |  | 93.0% |" in line  # the decoder of FP32
        assert line.endswith("| 100.0 | 0.40x | refused [1] |")
    assert note == "[1] no plugin"
