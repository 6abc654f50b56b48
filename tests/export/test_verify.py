"""Verification passes sound bundles, and names the stage and the node that is damaged in others, by numbers alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from safetensors.numpy import load_file

from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights
from export.verify.bisect import Finding
from export.verify.html import write
from export.verify.metrics import ssim
from export.verify.report import Report
from export.verify.run import verify
from runtime.bundle.manifest import WEIGHTS, File, Manifest
from runtime.errors import BundleError, SettingsError
from tests.conftest import DATA


@pytest.fixture(scope="module")
def folder(
    demo_bundle: Path,
    fp16_demo_bundle: Path,
    int8_bundles: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The bundles that make onnx and make calibrate write to build/var_demo, without int8-cpu."""
    out = tmp_path_factory.mktemp("build") / "var_demo"
    for name, bundle in (("fp32", demo_bundle), ("fp16", fp16_demo_bundle), ("int8", int8_bundles["trt"])):
        shutil.copytree(bundle, out / name)
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return verify([folder])


def test_all_precisions_pass_and_a_missing_one_is_absent(report: Report) -> None:
    assert report.passed
    assert {entry.artifact.name: entry.status for entry in report.entries} == {
        "fp32": "passed",
        "fp16": "passed",
        "int8": "passed",
        "int8-cpu": "absent",
    }
    assert report.summary == "3 passed, 1 absent"
    scales = range(len(report.reference.recordings[0].tokens))
    for entry in report.entries[:3]:
        stages = {(row.stage, row.scale) for row in entry.rows}
        for stage in ("transformer", "keys and values", "bridge", "static step for 1"):
            assert {(stage, k) for k in scales} <= stages
        assert {("condition", None), ("decoder", None), ("encoder", None), ("generation", None)} <= stages


def test_precisions_differ_as_they_should(report: Report) -> None:
    """Simulated FP16 differs from FP32: if it did not, nothing would be rounded."""
    last = [
        next(row for row in reversed(entry.rows) if row.stage == "transformer").metrics["relative"]
        for entry in report.entries[:3]
    ]
    assert last[0] < 1e-5 < last[1] / 10 < last[2] / 10


def test_without_pytorch_against_an_fp32_bundle(folder: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
from export.verify.__main__ import main
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, str(folder / "fp16"), "--against", str(folder / "fp32"), "--pictures", "2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "against onnxruntime" in result.stdout
    assert "transformer, scale 5" in result.stdout


# The kinds of damage: bundle, damage, the stage that the report must name, and the finding of --bisect.
def one_weight(bundle: Path) -> None:
    _change_tensor(bundle, "blocks.2.ffn.fc1.weight", lambda tensor: tensor[7:8, 11:12].__iadd__(2))


def activation_scale(bundle: Path) -> None:
    _change_tensor(bundle, "activation_scales_01", lambda tensor: tensor[3, :1].__imul__(8))


def transposed_axis(bundle: Path) -> None:
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    node = [node for node in model.graph.node if node.op_type == "Transpose"][-1]
    assert list(node.attribute[0].ints) == [0, 2, 3, 1]
    node.attribute[0].ints[:] = [0, 3, 2, 1]  # the image lies on its side
    onnx.save_model(model, bundle / "decoder.onnx")


def phi_index(bundle: Path) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["scales"][3]["phi"] ^= 1
    path.write_text(json.dumps(document))


def cache_offset(bundle: Path) -> None:
    """Block 1 reads its keys rotated by one row, the first row last: the result differs from scale 2 on."""
    model = onnx.load(bundle / "transformer.onnx", load_external_data=False)
    graph = model.graph
    index, node = next(
        (i, node) for i, node in enumerate(graph.node) if "past_k_01" in node.input and node.op_type == "Concat"
    )
    for name, values in (("row_0", [0]), ("row_1", [1]), ("row_end", [1 << 30])):
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [1], values))
    node.input[list(node.input).index("past_k_01")] = "rolled"
    for new in (
        helper.make_node("Concat", ["later_rows", "first_row"], ["rolled"], axis=0),
        helper.make_node("Slice", ["past_k_01", "row_0", "row_1", "row_0"], ["first_row"]),
        helper.make_node("Slice", ["past_k_01", "row_1", "row_end", "row_0"], ["later_rows"]),
    ):
        graph.node.insert(index, new)
    onnx.save_model(model, bundle / "transformer.onnx")


def unkept_tokens(bundle: Path) -> None:
    """Every token that is not kept is 0: teacher forcing hides it, free generation shows it."""
    model = onnx.load(bundle / "bridge.onnx", load_external_data=False)
    (index, where) = next((i, node) for i, node in enumerate(model.graph.node) if "tokens" in node.output)
    drawn = list(where.input).index("drawn")
    where.input[drawn] = "nothing"
    model.graph.node.insert(index, helper.make_node("Sub", ["drawn", "drawn"], ["nothing"]))
    onnx.save_model(model, bundle / "bridge.onnx")


def one_class(bundle: Path) -> None:
    """Damage the embedding of one class only: that of the third image's label."""
    _change_tensor(bundle, "class_emb.weight", lambda tensor: tensor[7].__iadd__(3))


def start_position(bundle: Path) -> None:
    _change_tensor(bundle, "pos_1LC.unsqueeze", lambda tensor: tensor.__iadd__(0.5))


def overflow(bundle: Path) -> None:
    _change_tensor(bundle, "head.bias", lambda tensor: tensor[5:6].__iadd__(np.inf))


def static_step(bundle: Path) -> None:
    model = onnx.load(bundle / "transformer_b1_03.onnx", load_external_data=False)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.attribute[0].i = 1
    onnx.save_model(model, bundle / "transformer_b1_03.onnx")


def _change_tensor(bundle: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    """Change a tensor in place, so that nothing else in the file moves."""
    path = bundle / WEIGHTS
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    name = next(stored for stored in header if stored.startswith(name))  # "….weight.transposed"
    start, _ = header[name]["data_offsets"]
    tensor = load_file(path)[name].copy()
    change(tensor)
    with path.open("r+b") as file:
        file.seek(8 + length + start)
        file.write(tensor.tobytes())


def mend_hashes(bundle: Path) -> None:
    """Correct the hashes, so that only numbers can show the damage."""
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"] = {name: asdict(File.of(bundle / name)) for name in document["files"]}
    (bundle / "manifest.json").write_text(json.dumps(document))


CASES = {
    "one weight": ("demo", one_weight, "transformer, scale 0", r"MatMul .*\(blocks\.2\.ffn\.fc1\.weight"),
    "activation scale": ("cpu", activation_scale, "keys and values, scale 3", r"MatMul .*\(blocks\.1\.attn\.mat_qkv\."),
    "transposed axis": ("demo", transposed_axis, "decoder", r"Transpose node_permute"),
    "phi index": ("demo", phi_index, "bridge, scale 3", "input phi"),
    "cache offset": ("demo", cache_offset, "transformer, scale 2", r"Concat "),
    "unkept tokens": ("demo", unkept_tokens, "bridge, scale 0", r"Where "),
    "one class": ("demo", one_class, "condition", r"Gather .*\(class_emb\.weight"),
    "start position": ("demo", start_position, "condition", r"Add "),
    "overflow": ("demo", overflow, "transformer, scale 0", r"Add .*\(head\.bias"),
    "half precision": ("fp16", one_weight, "transformer, scale 1", r"MatMul .*\(blocks\.2\.ffn\.fc1\.weight"),
    "static step": ("demo", static_step, "static step for 1, scale 3", r"Softmax "),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_and_named(
    case: str, demo_bundle: Path, fp16_demo_bundle: Path, int8_bundles: dict[str, Path], tmp_path: Path
) -> None:
    which, damage, stage, place = CASES[case]
    bundle = tmp_path / "damaged"
    shutil.copytree({"demo": demo_bundle, "fp16": fp16_demo_bundle, **int8_bundles}[which], bundle)
    damage(bundle)
    mend_hashes(bundle)
    result = verify([bundle], against=demo_bundle, with_bisect=True)
    (entry,) = result.entries
    assert not result.passed
    assert entry.failed[0].name == stage
    assert isinstance(entry.finding, Finding), entry.finding
    assert re.match(place, entry.finding.place), entry.finding


def test_damage_is_found_against_pytorch_too(demo_bundle: Path, tmp_path: Path) -> None:
    """Then --bisect compares with a new export."""
    bundle = tmp_path / "damaged"
    shutil.copytree(demo_bundle, bundle)
    phi_index(bundle)
    command = [sys.executable, "-m", "export.verify", str(bundle), "--bisect", "--report", str(tmp_path / "report")]
    result = subprocess.run([*command, "--pictures", "1"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "first out of tolerance: bridge, scale 3" in result.stdout
    assert "bisected: bridge, scale 3: input phi" in result.stdout
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert not document["passed"]
    assert document["artifacts"][0]["bisected"]["place"] == "input phi"
    assert sorted(os.listdir(tmp_path)) == ["damaged", "report"]  # no scratch left


def test_what_is_missing_is_absent_and_no_pass(folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(folder / "fp32", bundle)
    document = json.loads((bundle / "manifest.json").read_text())
    for name in ("encoder", "transformer_b1_02"):
        del document["graphs"][name]
    (bundle / "manifest.json").write_text(json.dumps(document))
    (entry,) = verify([bundle], against=folder / "fp32", pictures=1).entries
    absent = [row.name for row in entry.rows if row.verdict == "absent"]
    assert absent == ["encoder", "smooth generation", "static step for 1, scale 2"]
    assert entry.status == "passed"


@pytest.mark.slow
def test_steps_of_every_batch_size(tmp_path: Path) -> None:
    recipe = Recipe.load(str(DATA / "tiny.toml"))
    sound, damaged, without = (tmp_path / name for name in ("sound", "damaged", "without"))
    export_bundle(recipe, formula_weights(recipe, 0), sound, batches=(1, 3))
    shutil.copytree(sound, damaged)
    step = damaged / "transformer_b3_01.onnx"
    model = onnx.load(step, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Softmax").attribute[0].i = 1
    onnx.save_model(model, step)
    mend_hashes(damaged)
    shutil.copytree(sound, without)
    document = json.loads((without / "manifest.json").read_text())
    document["graphs"] = {k: v for k, v in document["graphs"].items() if not k.startswith("transformer_")}
    (without / "manifest.json").write_text(json.dumps(document))

    entries = verify([damaged, without], against=sound, pictures=2, with_bisect=True).entries
    assert entries[0].failed[0].name == "static step for 3, scale 1"
    assert isinstance(entries[0].finding, Finding)
    assert entries[0].finding.place.startswith("Softmax ")
    assert not [row for row in entries[0].failed if row.stage != "static step for 3"]
    assert [row.name for row in entries[1].rows if row.stage.startswith("static step")] == ["static step for 1"]
    assert entries[1].status == "passed"


def test_the_reference_does_not_pass_itself(folder: Path) -> None:
    report = verify([folder / "fp32", folder / "fp32"], against=folder / "fp32", pictures=1)
    assert [entry.status for entry in report.entries] == ["reference"]
    assert not report.passed


def test_report_in_a_browser(report: Report, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to look at report.html with: apt-get install chromium")
    from PIL import Image

    write(report, tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    picture = tmp_path / "phone.png"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=500,2000"]
    page = (tmp_path / "report" / "report.html").as_uri()
    subprocess.run([browser, *options, f"--screenshot={picture}", page], check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2000, 500, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # images were drawn, not alt texts
    for colour in ((47, 129, 247), (217, 115, 13), (45, 164, 78)):  # a line for each precision
        assert (np.abs(pixels.astype(int) - colour).max(-1) < 8).sum() > 50


def test_json_has_every_number(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [artifact["status"] for artifact in document["artifacts"]] == ["passed"] * 3 + ["absent"]
    row = next(row for row in document["artifacts"][1]["rows"] if row["stage"] == "transformer")
    assert row["metrics"].keys() == {"max", "mean", "relative", "cosine", "top1", "top5", "kl"}
    assert document["tolerances"]["fp16"]["transformer"]["kl"] > row["metrics"]["kl"] > 0


def test_engines_that_cannot_run_here_are_no_pass(folder: Path, tmp_path: Path) -> None:
    from runtime.backends.cuda import gpu

    if gpu() is not None:
        pytest.skip("there is a GPU here: engines would run")
    engines = folder / "fp16" / "engines" / "somewhere"
    shutil.copytree(folder / "fp16", engines, ignore=shutil.ignore_patterns("engines"))
    (engines / "engine.json").write_text("{}")
    try:
        (bundle, built) = verify([folder / "fp16"], against=folder / "fp32", pictures=1).entries
        alone = verify([engines], against=folder / "fp32", pictures=1)
    finally:
        shutil.rmtree(folder / "fp16" / "engines")
    assert (bundle.status, built.status) == ("passed", "not run")
    assert "need an NVIDIA GPU" in str(built.reason)
    assert not alone.passed


def test_unfinished_engines(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "fp32", tmp_path / "fp32")
    (tmp_path / "fp32" / "engines" / "half").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"half: no engine\.json, so its engines are incomplete; run make engine"):
        verify([tmp_path / "fp32"])


def refused(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "export.verify", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    return line


def test_bundles_of_different_models(folder: Path, tiny_bundle: Path, other_tiny_bundle: Path) -> None:
    with pytest.raises(SettingsError, match="has other sizes than"):
        verify([folder / "fp32", tiny_bundle])
    with pytest.raises(SettingsError, match=r"--against .*: expected the model and weights of .*fp32"):
        verify([folder / "fp32"], against=tiny_bundle)
    with pytest.raises(SettingsError, match="made from other weights than"):
        verify([tiny_bundle, other_tiny_bundle])
    with pytest.raises(SettingsError, match="expected an FP32 bundle, found fp16"):
        verify([folder / "fp16"], against=folder / "fp16")


def test_a_checkpoint_that_is_gone_or_another(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    weights = next(Path("export/recipes/demo").glob("var_demo*"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    assert "--var-checkpoint: no file gone.pth" in refused(folder / "fp32", "--var-checkpoint", "gone.pth")
    assert "not what the bundle was made of" in refused(folder / "fp32", "--var-checkpoint", other)


def test_partial_directories(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "build")
    (tmp_path / "build" / "fp16" / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"decoder\.onnx: missing; copy the whole bundle again"):
        verify([tmp_path / "build"])
    (tmp_path / "build" / "fp16" / "manifest.json").unlink()
    with pytest.raises(BundleError, match="so the bundle is incomplete; make it again"):
        verify([tmp_path / "build"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="neither a bundle nor a folder of bundles"):
        verify([tmp_path / "empty"])
    with pytest.raises(SettingsError, match="no such directory"):
        verify([tmp_path / "nowhere"])


def test_a_report_directory_of_something_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    (tmp_path / "report.json").write_text("{}")
    assert "expected a new or empty folder or a report" in refused(folder / "fp32", "--report", tmp_path)
    assert "cannot be written" in refused(folder / "fp32", "--report", tmp_path / "holiday.jpg" / "report")


def test_smooth_sampling_is_verified_where_its_graph_is(
    demo_bundle: Path, smooth_demo_bundle: Path, tmp_path: Path
) -> None:
    smooth, damaged = tmp_path / "smooth", tmp_path / "damaged"
    shutil.copytree(smooth_demo_bundle, smooth)
    shutil.copytree(smooth_demo_bundle, damaged)
    model = onnx.load(damaged / "bridge_smooth.onnx", load_external_data=False)
    for node in model.graph.node:
        node.input[:] = ["silence" if name == "noise" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Sub", ["noise", "noise"], ["silence"]))
    onnx.save_model(model, damaged / "bridge_smooth.onnx")
    mend_hashes(damaged)

    without, sound, wrong = verify([demo_bundle, smooth, damaged], pictures=2).entries
    assert [entry.status for entry in (without, sound, wrong)] == ["passed", "passed", "FAILED"]
    assert [row.remark for row in without.rows if row.stage.startswith("smooth")] == ["absent"]
    assert {("smooth bridge", k) for k in range(len(Manifest.load(smooth).scales))} < {
        (row.stage, row.scale) for row in sound.rows
    }
    assert wrong.failed[0].name == "smooth bridge, scale 0"
    (entry,) = verify([damaged], against=smooth, pictures=1, with_bisect=True).entries
    assert isinstance(entry.finding, Finding)
    assert entry.finding.place.startswith("Transpose ")  # the first that reads the noise
    (entry,) = verify([damaged], against=demo_bundle, pictures=1).entries
    (row,) = (row for row in entry.rows if row.stage.startswith("smooth"))
    assert row.verdict == "absent"
    assert "the reference has none" in row.remark


def test_ssim_knows_equal_noisy_and_unrelated_pictures() -> None:
    random = np.random.default_rng(0)
    rows = np.linspace(0, 255, 64)[:, None, None]
    picture = np.broadcast_to(rows, (64, 64, 3)).astype(np.uint8)
    noisy = (picture + random.normal(0, 10, picture.shape)).clip(0, 255).astype(np.uint8)
    noise = random.integers(0, 256, picture.shape, np.uint8)
    assert ssim(picture, picture) == 1
    assert 0.2 < ssim(picture, noisy) < 0.9
    assert abs(ssim(picture, noise)) < 0.1


def _documented_lines() -> list[str]:
    text = Path("docs/verify.md").read_text().partition("## Continue with Polygraphy")[2]
    return [line for line in text.replace("\\\n", "").splitlines() if line.startswith("polygraphy ")]


@pytest.mark.parametrize("target", ["condition", "transformer", "bridge", "decoder", "encoder"])
def test_documented_polygraphy_lines_run(target: str, folder: Path, tmp_path: Path) -> None:
    lines = [line for line in _documented_lines() if f"/{target}" in line]
    assert lines
    for line in lines:
        arguments = line.replace("build/var_demo", str(folder)).split()[1:]
        command = [sys.executable, "-c", "import polygraphy.tools as tools; raise SystemExit(tools.main())", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
