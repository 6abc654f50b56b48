"""What the page of runtime.web does, without a browser and without Gradio."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime import Pipeline, Sampling
from runtime.record import Record
from runtime.web.__main__ import main
from runtime.web.actions import Actions, Edit, Update, Wish, chart
from tests.runtime.toy import write_bundle

WISH = Wish("golden retriever", "7", 2, True, Sampling(top_k=5))


@pytest.fixture
def actions(toy_bundle: Path) -> Actions:
    return Actions(Pipeline(toy_bundle))


def last(updates: Any) -> Update:
    return [*updates][-1]


def test_previews_come_before_the_images(actions: Actions, toy_bundle: Path, tmp_path: Path) -> None:
    updates = [*actions.draw("me", WISH)]
    assert [update.status for update in updates[:-1]] == ["started", *(f"scale {k} of 3" for k in (1, 2, 3))]
    expected: list[np.ndarray] = []
    arguments: dict[str, Any] = {"labels": [4, 4], "seed": 7, "batch": 2, "sampling": WISH.sampling}
    images = Pipeline(toy_bundle).generate(**arguments, on_scale=lambda view: expected.append(view.preview())).images
    for update, previews in zip(updates[1:3], expected, strict=False):
        assert np.array_equal(update.previews, previews)
    assert updates[-1].status.startswith("2 image(s) in ")
    assert updates[-1].drawn is not None
    for i, drawn in enumerate(updates[-1].drawn):
        (tmp_path / drawn.name).write_bytes(drawn.png)
        assert np.array_equal(np.asarray(Image.open(tmp_path / drawn.name)), images[i])
        record = Record.read(tmp_path / drawn.name)
        assert (record.labels, record.seeds, record.top_k) == ((4,), (str(7 + i),), 5)
    assert [drawn.name for drawn in updates[-1].drawn] == [f"0004_golden-retriever_{seed}.png" for seed in (7, 8)]
    assert updates[-1].seconds is not None
    assert [*updates[-1].seconds] == ["condition", "1 × 1", "2 × 2", "3 × 3", "decoder"]


def test_without_previews_nothing_is_decoded_early(actions: Actions) -> None:
    updates = [*actions.draw("me", replace(WISH, previews=False))]
    assert [update.previews for update in updates] == [[], None, None, None, None]  # "started" clears what was there


def test_stop_between_scales(actions: Actions) -> None:
    gate, original = threading.Event(), actions.pipeline.generate

    def slow(*arguments: Any, on_scale: Any, **others: Any) -> Any:
        def waiting(view: Any) -> None:
            on_scale(view)
            assert gate.wait(10)

        return original(*arguments, on_scale=waiting, **others)

    actions.pipeline.generate = slow  # type: ignore[method-assign]
    run = actions.draw("me", WISH)
    assert [next(run).status for _ in range(2)] == ["started", "scale 1 of 3"]
    actions.stop("another visitor")
    actions.stop("me")
    gate.set()
    assert [update.status for update in run] == ["stopped after scale 2 of 3"]
    assert last(actions.draw("me", WISH)).drawn is not None


def test_a_visitor_who_leaves_stops_the_run(actions: Actions) -> None:
    original, seen, left = actions.pipeline.generate, list[int](), threading.Event()

    def slow(*arguments: Any, on_scale: Any, **others: Any) -> Any:
        def waiting(view: Any) -> None:
            seen.append(view.index)
            on_scale(view)
            assert left.wait(10)

        return original(*arguments, on_scale=waiting, **others)

    actions.pipeline.generate = slow  # type: ignore[method-assign]
    run = actions.draw("me", WISH)
    assert [next(run).status for _ in range(2)] == ["started", "scale 1 of 3"]
    run.close()  # does not wait for the scale
    left.set()
    assert last(actions.draw("another visitor", WISH)).drawn is not None  # after the first run ended
    assert seen == [0, 1, 0, 1, 2]


def test_stop_is_heard_from_the_start(actions: Actions) -> None:
    gate, original = threading.Event(), actions.pipeline.generate

    def gated(*arguments: Any, **others: Any) -> Any:
        assert gate.wait(10)
        return original(*arguments, **others)

    actions.pipeline.generate = gated  # type: ignore[method-assign]
    runs = {name: actions.draw(name, WISH) for name in ("me", "another visitor")}
    for run in runs.values():
        assert next(run).status == "started"
    actions.stop("me")
    gate.set()
    assert last(runs["me"]).status == "stopped after scale 1 of 3"
    assert last(runs["another visitor"]).drawn is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": ""}, "Error: label ''"),
        ({"label": "xyzzyx"}, "no class has this name; look it up in the list of classes"),
        ({"label": "gold fish"}, "did you mean 1 (goldfish)?"),
        ({"label": "6"}, "Error: label: expected 0 to 5"),
        ({"seed": "-1"}, "Error: seed: expected an integer of 0 to"),
        ({"seed": "1e3"}, "Error: seed: expected an integer"),
        ({"seed": str(2**64 - 1)}, "Error: seed: expected"),  # of two images
        ({"count": 0}, "Error: images: expected 1 to 16, found 0"),
        ({"count": None}, "Error: images: expected 1 to 16, found None"),
        ({"count": 10**9}, "Error: images: expected 1 to 16"),
        ({"sampling": Sampling(cfg=None)}, "Error: cfg: expected"),  # a field that was emptied
        ({"sampling": Sampling(cfg=float("nan"))}, "Error: cfg: expected"),
        ({"sampling": Sampling(top_k=65)}, "Error: top_k: expected"),
        ({"sampling": Sampling(top_k=5, smooth=True)}, "Error: "),
        ({"sampling": Sampling(top_k=5, decoder="tiny")}, "Error: "),
    ],
)
def test_wrong_input_is_shown(changes: dict[str, Any], said: str, actions: Actions) -> None:
    _, update = actions.draw("me", replace(WISH, **changes))
    assert said in update.status
    assert update.drawn is None
    assert last(actions.draw("me", WISH)).drawn is not None


def test_a_bug_is_shown_and_the_page_lives_on(actions: Actions, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    original, actions.pipeline.generate = actions.pipeline.generate, None  # type: ignore[assignment,method-assign]
    assert "a bug of VAR Edge" in last(actions.draw("me", WISH)).status
    assert [error.exc_type for error in raised] == [TypeError]
    actions.pipeline.generate = original  # type: ignore[method-assign]
    assert last(actions.draw("me", WISH)).drawn is not None


def test_the_page_shows_what_the_bundle_can_do(actions: Actions, tmp_path: Path, tiny_bundle: Path) -> None:
    write_bundle(tmp_path / "bundle", tiny=True)
    other = Actions(Pipeline(tmp_path / "bundle"))
    assert (actions.has_tiny_decoder, actions.can_smooth, actions.can_edit) == (False, False, False)
    assert (other.has_tiny_decoder, other.can_smooth, other.can_edit) == (True, False, False)
    assert Actions(Pipeline(tiny_bundle)).can_edit
    assert actions.classes[:2] == ["0 tench; Tinca tinca", "1 goldfish"]
    assert [actions.pipeline.classes.label(line) for line in actions.classes] == [0, 1, 2, 3, 4, 5]
    assert actions.about.startswith("toy in fp32 with onnxruntime")


def test_edit_with_mask_and_box(tiny_bundle: Path, tmp_path: Path) -> None:
    actions, wish = Actions(Pipeline(tiny_bundle)), replace(WISH, label="1", count=1, sampling=Sampling())
    side = actions.pipeline.manifest.model.image_size
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    mask = Image.new("RGBA", photo.size)
    mask.paste((255, 80, 0, 90), (0, 0, side // 2, side))
    expected = actions.pipeline.edit(np.asarray(photo), (0, 0, 1, 0.5), labels=1, seed=7).images[0]
    for edit in (Edit(photo.convert("RGBA"), mask, None, "inpaint"), Edit(photo, None, (0, 0, 1, 0.5), "inpaint")):
        (drawn,) = last(actions.edit("me", wish, edit)).drawn or []
        (tmp_path / "edit.png").write_bytes(drawn.png)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "edit.png")), expected)
        assert Record.read(tmp_path / "edit.png").edit == "inpaint"
    empty = Image.new("RGBA", photo.size)
    for edit, said in (
        (Edit(None, None, None, "inpaint"), "Error: image: expected one; upload an image first"),
        (Edit(photo, None, None, "inpaint"), "Error: mask: expected one; draw it"),
        (Edit(photo, empty, None, "inpaint"), "Error: mask: expected one; draw it"),
        (Edit(photo, None, (0.5, 0, 0.5, 1), "inpaint"), "Error: box: expected"),
        (Edit(photo.resize((1, 1)), None, (0, 0, 1, 1), "inpaint"), "or more pixels on each side"),
        (Edit(photo, mask, None, "erase"), "Error: mode: expected"),
    ):
        assert said in last(actions.edit("me", wish, edit)).status


def test_the_chart_escapes_and_scales() -> None:
    drawn = chart({"<b>": 2.0, "1 × 1": 1.0})
    assert "&lt;b&gt;" in drawn
    assert 'width:50.0%"></i>2.000 s' in drawn
    assert 'width:25.0%"></i>1.000 s' in drawn
    assert chart({"a": 0.0})


def test_a_port_in_use_is_told_at_once(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.web.__main__.require", lambda *names: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["--bundle", str(toy_bundle), "--port", str(port)])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert f"cannot listen at '127.0.0.1', port {port}: Address already in use; give another --port" in result.output
    for host in ("no.such.host.invalid", "a" * 300, "192.0.2.1"):  # the last is of no machine
        result = CliRunner().invoke(main, ["--bundle", str(toy_bundle), "--host", host])
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert result.output.startswith(f"Error: cannot listen at '{host[:59]}")
        assert ", port 7860: " in result.output


def test_help_waits_for_no_library() -> None:
    code = "import sys, runtime.web.__main__ as c; c.main(['--help'], standalone_mode=False); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--port" in output
    assert not {"numpy", "onnxruntime", "PIL", "gradio"} & set(output.splitlines()[-1].split())
