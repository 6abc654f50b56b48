"""What the C++ TensorRT backend launches, keeps and frees, on the stand-in of runtime/cpp/tests/standin."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.bundle.manifest import Manifest
from runtime.pipeline import Pipeline
from tests.cpp.conftest import run
from tests.cpp.dumps import Case, Drawn, assert_equal, drawn_by_cpp, drawn_by_python
from tests.cpp.test_core import BAD_ARGUMENT, OK, OUT_OF_MEMORY, TENSORRT, Live
from tests.cpp.test_parity import check_edit
from tests.runtime.fake_tensorrt import write_engines
from tests.runtime.toy import write_bundle

ONE, EIGHT, NINE = (Case(tuple(range(3, 3 + n)), 11, 3.5, 200, 0.8) for n in (1, 8, 9))
SMOOTH = Case((3,), 5, 3.5, 200, 0.8, 8, True)


@pytest.fixture(scope="module")
def bundle(smooth_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with engines for 1, 2 and 8 pictures at once."""
    copy = tmp_path_factory.mktemp("batches") / "bundle"
    shutil.copytree(smooth_demo_bundle, copy)
    write_engines(copy, (1, 2, 8))
    return copy


def drawn(checked: Path, machine: dict[str, str], bundle: Path, cases: list[Case], out: Path) -> list[Drawn]:
    program = ["env", *(f"{name}={value}" for name, value in machine.items()), checked / "tests" / "dump"]
    return drawn_by_cpp(program, bundle, cases, out)


def test_a_whole_batch_is_one_graph(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path, tmp_path: Path
) -> None:
    """One upload, all stages in order, one download. A batch size that comes back is not recorded again."""
    cases = [ONE, NINE, EIGHT, ONE]
    assert_equal(drawn_by_python(bundle, cases), drawn(checked, machine, bundle, cases, tmp_path / "out"), cases)
    launches, scales = trace("^launch: .*"), len(Manifest.load(bundle).scales)
    assert len(launches) == 1 + 2 + 1 + 1
    for launch in launches:
        names = [name.split()[0] for name in launch.removeprefix("launch: ").split("; ")]
        decoders = names.count("decoder")
        assert decoders in (1, 8)
        stages = ["condition", *["transformer", "bridge"] * scales, *["decoder"] * decoders]
        assert names == ["upload", *stages, "download"]
    assert len(trace("begin capture")) == 2


def test_smooth_sampling_runs_scale_by_scale(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path, tmp_path: Path
) -> None:
    """Its noise is large: that of a scale is uploaded when the scale is drawn."""
    cases = [SMOOTH, ONE, SMOOTH, ONE]
    found, expected = drawn(checked, machine, bundle, cases, tmp_path / "out"), drawn_by_python(bundle, cases)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
    scales = len(Manifest.load(bundle).scales)
    assert len(trace("^launch")) == 2 * (1 + scales + 1) + 2
    assert len(trace("begin capture")) == 1 + scales + 2 + 1


@pytest.fixture(scope="module")
def guided(smooth_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, with engines for 1 and 2 pictures at once and guidance at four of the six scales, or at more."""
    copy = tmp_path_factory.mktemp("guided") / "bundle"
    shutil.copytree(smooth_demo_bundle, copy)
    write_engines(copy, (1, 2), guidance_scales=4)
    return copy


def test_guidance_at_the_first_scales(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], guided: Path, tmp_path: Path
) -> None:
    """Still one graph: the columns with label are copied on the GPU, once what is kept, then logits and x."""
    scales = [4, 5, None]
    cases = [Case((3, 12, 7), 5, 3.5, 200, 0.8, 2, guidance_scales=count) for count in scales]
    assert_equal(drawn_by_python(guided, cases), drawn(checked, machine, guided, cases, tmp_path / "out"), cases)
    depth, count = Manifest.load(guided).model.depth, len(Manifest.load(guided).scales)
    launches = trace("^launch: .*")
    assert len(launches) == 2 * len(scales)  # two pictures, then one
    for launch, guiding in zip(launches, [scales[0]] * 2 + [scales[1]] * 2 + [scales[2]] * 2, strict=True):
        names = [name.split()[0] for name in launch.removeprefix("launch: ").split("; ")]
        steps = []
        for k in range(count):
            without = guiding is not None and k >= guiding
            kept = 2 + 2 * depth if k == guiding else 0
            steps += ["copy"] * (kept + without) + ["transformer"] + ["copy"] * without + ["bridge"]
        assert [name for name in names if name not in ("upload", "condition", "decoder", "download")] == steps
    smooth = [Case((3,), 5, 3.5, 200, 0.8, 8, True, guidance_scales=4)]
    found = drawn(checked, machine, guided, smooth, tmp_path / "smooth")
    np.testing.assert_array_equal(drawn_by_python(guided, smooth)[0].tokens, found[0].tokens)


def test_guidance_that_engines_lack(checked: Path, machine: dict[str, str], bundle: Path, guided: Path) -> None:
    """One line, which names the option of the builder; what they can draw is drawn afterwards."""
    for folder, request, least in ((guided, 3, 4), (bundle, 5, 6)):
        live = Live(checked, folder, backend=TENSORRT, **machine)
        assert live.created == (OK, "")
        status, message = live.ask(f"guided {request}")
        assert status == BAD_ARGUMENT
        assert message.startswith(f"guidance_scales: the engines in {folder}")
        assert f" have guidance at {least} scales or more, not at" in message
        assert message.endswith(f"; build them with python -m export.engine … --guidance-scales {request}")
        assert live.ask(f"guided {least}") == (OK, "")
        live.end()


def test_drafts(checked: Path, machine: dict[str, str], guided: Path, small_demo_bundle: Path, tmp_path: Path) -> None:
    """Engines draft for ONNX Runtime, and ONNX Runtime for engines."""
    cases = [Case((3, 12, 7), 5, 3.5, 200, 0.8, 2, False, 5, scales) for scales in (2, 6)]
    program = ["env", *(f"{name}={value}" for name, value in machine.items()), checked / "tests" / "dump"]
    for refiner, draft in ((guided, small_demo_bundle), (small_demo_bundle, guided)):
        found = drawn_by_cpp(program, refiner, cases, tmp_path / "out", draft=draft)
        assert_equal(drawn_by_python(refiner, cases, draft), found, cases)


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with a tiny decoder, and its engines."""
    bundle = tmp_path_factory.mktemp("imitated") / "bundle"
    write_bundle(bundle, tiny=True)
    write_engines(bundle)
    return bundle


def test_the_tiny_decoder(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], imitated: Path, tmp_path: Path
) -> None:
    """Its picture is one launch, too."""
    cases = [Case((1,), 7, 2.0, 3, 0.5, decoder=which) for which in ("full", "tiny", "full")]
    assert_equal(drawn_by_python(imitated, cases), drawn(checked, machine, imitated, cases, tmp_path / "out"), cases)
    assert ["decoder_tiny" in launch for launch in trace("^launch: .*")] == [False, True, False]


def test_previews_of_the_tiny_decoder(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], imitated: Path, tmp_path: Path
) -> None:
    """Those of Python; the last one is the picture, of the full decoder."""
    run(checked / "examples" / "var_edge_preview", imitated, "4", tmp_path, "9", env={**os.environ, **machine})
    previews: list[np.ndarray] = []
    Pipeline(imitated, "onnxruntime").generate([4], 9, on_scale=lambda view: previews.append(view.preview()[0]))
    for k, image in enumerate(previews):
        with Image.open(tmp_path / f"scale_{k}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)
    decoders = [launch.split()[1] for launch in trace("^launch: decoder(_tiny)? ")]
    assert decoders == ["decoder_tiny"] * (len(previews) - 1) + ["decoder"] * 2  # the last preview, the picture


def test_a_watched_draft_records_the_decoder_of_its_previews(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], imitated: Path
) -> None:
    """The tiny one. Only the last preview of a draft of all scales needs the full one."""
    result = run(checked / "tests" / "features", imitated, "draft_shown", env={**os.environ, **machine})
    assert result.stdout == ""
    tiny, full = ["record decoder_tiny"] * 2, ["record decoder"] * 2
    scales = len(Manifest.load(imitated).scales)
    found = [line.rsplit(maxsplit=1)[0] for line in trace("^(record|launch:) decoder(_tiny)? [0-9]+")]
    of_all = [*full, *["launch: decoder_tiny"] * (scales - 1), "launch: decoder"]
    assert found[-len(of_all) - 1 :] == [*of_all, full[0]]  # the refiner, of which nothing is watched, draws at once
    assert [line for line in found if line.startswith("record")] == [*tiny, *full, *tiny, *full, full[0]]


def test_a_draft_records_its_scales_only(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], guided: Path, tmp_path: Path
) -> None:
    """And no decoder. ONNX Runtime refines."""
    program = ["env", *(f"{name}={value}" for name, value in machine.items()), checked / "tests" / "dump"]
    refiner = tmp_path / "refiner"
    shutil.copytree(guided, refiner, ignore=shutil.ignore_patterns("engines"))
    drawn_by_cpp(program, refiner, [Case((3,), 5, 3.5, 200, 0.8, draft_scales=2)], tmp_path / "out", draft=guided)
    assert len(trace("begin capture")) == 1 + 2


def test_the_newest_kinds_stay_prepared(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], smooth_demo_bundle: Path, tmp_path: Path
) -> None:
    """Three numbers of guided scales, whatever was drawn before."""
    bundle = tmp_path / "bundle"
    shutil.copytree(smooth_demo_bundle, bundle)
    write_engines(bundle, guidance_scales=2)
    live = Live(checked, bundle, backend=TENSORRT, **machine)
    for count, recorded in ((2, 1), (3, 2), (4, 3), (2, 3), (5, 4), (2, 4), (4, 4), (3, 5)):
        assert live.ask(f"guided {count}") == (OK, "")
        assert len(trace("begin capture")) == recorded, count
    live.end()


@pytest.mark.parametrize("feature", ["scales", "batch", "busy", "values", "seeds", "stop_between", "draft_scramble"])
def test_features(
    feature: str, checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path
) -> None:
    """Those that listen between scales draw the same, with a launch for each."""
    result = run(checked / "tests" / "features", bundle, feature, timeout=500, env={**os.environ, **machine})
    assert result.stdout == ""
    by_scale = trace("^launch: upload [0-9]+; transformer")
    assert bool(by_scale) == (feature in ("scales", "busy", "draft_scramble"))


def memory_of(trace: Callable[[str], list[str]]) -> int:
    """Bytes of all GPU memory that was allocated."""
    return sum(int(line.split()[1]) for line in trace("^malloc [0-9]+"))


def test_memory_that_runs_out(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path
) -> None:
    """A large batch frees the small ones and is drawn; where it does not fit at all, a smaller one is drawn again."""

    def asked(*requests: str, memory: int = 1 << 30) -> list[tuple[int, str]]:
        Path(machine["STANDIN_TRACE"]).write_text("")
        live = Live(checked, bundle, **machine, STANDIN_MEMORY=str(memory))
        assert live.created == (OK, "")
        found = [live.ask(request) for request in requests]
        live.end()
        return found

    asked()
    loaded = memory_of(trace)
    asked("generate 1")
    one = memory_of(trace) - loaded
    asked("generate 8")
    eight = memory_of(trace) - loaded
    assert eight > 4 * one

    room = loaded + eight + one // 2  # for either, not for both
    answers = asked("generate 1", "generate 8", "generate 1", "generate 8", memory=room)
    assert answers == [(OK, "")] * 4
    assert len(trace("begin capture")) == 4
    asked("generate 1", "generate 8", "generate 1", "generate 8", memory=room + one)
    assert len(trace("begin capture")) == 2

    room = loaded + eight - one // 2
    for status, message in asked("generate 8", "generate 8", memory=room):
        assert status == OUT_OF_MEMORY
        assert "draw fewer pictures at once" in message
    answers = asked("generate 1", "generate 8", "generate 2", "generate 1", memory=room)
    assert [status for status, _ in answers] == [OK, OUT_OF_MEMORY, OK, OK]


def test_either_model_makes_room_for_the_other(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], guided: Path, tmp_path: Path
) -> None:
    """Memory for the batches of one of them, not of both, contexts included."""
    cases = [Case((3, 4 + i), 5, 3.5, 200, 0.8, 2, draft_scales=2) for i in range(3)]

    def drafted(cases: list[Case], memory: int = 1 << 30) -> list[Drawn]:
        Path(machine["STANDIN_TRACE"]).write_text("")
        variables = machine | {"STANDIN_MEMORY": str(memory)}
        program = ["env", *(f"{name}={value}" for name, value in variables.items()), checked / "tests" / "dump"]
        return drawn_by_cpp(program, guided, cases, tmp_path / "out", draft=guided)

    drafted([replace(cases[0], draft_scales=0)])  # the refiner alone, which needs more than the draft
    found = drafted(cases, memory_of(trace))
    assert len(trace("error: out of memory")) == 2 * len(cases) - 1  # only the first draft finds room
    assert_equal(drawn_by_python(guided, cases, guided), found, cases)


def test_an_image_is_encoded_although_batches_fill_the_memory(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path
) -> None:
    """The encoder is loaded when the first image is edited. Memory may run out at once, or for its context."""

    def asked(*requests: str, memory: int = 1 << 30) -> int:
        Path(machine["STANDIN_TRACE"]).write_text("")
        live = Live(checked, bundle, **machine, STANDIN_MEMORY=str(memory))
        assert live.created == (OK, "")
        assert [live.ask(request) for request in requests] == [(OK, "")] * len(requests)
        live.end()
        return memory_of(trace)

    eight, encoder = asked("generate 8"), asked("encode") - asked()
    for memory in (eight, eight + encoder - 1):
        asked("generate 8", "encode", "generate", memory=memory)
        assert len(trace("error: out of memory")) == 1


def test_an_edit_encodes_although_the_draft_fills_the_memory(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], guided: Path, tmp_path: Path
) -> None:
    """The draft has drawn two pictures before: what it holds for them is freed."""
    box = (0.25, 0.25, 0.75, 0.75)

    def edited(memory: int) -> list[int]:
        Path(machine["STANDIN_TRACE"]).write_text("")
        variables = machine | {"STANDIN_MEMORY": str(memory)}
        check_edit(checked, guided, box, "inpaint", 12, tmp_path, machine=variables, draft=guided)
        return [int(line.split()[1]) for line in trace("^malloc [0-9]+")]

    edited(1 << 30)
    drawn = trace("^(malloc [0-9]+|launch: .*)")
    first = next(i for i, line in enumerate(drawn) if line.startswith("launch"))
    edited(sum(int(line.split()[1]) for line in drawn[:first]))
    assert trace("error: out of memory")


def test_memory_that_runs_out_while_an_engine_is_loaded(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path
) -> None:
    """The engine of smooth sampling, whose scratch memory does not fit beside a large batch: both are tried again."""

    def allocated(*requests: str, memory: int = 1 << 30) -> list[int]:
        Path(machine["STANDIN_TRACE"]).write_text("")
        live = Live(checked, bundle, **machine, STANDIN_MEMORY=str(memory))
        assert live.created == (OK, "")
        for request in requests:
            assert live.ask(request) == (OK, "")
        live.end()
        return [int(line.split()[1]) for line in trace("^malloc [0-9]+")]

    loaded, large = len(allocated()), allocated("generate 8")
    engine, scratch = allocated("smooth")[loaded : loaded + 2]
    allocated("generate 8", "smooth", memory=sum(large) + engine + scratch // 2)


def test_memory_that_runs_out_while_a_batch_is_recorded(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path
) -> None:
    """What was allocated for the batch is freed."""
    live = Live(checked, bundle, **machine, STANDIN_GRAPHS="0")
    assert live.created == (OK, "")
    for _ in range(2):  # contexts of the first attempt stay for the second
        Path(machine["STANDIN_TRACE"]).write_text("")
        status, message = live.ask("generate")
        assert status == OUT_OF_MEMORY
        assert "draw fewer pictures at once" in message
    assert len(trace("^(malloc|pinned) ")) == len(trace("^free")) > 0
    live.end()


def test_memory_that_runs_out_for_another_way_to_draw(checked: Path, machine: dict[str, str], bundle: Path) -> None:
    """The one batch that is held gives its graph up for those of single scales, and these give way again."""
    graphs = 1 + len(Manifest.load(bundle).scales) + 2
    live = Live(checked, bundle, **machine, STANDIN_GRAPHS=str(graphs))
    for request in ("generate", "listen", "generate", "listen"):
        assert live.ask(request) == (OK, "")
    live.end()


def kernels(machine: dict[str, str]) -> list[Path]:
    return sorted((Path(machine["XDG_CACHE_HOME"]) / "var-edge").glob("*"))


def test_kernels_are_compiled_once(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path
) -> None:
    """TensorRT for RTX keeps them in a file for the next process, those of the encoder too."""
    times = []
    for request, graphs in (
        ("generate", ["bridge", "condition", "decoder", "transformer"]),
        ("encode", ["encoder"]),
        ("generate", []),
        ("encode", []),
    ):
        Path(machine["STANDIN_TRACE"]).write_text("")
        live = Live(checked, bundle, **machine)
        assert live.ask(request) == (OK, "")
        live.process.kill()  # a process that does not end in order has written the file too
        live.process.communicate()
        assert sorted(trace("^compile .*")) == [f"compile {name}" for name in graphs]
        assert [path.name for path in kernels(machine)] == ["tensorrt_rtx-1.7.0-sm86.kernels"]
        times.append(kernels(machine)[0].stat().st_mtime_ns)
    assert times[0] < times[1] == times[2] == times[3]


def test_kernels_are_written_when_some_may_be_new(
    checked: Path, machine: dict[str, str], trace: Callable[[str], list[str]], bundle: Path
) -> None:
    """A cache of all kernels is large: it is not even compared with the file when nothing was compiled."""
    live = Live(checked, bundle, **machine)
    for request, times in (("generate", 1), ("listen", 1), ("generate 8", 2), ("generate", 2)):
        assert live.ask(request) == (OK, "")
        assert len(trace("serialize kernels")) == times, request
    live.end()


@pytest.mark.parametrize("caches", ["", "relative"])
def test_where_kernels_are_kept(caches: str, checked: Path, machine: dict[str, str], bundle: Path) -> None:
    """In ~/.cache unless the user names another directory, by an absolute path."""
    home = Path(machine["STANDIN_TRACE"]).parent / "home"
    home.mkdir()
    live = Live(checked, bundle, "env", "-C", str(home), **(machine | {"XDG_CACHE_HOME": caches, "HOME": str(home)}))
    assert live.ask("generate") == (OK, "")
    live.end()
    assert [path.name for path in home.iterdir()] == [".cache"]
    assert (home / ".cache" / "var-edge" / "tensorrt_rtx-1.7.0-sm86.kernels").is_file()


def test_a_kernel_file_that_is_damaged(checked: Path, machine: dict[str, str], bundle: Path) -> None:
    """Kernels are compiled again, and the file is replaced."""
    folder = Path(machine["XDG_CACHE_HOME"]) / "var-edge"
    folder.mkdir(parents=True)
    path = folder / "tensorrt_rtx-1.7.0-sm86.kernels"
    path.write_bytes(b"\0damaged")
    live = Live(checked, bundle, **machine)
    assert live.ask("generate") == (OK, "")
    live.end()
    assert "transformer" in json.loads(path.read_text())
    assert kernels(machine) == [path]


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_kernel_file_that_cannot_be_written(where: str, checked: Path, machine: dict[str, str], bundle: Path) -> None:
    """It is no error: kernels are compiled again the next time."""
    folder = Path(machine["XDG_CACHE_HOME"])
    if where == "file":
        (folder / "var-edge" / "tensorrt_rtx-1.7.0-sm86.kernels").mkdir(parents=True)
    else:
        folder.write_text("a file where the folder should be")
    live = Live(checked, bundle, **machine)
    assert live.created == (OK, "")
    assert live.ask("generate") == (OK, "")
    live.end()
    assert where == "folder" or len(kernels(machine)) == 1  # nothing is left beside it
