"""The model repository in a real Triton Inference Server, on loopback."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import examples.serving.load
import runtime.client
from examples.serving.environment import ROOT, environment
from examples.serving.server import Server, free_port
from runtime.drawing import Loading
from runtime.errors import SettingsError, VarEdgeError
from runtime.images import encoded_png
from runtime.pipeline import Pipeline
from runtime.serving.client import Client
from runtime.serving.repository import write_repository
from runtime.serving.settings import Settings
from runtime.serving.tensors import NAME

SAMPLING = {"cfg": 1.1, "top_k": 300, "top_p": 0.9}  # FP32 does not hold 1.1 and 0.9


@pytest.fixture(scope="module")
def repository(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        environment()
    except SettingsError as error:
        pytest.skip(f"NOT TESTED with the real Triton Inference Server: {error}")
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(folder, NAME, Settings(demo_bundle, Loading(1, "auto", True, None, None), 8))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """A server that was started in another folder than this checkout, whose packages it needs."""
    options = ("--model-control-mode=explicit", "--load-model=*")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.parent)
        with Server(repository, free_port(), free_port(), repository.parent / "log", *options) as started:
            yield started


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return Pipeline(demo_bundle, threads=1)


def draw(server: Server, **inputs: Any) -> dict[str, np.ndarray]:
    with Client(server.url, timeout=60) as client:
        return client.result(SAMPLING | inputs)


def assert_drawn(outputs: dict[str, np.ndarray], pipeline: Pipeline, label: str, seed: int, count: int = 1) -> None:
    alone = pipeline.generate([label] * count, seed, **SAMPLING)
    assert np.array_equal(outputs["tokens"], np.concatenate(alone.tokens, axis=1))
    shown = np.stack([np.asarray(Image.open(BytesIO(file))) for file in outputs["png"].ravel()])
    assert np.abs(shown.astype(int) - alone.images).max() <= 1


def post(server: Server, path: str, **inputs: Any) -> tuple[int, str]:
    """Return the status and the text of a POST to the model."""
    url = f"{server.http}/v2/models/{NAME}/{path}"
    command = ["curl", "-s", "-m", "60", "-w", "%{http_code}", "-d", json.dumps(inputs), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(text[-3:]), text[:-3]


def of_session(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            if os.getsid(int(folder.name)) == session and (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def model_process(server: Server) -> int:
    (pid,) = server.processes("multiprocessing.spawn")
    return pid


def test_clients_that_wait_together_share_batches_and_keep_their_seeds(server: Server, pipeline: Pipeline) -> None:
    labels = ("heart", "clock", "flower", "none")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: draw(server, label=labels[i % 4], seed=1000 * i), range(24)))
    for i, outputs in enumerate(found):
        assert_drawn(outputs, pipeline, labels[i % 4], 1000 * i)
    with Client(server.url) as client:
        requests, batches = client.executed()
    assert requests >= 24 and batches <= requests / 2


def test_every_scale_over_http(server: Server, pipeline: Pipeline) -> None:
    status, text = post(server, "generate_stream", label="heart", seed=3, previews=True, format="base64", **SAMPLING)
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
    assert status == 200
    assert [event["scale"] for event in events] == list(range(len(pipeline.manifest.scales)))
    last = {"tokens": np.array([events[-1]["tokens"]]), "png": np.array([base64.b64decode(events[-1]["png"])], object)}
    assert_drawn(last, pipeline, "heart", 3)


def test_an_edit_over_http(server: Server, pipeline: Pipeline) -> None:
    photo = pipeline.generate("clock", 3).images[0]
    image = base64.b64encode(encoded_png(photo)).decode()
    status, text = post(server, "generate", label="none", image=image, box=[0, 0.5, 1, 1], seed=5, format="base64")
    alone = pipeline.edit(photo, (0, 0.5, 1, 1), labels="none", seed=5)
    assert status == 200
    assert json.loads(text)["tokens"] == np.concatenate(alone.tokens, axis=1)[0].tolist()


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        ({"label": "hart"}, 400, "label 'hart': no class has this name; did you mean 9 (heart), 26 (clothing)?"),
        ({"label": "heart", "count": 1000000}, 400, "count: expected 1 to 64, found 1000000"),
        ({"label": "heart", "topk": 3}, 400, "'topk': no input has this name"),
        ({"label": "heart", "image": "bm8=", "box": [0, 0, 1, 1]}, 400, "image: cannot be read as an image"),
        ({"label": "heart", "smooth": True}, 400, "no graph for smooth sampling"),
        ({"label": "heart", "seed": -1}, 500, "Unable to parse 'data'"),  # Triton's own
        ({"seed": 1}, 400, "label: expected a class, found none"),
    ],
)
def test_bad_input_is_an_error_response_and_the_server_lives_on(
    server: Server, pipeline: Pipeline, inputs: dict[str, Any], status: int, message: str
) -> None:
    found, text = post(server, "generate", **inputs)
    assert message in json.loads(text)["error"]
    assert found == status
    assert_drawn(draw(server, label="heart", seed=1), pipeline, "heart", 1)


def test_a_cancelled_request_stops(server: Server) -> None:
    start = time.monotonic()
    draw(server, label="clock", count=64)
    whole = time.monotonic() - start
    with Client(server.url, timeout=60) as client, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.result, {"label": "clock", "count": 64, **SAMPLING})
        time.sleep(0.3)
        client.cancel()
        with pytest.raises(VarEdgeError):
            waiting.result(30)
        start = time.monotonic()
        client.result({"label": "clock", **SAMPLING})
        assert time.monotonic() - start < whole / 2


def test_the_next_request_is_served_after_kill_9(server: Server, pipeline: Pipeline) -> None:
    pid = model_process(server)
    with Client(server.url, timeout=60) as client:
        responses = client.responses({"label": "heart", "count": 8, "previews": True, **SAMPLING})
        next(responses)  # of the first scale
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(VarEdgeError, match="ended with signal 9; send the request again"):
            list(responses)
    assert_drawn(draw(server, label="heart", seed=9, count=3), pipeline, "heart", 9, 3)
    assert model_process(server) != pid


def test_the_command(server: Server, pipeline: Pipeline, tmp_path: Path) -> None:
    def client(*arguments: object) -> str:
        common = ("--url", server.url, "--top-k", 300, "--top-p", 0.9, "--cfg", 1.1, "--out", tmp_path / "out.png")
        result = CliRunner().invoke(runtime.client.main, [str(argument) for argument in (*common, *arguments)])
        assert result.output.count("\n") == 1
        return result.output

    assert "1 image(s)" in client("--label", "heart", "--seed", 3, "--preview-dir", tmp_path / "scales")
    alone = pipeline.generate("heart", 3, **SAMPLING).images[0]
    shown = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.abs(shown.astype(int) - alone).max() <= 1
    assert len(list((tmp_path / "scales").iterdir())) == len(pipeline.manifest.scales)
    assert "4 image(s)" in client("--label", "heart", "--count", 4)
    assert Image.open(tmp_path / "out.png").size == (132, 132)  # a grid
    Image.fromarray(alone).save(tmp_path / "photo.png")
    (tmp_path / "out.png").unlink()
    assert "1 image(s)" in client("--image", tmp_path / "photo.png", "--box", "0,0.5,1,1")
    assert "did you mean 9 (heart)" in client("--label", "hart")
    assert "box: expected four numbers" in client("--image", tmp_path / "photo.png", "--box", "all")
    assert f"{server.url}: no model other is ready there" in client("--label", "heart", "--model", "other")
    unused = f"127.0.0.1:{free_port()}"
    assert f"Error: {unused}: no server answers" in client("--label", "heart", "--url", unused)


@pytest.mark.parametrize(("options", "kills"), [((), 0), (("--kill",), 2)], ids=["load", "kill"])
def test_the_load_test(repository: Path, options: tuple[str, ...], kills: int) -> None:
    command = (repository, "--requests", 8, "--clients", 2, "--rounds", 2, "--batch", 4, "--threads", 1, *options)
    result = CliRunner().invoke(examples.serving.load.main, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("8 requests from 2 clients: p50 ")
    assert f"; 0 drawn wrongly, {kills} kills, " in result.output
    assert result.output.count("\n") == 1


def test_a_killer_that_finds_no_process_ends_the_load_test(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "processes", lambda *_: [])
    command = (repository, "--requests", 4, "--clients", 2, "--rounds", 1, "--batch", 4, "--threads", 1, "--kill")
    result = CliRunner().invoke(examples.serving.load.main, [str(argument) for argument in command])
    assert (result.exit_code, result.output) == (
        1,
        "Error: the server: expected one process with a pipeline, found 0\n",
    )


def test_a_second_server_on_the_same_port(server: Server, repository: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(SettingsError, match=f"127.0.0.1:{port}: Address already in use; stop what uses it"):
        Server(repository, free_port(), port)


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{tmp_path}: expected a model repository, found none; python -m"):
        Server(tmp_path, free_port(), free_port())


def test_a_server_that_is_not_ready_in_time(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tritonserver: not ready in 0\.1 s, see --timeout: "):
        Server(repository, free_port(), free_port(), tmp_path / "log", timeout=0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_stops_the_server(repository: Path, number: int) -> None:
    ports = free_port(), free_port()
    options = [f"--http-port={ports[0]}", f"--grpc-port={ports[1]}"]
    command = [sys.executable, "-m", "examples.serving.server", str(repository), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == f"ready: http://127.0.0.1:{ports[0]} and gRPC 127.0.0.1:{ports[1]}\n"
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        sessions = [session for session in map(int, children) if os.getsid(session) == session]  # the server's own
        try:
            time.sleep(1)  # the command waits for the server now
            started.send_signal(number)
            assert started.wait(30) == (128 + number if number == signal.SIGTERM else -number)
            end = time.monotonic() + 20
            while any(map(of_session, sessions)):
                assert time.monotonic() < end, "the server goes on"
                time.sleep(0.1)
        finally:
            started.kill()
            for session in filter(of_session, sessions):
                os.killpg(session, signal.SIGKILL)
    assert len(sessions) == 1
    with Server(repository, *ports, repository.parent / "log of another"):
        pass  # the ports are free again


def test_a_killed_stub_is_loaded_again(server: Server, pipeline: Pipeline) -> None:
    """Triton 2.51 does not restart its own part; its HTTP interface can, as docs/serving.md says."""
    (stub,) = server.processes("triton_python_backend_stub")
    os.kill(stub, signal.SIGKILL)
    with pytest.raises(VarEdgeError, match="not healthy"):
        draw(server, label="heart")
    for action in ("unload", "load"):
        subprocess.run(["curl", "-sf", "-X", "POST", f"{server.http}/v2/repository/models/{NAME}/{action}"], check=True)
    assert_drawn(draw(server, label="heart", seed=2), pipeline, "heart", 2)
    model_process(server)  # only one: that of the killed stub has ended


def test_a_damaged_repository_says_why(repository: Path, tmp_path: Path) -> None:
    write_repository(
        tmp_path / "damaged", NAME, Settings(repository / NAME / "bundle", Loading(1, "auto", True, None, None), 8)
    )
    (tmp_path / "damaged" / NAME / "bundle" / "manifest.json").unlink()
    with pytest.raises(SettingsError):
        Server(tmp_path / "damaged", free_port(), free_port(), tmp_path / "log")
    assert "bundle: no manifest.json, so not a bundle" in (tmp_path / "log").read_text()
