"""NaN and infinity end in an error of one line, wherever they occur: users would believe an image with exit code 0."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights, load_models
from export.graphs.simulate import simulate
from export.model.reference import PyTorchBackend
from runtime import NumericError, Pipeline
from runtime.bundle.manifest import WEIGHTS, Manifest
from runtime.generate import main as generate
from runtime.sample_set import main as sample_set
from runtime.sampling import Sampling
from tests.conftest import DATA
from tests.runtime.fake_tensorrt import rewrite_manifest

TINY = Recipe.load(str(DATA / "tiny.toml"))
SETTINGS = {"top_k": 0, "top_p": 0.0}
Overflowing = Callable[[str], Path]


@pytest.fixture
def overflowing(fp16_tiny_bundle: Path, tmp_path: Path) -> Overflowing:
    """A function that makes a bundle that rounds to FP16, with weights so large that products overflow."""

    def make(part: str) -> Path:
        bundle = shutil.copytree(fp16_tiny_bundle, tmp_path / "fp16")
        with (bundle / WEIGHTS).open("rb") as file:  # written in place: the graphs know the offsets
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        (entry,) = (entry for name, entry in header.items() if name.startswith(part))
        assert entry["dtype"] == "F16"
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        values = np.memmap(bundle / WEIGHTS, np.float16, "r+", start, (end - start) // 2)
        values[:] = np.sign(values) * np.float16(60000)
        values.flush()
        rewrite_manifest(bundle, Manifest.load(fp16_tiny_bundle))
        simulate(bundle, tmp_path / "twin")
        return tmp_path / "twin"

    return make


def test_logits(overflowing: Overflowing, tmp_path: Path) -> None:
    bundle = overflowing("blocks.0.ffn.fc2.weight")
    pipeline, image = Pipeline(bundle, "onnxruntime"), np.zeros((8, 8, 3), np.uint8)
    said = (
        "logits of scale 0 hold NaN or infinity: tiny overflows in fp16 simulated; use FP32 or check with make verify"
    )
    for draw in (
        lambda: pipeline.generate([1], **SETTINGS),
        lambda: pipeline.generate([1], **SETTINGS, smooth=True),
        lambda: pipeline.edit(image, (0, 0, 0.5, 0.5), labels=[1], **SETTINGS),
    ):
        with pytest.raises(NumericError, match=f"^{said}$"):
            draw()
    found = Pipeline(bundle, "onnxruntime", finite=False).generate([1], **SETTINGS)  # for tools that look for it
    assert all((tokens == -1).all() for tokens in found.tokens)
    for command, arguments in (
        (generate, ["--label", "1", "--top-k", "0", "--out", str(tmp_path / "picture.png")]),
        (sample_set, ["--per-class", "1", "--top-k", "0", "--out", str(tmp_path / "set")]),
    ):
        result = CliRunner().invoke(command, ["--bundle", str(bundle), *arguments])
        assert result.exit_code == 1
        assert said in result.output
    assert not list(tmp_path.rglob("*.png"))


def test_pixels(overflowing: Overflowing) -> None:
    pipeline = Pipeline(overflowing("decoder.conv_out.weight"), "onnxruntime")
    with pytest.raises(NumericError, match="pixels of the decoder hold NaN or infinity"):
        pipeline.generate([1, 2], **SETTINGS)


def test_features(overflowing: Overflowing) -> None:
    pipeline = Pipeline(overflowing("encoder.conv_out.weight"), "onnxruntime")
    with pytest.raises(NumericError, match="features of the encoder hold NaN or infinity"):
        pipeline.encode(np.full((1, 8, 8, 3), 200, np.uint8))
    pipeline.generate([1], **SETTINGS)  # which needs no encoder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["bridge", "bridge_smooth"])
def test_one_number_of_a_token_is_enough(name: str, value: float, fp16_tiny_bundle: Path) -> None:
    """One NaN in a token's logits is found, as on a GPU: the graphs of FP16 bundles compare in FP32."""
    graph = Manifest.load(fp16_tiny_bundle).graphs[name]
    sizes = {"B": 2, "2B": 4, "L": 4, "L_next": 16}
    feed = {
        spec.name: np.ones([sizes[a] if isinstance(a, str) else a for a in spec.shape], spec.dtype)
        for spec in graph.inputs
    }
    feed["keep"][:] = False
    feed["keep"][1, 2] = True
    for row, column in ((1, 0), (2, 3)):  # of the image with its class, of the other without
        feed["logits"][row, column, 77] = value
    drawn, tokens = ort.InferenceSession(fp16_tiny_bundle / graph.file).run(["drawn", "tokens"], feed)
    assert np.argwhere(drawn == -1).tolist() == [[0, 1], [1, 2]]
    assert np.argwhere(tokens == -1).tolist() == [[0, 1]]
    assert tokens[1, 2] == 1  # kept


def test_the_reference_tells_too() -> None:
    var, vqvae = load_models(TINY, formula_weights(TINY, 0))
    var.head.weight.data[3, 3] = np.inf
    vqvae.decoder.conv_out.bias.data[0] = np.nan
    vqvae.quant_conv.bias.data[0] = np.nan
    backend = PyTorchBackend(var, vqvae)
    backend.begin(np.array([1, 2]), Sampling(top_k=0))
    backend.step(0, np.zeros((2, 1), np.float32))
    assert (backend.drawn(0) == -1).all()
    backend.decode()
    assert not backend.finite().any()
    assert (backend.encode(np.zeros((2, 8, 8, 3), np.uint8)) == -1).all()
