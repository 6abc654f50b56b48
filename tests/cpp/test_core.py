"""What the library does to odd bundles, other machines and files that change: a status and one line, never a crash."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime.bundle.manifest import FILE_NAME, WEIGHTS, File
from tests.cpp.conftest import require, run
from tests.runtime.test_processors import QUOTAS, write_quota
from tests.runtime.toy import write_bundle

OK, BAD_ARGUMENT, BAD_BUNDLE, UNSUPPORTED, FAILED, OUT_OF_MEMORY, STOPPED = range(7)
AUTO, ONNXRUNTIME, ONNXRUNTIME_CUDA, ONNXRUNTIME_TENSORRT, TENSORRT = range(5)


class Live:
    """tests/live.c on a bundle: what it says after creating, and to each request."""

    def __init__(
        self,
        release: Path,
        bundle: Path,
        *prefix: str,
        threads: int = 1,
        backend: int = AUTO,
        provider: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, str(release / "tests" / "live"), str(bundle), str(threads), str(backend), *provider],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.created = self._answer()

    def ask(self, request: str) -> tuple[int, str]:
        assert self.process.stdin
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> str:
        """What it said on standard error."""
        _, log = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, log
        return log

    def _answer(self) -> tuple[int, str]:
        assert self.process.stdout
        line = self.process.stdout.readline().rstrip("\n")
        if not line:
            _, log = self.process.communicate()
            raise AssertionError(f"it ended with {self.process.returncode}: {log[-2000:]}")
        status, _, message = line.partition(" ")
        assert message.isprintable() and len(message.encode()) <= 300
        return int(status), message


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("core") / "toy"
    write_bundle(bundle)
    document = json.loads((bundle / FILE_NAME).read_text())
    document["graphs"]["encoder"] = _write_encoder(bundle / "encoder.onnx")
    document["files"]["encoder.onnx"] = vars(File.of(bundle / "encoder.onnx"))
    (bundle / FILE_NAME).write_text(json.dumps(document))
    return bundle


@pytest.fixture
def bundle(toy: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(toy, tmp_path / "bundle"))


def _write_encoder(path: Path) -> dict[str, object]:
    """The tokens of a picture are all 1, or -1 where its first byte is 255, as if its features were not finite."""
    text = """<ir_version: 10, opset_import: ["" : 20]> encoder (uint8[1,6,6,3] image) => (int32[1,14] tokens)
        <int64[2] shape = {1, 14}, int64[1] start = {0}, int64[1] end = {1}, int64[1] flat = {-1}> {
            bytes = Reshape(image, flat)
            first = Slice(bytes, start, end)
            number = Cast<to = 6>(first)
            large = Constant<value = int32[1] {255}>()
            minus = Constant<value = int32[1] {-1}>()
            one = Constant<value = int32[1] {1}>()
            broken = Equal(number, large)
            token = Where(broken, minus, one)
            tokens = Expand(token, shape)
        }"""
    onnx.save(onnx.parser.parse_model(text), path)
    image = {"name": "image", "dtype": "uint8", "shape": [1, 6, 6, 3]}
    return {"file": path.name, "inputs": [image], "outputs": [{"name": "tokens", "dtype": "int32", "shape": [1, 14]}]}


def seal(bundle: Path, *names: str) -> None:
    """The manifest's sizes and hashes of files that were changed: what is left to find is in the files."""
    document = json.loads((bundle / FILE_NAME).read_text())
    document["files"] |= {name: vars(File.of(bundle / name)) for name in names}
    (bundle / FILE_NAME).write_text(json.dumps(document))


def change_graph(bundle: Path, name: str, change: Callable[[onnx.GraphProto], object]) -> None:
    model = onnx.load(bundle / f"{name}.onnx")
    change(model.graph)
    onnx.save(model, bundle / f"{name}.onnx")
    seal(bundle, f"{name}.onnx")


def test_it_draws_and_encodes(release: Path, toy: Path) -> None:
    live = Live(release, toy)
    assert live.created == (OK, "")
    assert live.ask("generate") == (OK, "")
    assert live.ask("encode") == (OK, "")
    assert "GPU not used: this ONNX Runtime has no CUDAExecutionProvider" in live.end()  # AUTO says why


@pytest.mark.parametrize("graph", ["condition", "decoder"])
@pytest.mark.parametrize("kind", ["sequence", "optional"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_graph_of_other_than_tensors(graph: str, kind: str, side: str, release: Path, bundle: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    wanted = helper.make_sequence_type_proto(tensor)
    if kind == "optional":
        wanted = helper.make_optional_type_proto(tensor)

    def change(found: onnx.GraphProto) -> None:
        if side == "input":
            found.input.append(helper.make_value_info("odd", wanted))
        else:
            found.output.append(helper.make_value_info("odd", wanted))
            source = next(value.name for value in found.input if value.type.HasField("tensor_type"))
            node = helper.make_node("SequenceConstruct", [source], ["odd"])
            if kind == "optional":
                node = helper.make_node("Optional", [source], ["odd"])
            elem = next(value.type.tensor_type.elem_type for value in found.input if value.name == source)
            odd = found.output[-1].type
            inner = odd.sequence_type if kind == "sequence" else odd.optional_type
            inner.elem_type.tensor_type.elem_type = elem
            inner.elem_type.tensor_type.ClearField("shape")
            found.node.append(node)

    change_graph(bundle, graph, change)
    status, message = Live(release, bundle).created
    assert status == BAD_BUNDLE
    assert f"{graph}.onnx: odd: expected a tensor" in message


def test_sizes_are_compared_before_memory_is_taken(release: Path, bundle: Path) -> None:
    """By create, not by the first picture: a width that no graph has would take gigabytes."""
    document = json.loads((bundle / FILE_NAME).read_text())
    document["model"] |= {"width": 65536, "vocab_size": 2**20}
    (bundle / FILE_NAME).write_text(json.dumps(document))
    status, message = Live(release, bundle).created
    assert (status, "the graph and the runtime differ in name, dtype or shape" in message) == (BAD_BUNDLE, True), (
        message
    )


def test_a_graph_of_another_rank(release: Path, bundle: Path) -> None:
    document = json.loads((bundle / FILE_NAME).read_text())
    document["graphs"]["decoder"]["outputs"][0]["shape"] = ["B", 6, 6]
    (bundle / FILE_NAME).write_text(json.dumps(document))
    status, message = Live(release, bundle).created
    assert status == BAD_BUNDLE
    assert "decoder.onnx: image: the graph and the manifest differ" in message


def test_a_large_sparse_manifest_is_not_read(release: Path, bundle: Path) -> None:
    os.truncate(bundle / FILE_NAME, 2 << 30)
    status, message = Live(release, bundle).created
    assert status == BAD_BUNDLE
    assert "expected at most 16777216 bytes" in message


@pytest.mark.parametrize("special", ["fifo", "device", "folder"])
def test_a_manifest_that_is_no_regular_file(special: str, release: Path, bundle: Path) -> None:
    path = bundle / FILE_NAME
    path.unlink()
    if special == "fifo":
        os.mkfifo(path)
    elif special == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    status, message = Live(release, bundle).created
    assert status == BAD_BUNDLE
    assert f"{FILE_NAME}: expected a regular file" in message


def test_out_of_memory_has_its_own_status(release: Path, demo_bundle: Path) -> None:
    """However much memory there is, a call works or says that it ran out, while loading and while drawing."""
    found = set()
    for megabytes in range(60, 240, 12):
        limited = ("bash", "-c", f'ulimit -v {megabytes * 1024}; exec "$@"', "bash")
        live = Live(release, demo_bundle, *limited)
        status, message = live.created
        if status == OK:
            status, message = live.ask("generate")
        live.process.communicate()
        assert status in (OK, OUT_OF_MEMORY), f"{megabytes} MB: {status} {message}"
        found.add(status)
    assert found == {OK, OUT_OF_MEMORY}


def test_what_is_opened_later_was_checked(release: Path, bundle: Path) -> None:
    """An encoder altered after create is refused, by its SHA-256; one that is the same again is not."""
    live, content = Live(release, bundle), (bundle / "encoder.onnx").read_bytes()
    (bundle / "encoder.onnx").write_bytes(content[:-1] + b"\0")
    status, message = live.ask("encode")
    assert status == BAD_BUNDLE
    assert "encoder.onnx: altered: expected SHA-256" in message
    (bundle / "encoder.onnx").write_bytes(content)
    assert live.ask("encode") == (OK, "")
    live.end()


def test_weights_replaced_under_a_handle(release: Path, bundle: Path) -> None:
    """By a rename: the handle goes on with what it has. In place: refused."""
    live, path = Live(release, bundle), bundle / WEIGHTS
    data = path.read_bytes()
    (bundle / "new").write_bytes(data[:-4] + struct.pack("<f", 7))
    (bundle / "new").rename(path)
    assert live.ask("generate") == (OK, "")
    status, message = live.ask("encode")  # but it opens no graph beside other weights
    assert status == BAD_BUNDLE
    assert f"{WEIGHTS}: altered" in message
    live.end()

    path.write_bytes(data)
    live = Live(release, bundle)
    with path.open("r+b") as file:
        file.truncate(len(data) // 2)
    status, message = live.ask("generate")
    assert status == BAD_BUNDLE
    assert "replace a file by renaming a new one onto it" in message
    live.end()


def test_nan_logits_are_an_error(release: Path, bundle: Path) -> None:
    def spoil(graph: onnx.GraphProto) -> None:
        (ramp,) = (tensor for tensor in graph.initializer if tensor.name == "ramp")
        values = onnx.numpy_helper.to_array(ramp).copy()
        values[3] = np.nan
        ramp.CopyFrom(onnx.numpy_helper.from_array(values, "ramp"))

    change_graph(bundle, "transformer", spoil)
    live = Live(release, bundle)
    assert live.created == (OK, "")
    status, message = live.ask("generate")
    assert status == FAILED
    fault = "toy is exported in fp32, so its weights are damaged or too large; check the checkpoint"
    assert message == f"logits of scale 0 hold NaN or infinity: {fault}"


def test_nan_pixels_are_an_error(release: Path, bundle: Path) -> None:
    data = bytearray((bundle / WEIGHTS).read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])["up.2"]["data_offsets"]
    data[8 + length + start : 8 + length + end] = struct.pack("<f", np.inf) * ((end - start) // 4)
    (bundle / WEIGHTS).write_bytes(data)
    seal(bundle, WEIGHTS)
    status, message = Live(release, bundle).ask("generate")
    assert status == FAILED
    assert message.startswith("pixels of the decoder hold NaN or infinity: toy is exported in fp32")


def test_nan_features_are_an_error(release: Path, bundle: Path) -> None:
    """Token -1 of the encoder: here because the graph is told that every picture is one."""

    def spoil(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if list(node.output) == ["large"]:
                node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array([0], np.int32)))

    change_graph(bundle, "encoder", spoil)
    status, message = Live(release, bundle).ask("encode")
    assert status == FAILED
    assert message.startswith("features of the encoder hold NaN or infinity: toy is exported in fp32")


def test_no_telemetry(release: Path, toy: Path, tmp_path: Path) -> None:
    """ONNX Runtime would make a device identifier and a database of events where the user's caches are."""
    require("strace")
    home, calls = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    traced = ("strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(calls))
    environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # a test's own runtime may have set it
    command = [*traced, str(release / "tests" / "live"), str(toy)]
    result = subprocess.run(command, input="generate\nencode\n", capture_output=True, text=True, env=environment)
    assert result.stdout == "0 \n0 \n0 \n", result.stderr
    assert list(home.iterdir()) == []
    assert calls.read_text() == ""


def test_as_many_threads_as_the_process_may_use(release: Path, toy: Path) -> None:
    """One processor of however many there are: no thread beside the caller's, not a word on standard error."""
    require("taskset")
    alone = min(os.sched_getaffinity(0))
    live = Live(release, toy, "taskset", "-c", str(alone), threads=0)
    assert live.ask("generate") == (OK, "")
    assert len(list(Path(f"/proc/{live.process.pid}/task").iterdir())) == 1
    assert "pthread_setaffinity_np" not in live.end()


@pytest.mark.parametrize("case", QUOTAS)
def test_quota(case: str, release: Path, tmp_path: Path) -> None:
    """Of a container's control group, v1 and v2, as Python counts it."""
    expected = write_quota(case, tmp_path)
    assert run(release / "tests" / "processors", tmp_path).stdout == str(expected)


@pytest.mark.parametrize(
    "ends, found",
    [
        ((OK, OK, OK), "TensorRT"),
        ((BAD_BUNDLE, OK, OK), "CUDA"),
        ((UNSUPPORTED, UNSUPPORTED, OK), "CPU"),
        ((OUT_OF_MEMORY, OK, OK), str(OUT_OF_MEMORY)),
        ((FAILED, OK, OK), str(FAILED)),
        ((UNSUPPORTED, OUT_OF_MEMORY, OK), str(OUT_OF_MEMORY)),
        ((UNSUPPORTED, BAD_BUNDLE, OK), "CPU"),
        ((UNSUPPORTED, BAD_BUNDLE, BAD_BUNDLE), str(BAD_BUNDLE)),
        ((UNSUPPORTED, FAILED, OK), str(FAILED)),
        ((BAD_ARGUMENT, OK, OK), str(BAD_ARGUMENT)),
        ((STOPPED, OK, OK), str(STOPPED)),
        ((UNSUPPORTED, UNSUPPORTED, OUT_OF_MEMORY), str(OUT_OF_MEMORY)),
    ],
)
def test_auto(ends: tuple[int, int, int], found: str, release: Path, tmp_path: Path) -> None:
    """It takes another backend where engines or machine do not fit, not where memory runs out or an engine fails."""
    (tmp_path / "engines" / "some").mkdir(parents=True)
    (tmp_path / "engines" / "some" / "engine.json").write_text("{}")
    assert run(release / "tests" / "auto", tmp_path, *map(str, ends)).stdout == found
    (tmp_path / "engine.json").write_text("{}")  # a directory of engines has nothing else
    alone = "TensorRT" if ends[0] == OK else str(ends[0])
    assert run(release / "tests" / "auto", tmp_path, *map(str, ends)).stdout == alone


def test_the_backend_that_is_gone(release: Path, toy: Path) -> None:
    """Its number stays refused, with what to use, also for a program that sets options of its provider."""
    for provider in ((), ("trt_fp16_enable", "1")):
        status, message = Live(release, toy, backend=ONNXRUNTIME_TENSORRT, provider=provider).created
        assert status == UNSUPPORTED
        assert "no longer supported; use VAR_EDGE_TENSORRT" in message


def test_an_old_onnxruntime(release: Path, toy: Path, tmp_path: Path) -> None:
    """Whose newest interface is too old: one line, not a call through a null pointer."""
    version = importlib.metadata.version("onnxruntime")
    (tmp_path / "old.c").write_text(
        """struct base { const void* (*api)(unsigned); const char* (*version)(void); };
        static const void* api(unsigned wanted) { (void)wanted; return 0; }
        static const char* version(void) { return "1.10.0"; }
        const struct base* OrtGetApiBase(void) { static const struct base found = {api, version}; return &found; }"""
    )
    (tmp_path / "versions").write_text(f"VERS_{version} {{ global: OrtGetApiBase; local: *; }};")
    options = ("-shared", "-fPIC", "-Wl,-soname,libonnxruntime.so.1", f"-Wl,--version-script={tmp_path / 'versions'}")
    run("gcc", *options, tmp_path / "old.c", "-o", tmp_path / "libonnxruntime.so.1")
    status, message = Live(release, toy, LD_LIBRARY_PATH=str(tmp_path)).created
    assert status == UNSUPPORTED
    assert message == "ONNX Runtime 1.10.0: expected 1.18 or later; install a newer one"


def test_a_model_before_main(release: Path, toy: Path) -> None:
    """In the static library nothing waits for a constructor that may run later than the application's."""
    run(release / "tests" / "global", env=os.environ | {"BUNDLE": str(toy)})
    symbols = run("nm", release / "libvar_edge.a").stdout
    assert "_GLOBAL__sub_I_" not in symbols
    assert "__static_initialization_and_destruction" not in symbols
