"""python -m runtime.bench on the toy bundle: its output and files, and one clear line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from runtime.bench.__main__ import main
from runtime.bench.benchmark import benchmark
from runtime.bench.jetson import Jetson
from runtime.bench.plot import _bars
from runtime.bench.report import Settings
from runtime.bench.tables import print_report
from runtime.bench.work import decoder_flop, tiny_decoder_flop, transformer_flop
from tests.runtime.jetson_tree import write_jetson
from tests.runtime.toy import SIDES, V, write_bundle

SCHEMA = Path(__file__).parents[2] / "docs" / "benchmarks" / "README.md"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.bench.benchmark.gemm_rate", lambda threads: threads * 1e9)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_default_top_k_fits_a_small_vocabulary(toy_bundle: Path, tmp_path: Path) -> None:
    result = bench("--bundle", toy_bundle, "--runs", 1, "--json", tmp_path / "bench.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "bench.json").read_text())["settings"]["top_k"] == V


def test_everything_is_measured_and_written(toy_bundle: Path, tmp_path: Path) -> None:
    json_file, plot_file = tmp_path / "bench.json", tmp_path / "bench.png"
    settings = ["--top-k", 5, "--batches", "1,4", "--runs", 3, "--threads", 1, "--label", "golden retriever"]
    result = bench("--bundle", toy_bundle, *settings, "--json", json_file, "--plot", plot_file)
    assert result.exit_code == 0, result.output
    for text in ("toy fp32", "batch of 4", "transformer", "bridge", "Jetson", f"wrote {plot_file}"):
        assert text in result.output
    assert max(map(len, result.output.split("wrote")[0].splitlines())) <= 80  # what a pipe shows

    report = json.loads(json_file.read_text())
    assert report["settings"]["label"] == "golden retriever"
    assert (report["schema_version"], report["backend"], report["threads"]) == (1, "onnxruntime with 1 thread(s)", 1)
    assert report["load"]["hashing"] > 0
    assert report["load"]["memory"]["resident"] > 1e6
    assert [times["batch"] for times in report["batches"]] == [1, 4]
    for times in report["batches"]:
        assert len(times["seconds"]["samples"]) == 3
        stages = [(stage["graph"], stage["scale"]) for stage in times["stages"]]
        steps = [(graph, k) for k in range(len(SIDES)) for graph in ("transformer", "bridge")]
        assert stages == [("condition", None), *steps, ("decoder", None)]
        spent = sum(stage["seconds"] for stage in times["stages"])
        assert spent > 0  # how it adds up to the whole: test_bench_parts.py
        assert times["memory"]["peak"] >= times["memory"]["resident"]
        assert times["rivals"] == []
    assert report["floor"]["flop_per_second"] == 1e9
    assert report["jetson"] is None


def test_shortcuts_are_measured(toy_bundle: Path, tmp_path: Path) -> None:
    """The graphs of the draft are rows of their own, and the floor is that of the work that is left."""
    bundle, json_file, plot_file = tmp_path / "tiny", tmp_path / "bench.json", tmp_path / "bench.png"
    model = write_bundle(bundle, tiny=True).model
    shortcuts = ["--guidance-scales", 2, "--draft", toy_bundle, "--draft-scales", 1, "--decoder", "tiny"]
    result = bench("--bundle", bundle, *shortcuts, "--runs", 1, "--json", json_file, "--plot", plot_file)
    assert result.exit_code == 0, result.output
    assert "draft transformer" in result.output
    report = json.loads(json_file.read_text())
    assert report["settings"]["guidance_scales"] == 2
    assert (report["settings"]["draft"], report["settings"]["draft_scales"]) == (str(toy_bundle), 1)
    stages = [(stage["graph"], stage["scale"]) for stage in report["batches"][0]["stages"]]
    steps = [(graph, k) for k in range(len(SIDES)) for graph in ("transformer", "bridge")]
    drafted = [("draft condition", None), ("draft transformer", 0), ("draft bridge", 0)]
    assert stages == [*drafted, ("condition", None), *steps, ("decoder_tiny", None)]
    assert "toy fp32, 1 scale(s)" in result.output
    assert (report["bundle"]["directory"], report["draft"]["directory"]) == (str(bundle), str(toy_bundle))
    floor = report["floor"]
    assert floor["transformer_flop"] == transformer_flop(model, 2) + transformer_flop(model, 2, 1)
    assert floor["decoder_flop"] == tiny_decoder_flop(model) != decoder_flop(model)
    flop = floor["transformer_flop"] + floor["decoder_flop"]
    assert floor["seconds_per_picture"] == flop / floor["flop_per_second"]


def test_every_graph_has_a_segment_of_its_bar(toy_bundle: Path, tmp_path: Path) -> None:
    """Also the draft's and the tiny decoder."""
    write_bundle(tmp_path / "tiny", tiny=True)
    fitted = {"guidance_scales": 2, "decoder": "tiny", "draft": str(toy_bundle), "draft_scales": 1}
    settings = Settings("auto", 1, (1,), 1, "0", 0, 4.0, 5, 0.9, False, None, **fitted)  # type: ignore[arg-type]
    report = benchmark(tmp_path / "tiny", settings)
    (bar,) = _bars(report)
    assert sum(height for height, *_ in bar.segments) == pytest.approx(bar.whole, rel=1e-6)
    named = [text for *_, text in bar.segments]
    assert {"decoder_tiny", "draft transformer 0", "outside"} <= set(named)


def test_plot_is_a_picture(toy_bundle: Path, tmp_path: Path) -> None:
    plot = tmp_path / "bench.png"
    assert bench("--bundle", toy_bundle, "--top-k", 5, "--runs", 1, "--plot", plot).exit_code == 0
    picture = Image.open(plot)
    assert picture.format == "PNG"
    assert picture.width > 600
    assert picture.height > 600
    colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colours) > 20
    assert 10_000 < plot.stat().st_size < 500_000


def test_schema_names_every_key(toy_bundle: Path, tmp_path: Path) -> None:
    jetson = Jetson.find(write_jetson(tmp_path))
    settings = Settings("auto", None, (1,), 1, "0", 0, 4.0, 5, 0.95, True, None)
    report = benchmark(toy_bundle, settings, jetson=jetson)
    text = SCHEMA.read_text()
    missing = [key for key in _keys(report) if f"`{key}`" not in text]
    assert not missing


def _keys(value: object) -> set[str]:
    """Return the names of all fields, also those of nested dataclasses."""
    if isinstance(value, tuple):
        return set().union(*map(_keys, value))
    fields = getattr(value, "__dataclass_fields__", {})
    return set(fields).union(*(_keys(getattr(value, name)) for name in fields))


def test_energy_on_a_jetson(toy_bundle: Path, tmp_path: Path) -> None:
    settings = Settings("auto", None, (2,), 3, "0", 0, 4.0, 5, 0.95, False, None)
    report = benchmark(toy_bundle, settings, jetson=Jetson.find(write_jetson(tmp_path)))
    energy = report.batches[0].energy
    assert energy
    assert energy.board == "VDD_IN"
    assert energy.joules_per_picture["VDD_IN"] >= 6 * report.batches[0].seconds.min / 2  # 6 W, two pictures
    assert report.load.hashing is None
    console = Console(width=100, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    print_report(report, console)
    text = console.export_text()
    assert "NVIDIA Jetson Orin Nano Developer Kit, 7W, cpu 1510 MHz, gpu 625 MHz" in text.replace("\n", " ")
    assert "VDD_IN 0." in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batches", "1,zero"], 2, "--batches: expected at most 64 numbers"),
        (["--batches", "0"], 2, "--batches: expected at most 64 numbers"),
        (["--runs", "0"], 2, "--runs"),
        (["--compare", "tensorflow"], 2, "'tensorflow' is not"),
        (["--var-checkpoint", "a.pth"], 2, "need --compare"),
        (["--label", "77"], 1, "label: expected 0 to 5"),
        (["--top-k", "65"], 1, "top_k: expected"),
        (["--json", "bench.txt"], 1, "ends in .json"),
        (["--json", "missing/bench.json"], 1, "there is no folder"),
        (["--plot", "bench.jpg"], 1, "ends in .png"),
        (["--bundle", "missing"], 1, "not a bundle"),
        (["--guidance-scales", "4"], 1, "guidance_scales: expected 1 to 3, found 4"),
        (["--draft-scales", "1"], 2, "Expected both of '--draft' and '--draft-scales'"),
        (["--compare", "cpp", "--guidance-scales", "2"], 2, "--compare draws without shortcuts"),
        (["--compare", "pytorch"], 1, "does not say what the weights were made of"),
    ],
)
def test_mistakes(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench("--bundle", toy_bundle, "--top-k", 5, *arguments)
    assert result.exit_code == code
    assert message in result.output
    if code == 1:
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "library", "extra"),
    [("--plot", "bench.png", "matplotlib", "bench"), ("--compare", "pytorch", "torch", "export")],
)
def test_missing_library_is_said_before_the_work(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    library: str,
    extra: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runtime.optional.find_spec", lambda name: None)
    result = bench("--bundle", toy_bundle, option, value)
    assert result.exit_code == 1
    assert f"needs {library}, which is not installed; pip install 'var-edge[{extra}]'" in result.output
    assert result.output.count("\n") == 1


def test_help_waits_for_no_library() -> None:
    code = "import sys, runtime.bench.__main__ as b; b.main(['--help'], standalone_mode=False); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--compare" in output
    assert not {"numpy", "onnxruntime", "torch", "matplotlib", "rich"} & set(output.splitlines()[-1].split())


def test_without_comparison_no_torch_is_loaded(toy_bundle: Path) -> None:
    arguments = ["--bundle", str(toy_bundle), "--top-k", "5", "--runs", "1"]
    code = (
        "import sys, runtime.bench.__main__ as b, runtime.bench.benchmark as c; c.gemm_rate = lambda threads: 1e9;"
        f"b.main({arguments}, standalone_mode=False); print(*sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "onnx", "matplotlib", "export"} & set(output.splitlines()[-1].split())
