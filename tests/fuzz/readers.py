"""All Python readers of files, each with good files to damage."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import safetensors.torch
import torch
from PIL import Image

from calibration.record import Calibration
from calibration.sensitivity import Sensitivity
from export.checkpoint.recipe import RECIPES, Recipe
from export.checkpoint.recipe_text import recipe_text
from export.checkpoint.weights import empty_models
from runtime.bundle.classes import ClassNames
from runtime.bundle.engine_record import Built, Engine, EngineRecord
from runtime.bundle.manifest import FILE_NAME, WEIGHTS, Manifest
from runtime.bundle.schema import load
from runtime.bundle.weight_file import read_header
from runtime.cli import Number, batch_sizes
from runtime.evaluation_set import EvaluationSet
from runtime.images import encoded_png, read_picture
from runtime.limits import SEED
from runtime.record import DrawnBy, Record
from tests.runtime.toy import write_bundle


@dataclass(frozen=True)
class Reader:
    """A reader to test: `read` gets a file called `name`, which holds a damaged copy of one of `seeds`."""

    name: str
    seeds: list[bytes]
    read: Callable[[Path], object]


def readers(folder: Path) -> list[Reader]:
    """Return all readers. `folder` must be new; it holds a bundle that some readers need."""
    bundle = folder / "bundle"
    write_bundle(bundle)
    classes = ClassNames.read(bundle / "classes.txt", 5)
    manifest = Manifest.load(bundle)
    weights = (bundle / WEIGHTS).read_bytes()
    record = EngineRecord(
        3,
        Built("tensorrt_rtx", "1.7", ("8.6",), None, False, False),
        manifest.files[WEIGHTS].sha256,
        (1, 8),
        7,
        {},
        {"decoder": Engine("decoder.engine", "0" * 64, ({"f_hat": (1, 2, 3, 3)},), 1.0, 5, {"gemm": 3}, 1, (1,))},
        5,
        "2026",
    )
    layer = {"kl": [0.1], "logit_error": [0.1], "agreement": [0.9], "psnr": None}
    measured = {
        "schema_version": 3,
        "bundle": {},
        "target": "trt",
        "scales": "mixed",
        "method": "mse",
        "calibration": {},
    }
    evaluated = EvaluationSet(
        *(
            1,
            "toy",
            "fp32",
            "0" * 64,
            "onnxruntime",
            6,
            (0, 1),
            5,
            0,
            1.5,
            5,
            0.9,
            3,
            "full",
            "0" * 64,
            "fp32",
            "onnxruntime",
            2,
            8,
            True,
        )
    )

    def of_bundle(path: Path) -> None:
        (bundle / FILE_NAME).write_bytes(path.read_bytes())
        Manifest.load(bundle, verify=False)

    def of_text(path: Path) -> None:
        text = path.read_bytes().decode("latin-1")
        for use in (lambda: classes.listed([text]), lambda: batch_sizes(text), lambda: Number(int, SEED)(text)):
            try:
                use()
            except click.UsageError as error:
                error.format_message()

    return [
        Reader("manifest.json", [(bundle / FILE_NAME).read_bytes()], of_bundle),
        Reader("engine.json", [_json(asdict(record))], lambda path: EngineRecord.load(path.parent)),
        Reader("calibration.json", [_calibration()], Calibration.load),
        Reader(
            "sensitivity.json",
            [_json({**measured, "layers": {"transformer: head": layer}})],
            lambda path: load(Sensitivity, path, 2, "", ""),
        ),
        Reader("settings.json", [_json(asdict(evaluated))], lambda path: load(EvaluationSet, path, 1, "", "")),
        Reader("recipe.toml", [path.read_bytes() for path in RECIPES.glob("*.toml")], lambda p: Recipe.load(str(p))),
        Reader("classes.txt", [(bundle / "classes.txt").read_bytes()], lambda path: ClassNames.read(path, 5)),
        Reader(WEIGHTS, [weights, weights[:4000]], read_header),
        Reader("checkpoint.pth", _checkpoints(), lambda path: recipe_text(path, path)),
        Reader("labels", [b"tench, Tinca tinca", b"0,4", b"golden retriever", b"1,8"], of_text),
        Reader("record", [_record().text.encode()], lambda path: Record.parsed(path.read_bytes(), str(path))),
        Reader("recorded picture", _recorded(), Record.read),
        Reader("picture", _pictures(), lambda path: read_picture(path, 16)),
    ]


def _record() -> Record:
    drawn = DrawnBy("toy", "fp32", "0" * 64, "onnxruntime")
    settings = (8, 4.0, 900, 0.95, False, 10, "full", None)
    return Record(1, "0.1.0", drawn, drawn, 4, (1, 4), ("goldfish", "crane"), ("0", str(2**64 - 1)), *settings)


def _recorded() -> list[bytes]:
    colours, file = np.zeros((4, 4, 3), np.uint8), io.BytesIO()
    Image.fromarray(colours).save(file, "WEBP", exif=_record().exif)
    return [encoded_png(colours, _record()), file.getvalue()]


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _calibration() -> bytes:
    histogram = {"limit": 0.5, "low": -0.25, "high": 0.4, "first": 700, "counts": [1, 2, 3]}
    settings = {"seed": 0, "cfg": 4.0, "top_k": 900, "top_p": 0.95, "smoothing": "adaln", "alpha": 0.5}
    rest = {"smoothing": {"transformer: head": [0.5, 1.5]}, "histograms": {"transformer: head input": [histogram]}}
    return _json({"schema_version": 1, "bundle": {"a": "b"}, "settings": settings, "pictures": [[0, 8]], **rest})


def _checkpoints() -> list[bytes]:
    """Return one checkpoint in every format: a trainer's, with small tensors under all names of the demo model."""
    models = empty_models(Recipe.load("var_demo"))
    var, vae = (
        {name: torch.ones([min(size, 2) for size in tensor.shape]) for name, tensor in model.state_dict().items()}
        for model in models
    )
    trainer = {"var_wo_ddp": var, "vae_local": vae, "var_opt": {"state": {0: torch.zeros(2)}}}
    saved = {"epoch": 3, "trainer": trainer, "args": {"depth": 6, "pn": "1_2_3", "ch": 32, "vqvae": {"v": 8}}}
    found = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(saved, file, _use_new_zipfile_serialization=zipped)
        found.append(file.getvalue())
    return [*found, safetensors.torch.save({**var, **{f"vae.{name}": tensor for name, tensor in vae.items()}})]


def _pictures() -> list[bytes]:
    colours = Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3))
    found = []
    for name, mode in (
        *(("PNG", mode) for mode in ("RGB", "RGBA", "P", "L", "1", "LA", "I;16")),
        *(("TIFF", mode) for mode in ("RGB", "CMYK", "F", "I", "LAB", "YCbCr", "I;16", "PA")),
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *((name, "RGB") for name in ("WEBP", "BMP", "GIF")),
    ):
        file = io.BytesIO()
        try:
            (colours if mode in ("LAB", "PA") else colours.convert("L")).convert(mode).save(file, name)
        except (ValueError, KeyError, OSError):  # a mode that this Pillow cannot write
            continue
        found.append(file.getvalue())
    return found
