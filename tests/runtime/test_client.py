"""The client, with a server that answers what a test says: its errors are those of VAR Edge, one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import runtime.client
from runtime.errors import SettingsError, VarEdgeError
from runtime.images import encoded_png
from runtime.pipeline import Pipeline
from runtime.record import Record
from runtime.sampling import Sampling
from runtime.serving.client import Client, input_array

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient has no package for this machine")
Outputs = dict[str, np.ndarray]


class Response:
    """One response of the stream, as tritonclient hands it over."""

    def __init__(self, outputs: Outputs, last: bool) -> None:
        self._outputs, self._last = outputs, last

    def get_response(self) -> Any:
        final = {"triton_final_response": SimpleNamespace(bool_param=self._last)}
        return SimpleNamespace(outputs=[SimpleNamespace(name=name) for name in self._outputs], parameters=final)

    def as_numpy(self, name: str) -> np.ndarray:
        return self._outputs[name]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[Outputs | Exception]:
    """What the server answers to the next request; the last one is the final response."""
    answers: list[Outputs | Exception] = []

    class Server:
        def __init__(self, url: str) -> None:
            self.url = url

        def is_model_ready(self, *_: object, **__: object) -> bool:
            return True

        def start_stream(self, callback: Callable[[Any, Any], None]) -> None:
            self.callback = callback

        def async_stream_infer(self, *_: object, **__: object) -> None:
            for i, answer in enumerate(answers):
                if isinstance(answer, Exception):
                    raise answer
                self.callback(Response(answer, i == len(answers) - 1), None)

        def stop_stream(self, **_: object) -> None:
            pass

        def get_inference_statistics(self, *_: object, **__: object) -> None:
            raise grpc.InferenceServerException("failed to connect to all addresses")

        def close(self) -> None:
            pass

    monkeypatch.setattr(grpc, "InferenceServerClient", Server)
    return answers


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"topk": 3}, "'topk': no input has this name; the inputs are label, seed, count, "),
        ({"seed": -1}, "seed: expected UINT64 [1], found -1"),
        ({"seed": 2**64}, "seed: expected UINT64 [1], found 18446744073709551616"),
        ({"seed": 1.5}, "seed: expected UINT64 [1], found 1.5"),
        ({"top_k": 2**31}, "top_k: expected INT32 [1], found 2147483648"),
        ({"cfg": "much"}, "cfg: expected FP64 [1], found b'much'"),
        ({"box": (0, 1)}, "box: expected FP64 [4], found a list of 2"),
        ({"box": ((0, 1), 2)}, "box: expected FP64 [4], found a list of 2"),
        ({"smooth": 3}, "smooth: expected BOOL [1], found 3"),
        ({"label": 207}, "label: expected BYTES [1], found 207"),
        ({"label": "\udcff"}, "label: expected BYTES [1], found '\\udcff'"),
        ({"image": None}, "image: expected BYTES [1], found None"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(answered: list[Any], inputs: dict[str, Any], message: str) -> None:
    with Client("host:1", timeout=1) as client, pytest.raises(SettingsError) as error:
        client.result({"label": "1"} | inputs)
    assert str(error.value).startswith(message)


def test_inputs_that_fit() -> None:
    for name, value, expected in (
        ("label", "é", [["é".encode()]]),
        ("seed", 2**64 - 1, [[2**64 - 1]]),
        ("top_k", np.int64(3), [[3]]),
        ("cfg", 4, [[4.0]]),
        ("box", np.array([0, 0, 1, 0.5]), [[0, 0, 1, 0.5]]),
        ("smooth", True, [[True]]),
    ):
        assert input_array(name, value).tolist() == expected
    assert np.isnan(input_array("cfg", float("nan"))).all()  # for the server to refuse


def test_a_request_that_was_cancelled(answered: list[Any]) -> None:
    """The server then sends its final response without outputs, perhaps after some previews."""
    for before in ([], [{"scale": np.zeros((1, 1), np.int32)}]):
        answered[:] = [*before, {}]
        with (
            Client("host:1", timeout=1) as client,
            pytest.raises(VarEdgeError, match=r"^host:1: the request was cancelled$"),
        ):
            client.result({"label": "1"})


def test_errors_of_the_connection(answered: list[Any]) -> None:
    answered[:] = [grpc.InferenceServerException("the request is larger than 2 GB")]
    with Client("host:1", timeout=1) as client:
        with pytest.raises(VarEdgeError, match=r"^host:1: the request is larger than 2 GB$"):
            client.result({"label": "1"})
        with pytest.raises(VarEdgeError, match=r"^host:1: failed to connect to all addresses$"):
            client.executed()


def drawn(pipeline: Pipeline, metadata: bool = True) -> Outputs:
    """Return the response with three images."""
    settings: dict[str, Any] = {"labels": [1, 1, 1], "seed": 7, "batch": 3, "sampling": Sampling(top_k=3)}
    record = Record.of(pipeline, **settings)
    images = pipeline.generate(**settings).images
    files = [encoded_png(image, record.picture(i) if metadata else None) for i, image in enumerate(images)]
    return {"png": np.array([[file] for file in files], object), "scale": np.array([[2]], np.int32)}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(runtime.client.main, ["--label", "1", "--count", "3", *map(str, arguments)])


def test_a_grid_holds_the_settings_of_its_images(answered: list[Any], toy_bundle: Path, tmp_path: Path) -> None:
    """As the grid of runtime.generate does, so that --from repeats it."""
    pipeline = Pipeline(toy_bundle)
    answered[:] = [drawn(pipeline)]
    out = tmp_path / "out.png"
    result = command("--out", out, "--preview-dir", tmp_path / "scales")
    assert result.output.startswith(f"{out}: 3 image(s) in ")
    expected = Record.of(pipeline, [1, 1, 1], 7, 1, Sampling(top_k=3))
    assert Record.read(out) == expected
    assert Record.read(tmp_path / "scales" / "scale_02.png") == expected
    tokens = pipeline.generate(**expected.settings).tokens
    assert all(map(np.array_equal, tokens, pipeline.generate([1, 1, 1], 7, top_k=3).tokens))


def test_responses_that_are_no_images_of_ours(answered: list[Any], toy_bundle: Path, tmp_path: Path) -> None:
    answered[:] = [drawn(Pipeline(toy_bundle), metadata=False)]
    result = command("--out", tmp_path / "out.png")
    assert result.output.startswith("Error: 127.0.0.1:8001: an image: holds no settings; ")
    answered[:] = [{"png": np.array([[b"no"], [b"no"]], object), "scale": np.array([[2]], np.int32)}]
    result = command("--out", tmp_path / "out.png")
    assert result.output.startswith("Error: 127.0.0.1:8001: an image: cannot be read as an image (unknown format)")
    assert not (tmp_path / "out.png").exists()
