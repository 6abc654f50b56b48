"""What export.fits computes is what was measured: memory of the CPU pipeline, scratch memory of real engines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from export import sizes
from export.checkpoint.recipe import Recipe
from export.fits import BACKENDS, candidates, main, page, recommended, shipped
from export.footprint import GPU_WORKSPACE, engine_code, engine_scratch, on_cpu, on_tensorrt, wired
from export.sizes import FP16, FP32, INT8, INT8_CPU, INT8_MIXED, Kind
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle.engine_record import profiles
from runtime.bundle.manifest import Manifest, Model
from runtime.pipeline import Pipeline
from runtime.progress import silent

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
GB = 10**9


def model(name: str) -> Model:
    return Recipe.load(name).model


# Bytes that were measured; docs/memory.md has the commands.
PEAKS = [
    ("var_demo", FP32, 1, 165.1e6),
    ("var_demo", FP32, 8, 559.3e6),
    ("var_demo", INT8_CPU, 1, 138.4e6),
    ("var_demo", INT8_CPU, 8, 462.6e6),
    ("var_d16", FP32, 1, 2.209e9),
    ("var_d16", FP32, 4, 3.274e9),
    ("var_d16", INT8_CPU, 1, 0.992e9),
    ("var_d16", INT8_CPU, 4, 1.951e9),
    ("var_d30", FP32, 1, 9.3e9),
    ("var_d36", FP32, 1, 15.8e9),
]
SCRATCH = [  # "Total Activation Memory" of the largest profile, from the builder's log
    ("var_demo", FP32, 1, {"transformer": 17301504, "decoder": 11272192}),
    ("var_demo", INT8, 8, {"transformer": 49299456}),
    ("var_d16", INT8, 1, {"transformer": 23625728, "decoder": 71565312}),
    ("var_d16", INT8_MIXED, 1, {"decoder": 128581632}),
    ("var_d16", FP32, 1, {"transformer": 59965440}),
    ("var_d16", FP16, 1, {"transformer": 21823488}),
    ("var_d16", FP16, 4, {"transformer": 60293120, "decoder": 71565312}),
]


@pytest.mark.parametrize(("name", "kind", "batch", "measured"), PEAKS)
def test_peaks_on_the_cpu_are_those_that_were_measured(name: str, kind: Kind, batch: int, measured: float) -> None:
    assert on_cpu(model(name), kind, batch).total == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(("name", "kind", "batch", "measured"), SCRATCH)
def test_scratch_memory_of_engines_is_that_of_the_builder(
    name: str, kind: Kind, batch: int, measured: dict[str, int]
) -> None:
    scratch, tolerance = engine_scratch(model(name), kind, batch), 0.11 if name == "var_demo" else 0.045
    for graph, found in measured.items():
        assert scratch[graph] + GPU_WORKSPACE == pytest.approx(found, rel=tolerance), graph


def test_arrays_are_those_of_a_real_pipeline(demo_bundle: Path) -> None:
    with Pipeline(demo_bundle, "onnxruntime") as pipeline:
        pipeline.generate([0, 1], 0, batch=2)
        backend = pipeline.backend
        assert isinstance(backend, OnnxRuntimeBackend)
        wiring = backend._begun.wiring
        last = wiring.steps[-1][0].tensors
        cache = sum(array.nbytes for name, array in last.items() if name.startswith(("past_", "new_")))
        f_hat, x = wiring.f_hat_after(0), wiring.steps[-1][0].inputs["x"]
        modulation = wiring.condition.outputs["modulation"].nbytes + wiring.condition.outputs["head_modulation"].nbytes
        blocks = wiring.settings._host.nbytes + wiring.results._host.nbytes
        others = wiring.logits.nbytes + 2 * f_hat.nbytes + x.nbytes + modulation + blocks
    found = wired(pipeline.manifest.model, FP32, 2)
    assert (found.cache, found.host) == (cache, blocks)
    assert found.others == others + sizes.resizes(pipeline.manifest.model)


PEAK = """
import sys
from runtime.memory import memory
from runtime.pipeline import Pipeline
pipeline = Pipeline(sys.argv[1], "onnxruntime", verify=False)
pipeline.generate([0] * int(sys.argv[2]), 0, batch=int(sys.argv[2]))
print(memory().peak)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_real_process_takes_the_memory_that_was_computed(demo_bundle: Path) -> None:
    """What more images take is held tightly. The process itself differs from one Python to the next."""
    sizes_of = {batch: _peak(demo_bundle, batch) for batch in (1, 16)}
    computed = {batch: on_cpu(model("var_demo"), FP32, batch) for batch in (1, 16)}
    growth = sizes_of[16] - sizes_of[1]
    assert computed[16].total - computed[1].total == pytest.approx(growth, rel=0.05)
    assert computed[1].total == pytest.approx(sizes_of[1], rel=0.25)


def _peak(bundle: Path, batch: int) -> int:
    command = [sys.executable, "-c", PEAK, str(bundle), str(batch)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return int(result.stdout)


def test_real_engines_have_the_weights_and_the_scratch_memory_that_were_computed(fp16_demo_bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no package for this machine")
    from export.engine.build import DEFAULTS, find_tensorrt, target
    from export.engine.builder import Builder

    flavour, trt = find_tensorrt("tensorrt-rtx")
    builder = Builder(trt, target(trt, flavour, ("8.6",), DEFAULTS), DEFAULTS, None)
    manifest = Manifest.load(fp16_demo_bundle)
    scratch, weights = engine_scratch(manifest.model, FP16, 1), sizes.graph_weights(manifest.model, FP16)
    for graph, tolerance in (("transformer", 0.045), ("decoder", 0.08)):  # its maps differ most where they are small
        builder.build(fp16_demo_bundle / f"{graph}.onnx", profiles(graph, manifest, (1,), len(manifest.scales)), silent)
        log = "\n".join(text for _, text in builder.log.lines)
        found = max(int(size) for size in re.findall(r"Total Activation Memory: (\d+) bytes", log))
        assert scratch[graph] + GPU_WORKSPACE == pytest.approx(found, rel=tolerance), graph
        (found,) = map(int, re.findall(r"Total Weights Memory: (\d+) bytes", log))
        assert weights[graph] == pytest.approx(found, rel=0.02), graph


def test_a_batch_grows_the_cache_and_not_the_weights() -> None:
    one_model = model("var_d16")
    for footprint, kind in ((on_cpu, FP32), (on_tensorrt, FP16)):
        one, eight = (footprint(one_model, kind, batch) for batch in (1, 8))
        assert (eight.weights, eight.cache) == (one.weights, 8 * one.cache)
        assert one.scratch < eight.scratch < 8 * one.scratch
        if footprint is on_cpu:
            assert eight.host == one.host
        else:  # the kernels of the profiles for 1 and for 8
            code = [engine_code(one_model, kind, batch) for batch in (1, 8)]
            assert eight.host - one.host == pytest.approx(code[1] - code[0])
            assert code[1] > 1.5 * code[0]


def test_keys_and_values_of_512_pixels_are_those_derived_by_hand() -> None:
    tokens = sum(side**2 for side in (1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
    assert wired(model("var_d36"), FP16, 1).cache == 36 * 2 * 2 * tokens * 2304 * 2  # blocks, k and v, halves, FP16


def test_the_largest_model_in_the_best_precision_that_fits_is_recommended() -> None:
    cpu, gpu = BACKENDS
    models = list(shipped())
    assert {m.name for m in models} == {
        "var_d16",
        "var_d20",
        "var_d24",
        "var_d30",
        "var_d36",
        "var_demo",
        "var_demo_small",
    }
    for backend, free, expected in (
        (cpu, 16 * GB, "var_d36 in FP32"),
        (cpu, 9 * GB, "var_d36 in INT8"),
        (cpu, 5 * GB, "var_d30 in INT8"),
        (cpu, 3 * GB, "var_d24 in INT8"),
        (gpu, 30 * GB, "var_d36 in FP16"),
        (gpu, 6.5 * GB, "var_d30 in INT8"),  # d36 in INT8 would be built with more
        (gpu, 3 * GB, "var_d20 in INT8"),
    ):
        found = candidates(backend, models, 1)
        said = recommended(found, free)
        assert said.startswith(f"**Deploy {expected}**:")
        chosen = next(candidate for candidate in found if candidate.text == expected)
        assert chosen.needed <= free
    assert recommended(candidates(cpu, models, 1), 10**7).startswith(
        "**Nothing fits**, not even var_demo_small in INT8."
    )


def test_what_is_said_tells_drawing_from_building() -> None:
    cpu, gpu = BACKENDS
    models = list(shipped())
    head = "**Deploy var_d30 in INT8**: the largest model that fits, in the best precision that fits."
    assert recommended(candidates(gpu, models, 1), 6.5 * GB).splitlines() == [
        head,
        "Drawing takes 3.21 GB, building its engines 5.47 GB.",
        "var_d30 in FP16 takes 10.10 GB to build, var_d36 in INT8 takes 8.87 GB to build.",
    ]
    assert recommended(candidates(cpu, models, 1), 6.5 * GB).startswith(f"{head}\nDrawing takes 3.23 GB.\n")
    fp16, int8 = candidates(gpu, [model("var_d36")], 1)[:2]
    assert fp16.build > fp16.footprint.total > 6.5 * GB  # it cannot be drawn either, which swap would not mend
    said = recommended([fp16, int8, *candidates(gpu, [model("var_d30")], 1)], 6.5 * GB)
    assert "var_d36 in INT8 takes 8.87 GB to build" in said
    assert recommended([fp16, int8], 9 * GB).endswith("\nvar_d36 in FP16 takes 16.89 GB to build.")
    assert recommended([fp16, *candidates(gpu, [model("var_d30")], 1)], 6.5 * GB).endswith(
        "var_d36 in FP16 takes 7.27 GB to draw."
    )
    assert recommended([int8], 1 * GB) == (
        "**Nothing fits**, not even var_d36 in INT8. Drawing takes 5.01 GB, building its engines 8.87 GB."
    )


def test_a_model_read_twice_is_the_same_model() -> None:
    one, again = (candidates(BACKENDS[0], [model("var_d16")], 1) for _ in range(2))
    said = recommended([one[0], again[1]], 2 * GB)
    assert said.endswith("\nvar_d16 in FP32 takes 2.23 GB to draw.")


def test_a_larger_batch_may_not_fit() -> None:
    one, eight = (candidates(BACKENDS[0], [model("var_d16")], batch)[-1] for batch in (1, 8))
    assert recommended([one], 2 * GB).startswith("**Deploy var_d16 in INT8**:")
    assert recommended([eight], 2 * GB).startswith("**Nothing fits**")


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("8 GiB", 8 << 30), ("7.4GiB", 7945689498), ("512MB", 512 * 10**6)]
)
def test_sizes_have_a_unit(text: str, size: int) -> None:
    result = CliRunner().invoke(main, ["--memory", text, "--system", "1MB", "--model", "var_demo"])
    assert result.exit_code == 0
    assert result.stdout == page([model("var_demo")], size, 10**6, 1)


@pytest.mark.parametrize(
    "text", ["8", "0", "0GB", "-1GB", "lots", "8gb", "1e9GB", "nan GB", "", "8GB8GB", "٨GB", "9" * 400 + "GB"]
)
def test_other_sizes_are_refused_in_one_line(text: str) -> None:
    command = [sys.executable, "-m", "export.fits", f"--memory={text}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "expected a size above 0 with its unit, such as 8GB (GB is 10^9 bytes) or 8GiB" in result.stderr


def test_more_for_the_system_than_there_is_is_refused() -> None:
    result = CliRunner().invoke(main, ["--memory", "1GB"])
    assert result.exit_code == 1
    assert "--system: expected less than the 1.00 GB of --memory, found 1.50 GB" in result.stderr


def test_nothing_may_stay_free_for_the_system() -> None:
    result = CliRunner().invoke(main, ["--memory", "1GB", "--system", "0GB", "--model", "var_demo"])
    assert (result.exit_code, result.stdout) == (0, page([model("var_demo")], 10**9, 0, 1))
    result = CliRunner().invoke(main, ["--memory", "1GB", "--system", "-1GB"])
    assert result.exit_code == 2
    assert "expected a size of 0 or more with its unit" in result.stderr


def test_a_model_that_is_named_twice_is_listed_once() -> None:
    result = CliRunner().invoke(main, ["--memory", "8GB", "--model", "var_demo", "--model", "var_demo"])
    assert result.stdout == page([model("var_demo")], 8 * GB, 1_500_000_000, 1)


def test_an_empty_name_of_a_model_is_refused() -> None:
    result = CliRunner().invoke(main, ["--memory", "8GB", "--model", ""])
    assert result.exit_code == 1
    assert result.stderr == "Error: model: expected the name of a recipe or the directory of a bundle, found ''\n"


def test_an_unknown_model_is_refused() -> None:
    result = CliRunner().invoke(main, ["--memory", "8GB", "--model", "var_d17"])
    assert result.exit_code == 1
    assert "no recipe 'var_d17'" in result.stderr


def test_the_page_has_the_tables_that_the_command_prints() -> None:
    result = CliRunner().invoke(main, ["--memory", "8GB"])
    tables = result.stdout.partition("\n\n")[2].replace("## ", "### ")
    assert tables in PAGE.read_text(encoding="utf-8"), "put them there again: python -m export.fits --memory 8GB"
