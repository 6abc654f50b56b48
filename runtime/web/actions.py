"""What the page does: draw, edit and stop. It knows nothing of the page itself and runs without one."""

from __future__ import annotations

import html
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .. import limits
from ..base_pipeline import BasePipeline, Result, ScaleView
from ..bundle.names import DECODER, ENCODER, SMOOTH_BRIDGE, TINY_DECODER
from ..errors import SettingsError, VarEdgeError
from ..images import encoded_png, fitted
from ..limits import shown
from ..pixels import on_paper
from ..record import Record
from ..sampling import Sampling

MOST = 16  # images of one run
COUNT = limits.Integers(1, MOST)


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for, as the page hands it over: not checked yet."""

    label: str
    seed: str
    count: int
    previews: bool
    sampling: Sampling


@dataclass(frozen=True)
class Edit:
    """What to edit: an image and its mask, or a box (y0, x0, y1, x1) in fractions of its middle square."""

    image: Image.Image | None
    mask: Image.Image | None  # not transparent where it was drawn
    box: tuple[float, float, float, float] | None
    mode: str


@dataclass(frozen=True)
class Drawn:
    """A finished image."""

    name: str  # of its file
    png: bytes  # with its record


@dataclass(frozen=True)
class Update:
    """What the page shows from now on; None leaves what is there, and what is empty clears it."""

    status: str
    previews: list[np.ndarray] | None = None  # (H, W, 3) uint8 each
    drawn: list[Drawn] | None = None
    seconds: dict[str, float] | None = None  # of each stage


class Stopped(Exception):
    """Raised between two scales, because the visitor stopped the run."""


@dataclass
class _Run:
    """A run in a thread of its own, which puts updates into `updates` and, at the end, None."""

    updates: queue.SimpleQueue[Update | None] = field(default_factory=queue.SimpleQueue)
    stop: threading.Event = field(default_factory=threading.Event)
    times: dict[tuple[int, str], float] = field(default_factory=dict)  # of each stage, by its place in the order
    images: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def seconds(self) -> dict[str, float]:
        return {stage: self.times[place, stage] for place, stage in sorted(self.times)}


class Actions:
    """Draws on a pipeline for the visitors of a page, one after the other. A visitor is known by a text."""

    def __init__(self, pipeline: BasePipeline) -> None:
        self.pipeline = pipeline
        self._runs: dict[str, _Run] = {}

    @property
    def can_edit(self) -> bool:
        return ENCODER in self.pipeline.manifest.graphs

    @property
    def can_smooth(self) -> bool:
        return SMOOTH_BRIDGE in self.pipeline.manifest.graphs and not self.pipeline.draft_scales

    @property
    def has_tiny_decoder(self) -> bool:
        return TINY_DECODER in self.pipeline.manifest.graphs

    @property
    def classes(self) -> list[str]:
        """A line for each class, as `runtime.generate --list-classes` prints it, and "none"."""
        classes = self.pipeline.classes
        lines = classes.listing().splitlines() if classes.names else map(str, range(classes.num_classes))
        return [*(line.strip() for line in lines), "none"]

    @property
    def about(self) -> str:
        """One line about the model and what runs it."""
        manifest = self.pipeline.manifest
        return f"{manifest.model.name} in {manifest.precision} with {self.pipeline.drawn_with}"

    def draw(self, visitor: str, wish: Wish) -> Iterator[Update]:
        """Draw images of a class. Errors are shown, not raised."""
        return self._shown(visitor, wish, lambda arguments, hooks: self.pipeline.generate(**arguments, **hooks))

    def edit(self, visitor: str, wish: Wish, edit: Edit) -> Iterator[Update]:
        """Draw a part of an image anew. Errors are shown, not raised."""

        def edited(arguments: dict[str, Any], hooks: dict[str, Any]) -> Result:
            image, region = self._prepared(edit)
            return self.pipeline.edit(image, region, edit.mode, **arguments, **hooks)

        return self._shown(visitor, wish, edited, edit.mode)

    def stop(self, visitor: str) -> None:
        """End the run of a visitor, if there is one, after the scale that is being drawn."""
        if run := self._runs.get(visitor):
            run.stop.set()

    def _shown(
        self,
        visitor: str,
        wish: Wish,
        draw: Callable[[dict[str, Any], dict[str, Any]], Result],
        mode: str | None = None,
    ) -> Iterator[Update]:
        """Yield the updates of a run. If the caller stops asking for them, the run stops after its scale."""
        run = self._runs[visitor] = _Run()
        threading.Thread(target=self._work, args=(run, wish, draw, mode), daemon=True).start()
        try:
            yield Update("started", [], [], {})
            while update := run.updates.get():
                yield update
        finally:
            run.stop.set()  # the run's end is not awaited: Gradio closes this generator in the thread of all requests
            if self._runs.get(visitor) is run:
                del self._runs[visitor]

    def _work(
        self,
        run: _Run,
        wish: Wish,
        draw: Callable[[dict[str, Any], dict[str, Any]], Result],
        mode: str | None,
    ) -> None:
        try:
            arguments = self._arguments(wish)
            start = time.perf_counter()
            result = draw(arguments, {"on_scale": self._on_scale(run, wish), "on_stage": self._on_stage(run)})
            seconds = time.perf_counter() - start
            record = Record.of(self.pipeline, **arguments, edit=mode)
            drawn = [
                Drawn(_file_name(record.picture(i)), encoded_png(image, record.picture(i)))
                for i, image in enumerate(result.images)
            ]
            run.updates.put(Update(f"{len(drawn)} image(s) in {seconds:.1f} s", None, drawn, run.seconds))
        except Stopped as error:
            run.updates.put(Update(str(error), seconds=run.seconds))
        except VarEdgeError as error:
            run.updates.put(Update(f"Error: {error}"))
        except MemoryError:
            run.updates.put(Update("Error: out of memory; draw fewer images at once"))
        except Exception:
            run.updates.put(Update("Error: a bug of VAR Edge; the server's terminal has the details"))
            raise
        finally:
            run.updates.put(None)

    def _arguments(self, wish: Wish) -> dict[str, Any]:
        """Return the arguments of `generate`. Raises SettingsError."""
        if wish.count not in COUNT:
            raise SettingsError(f"images: expected {COUNT}, found {shown(wish.count)}")
        if not re.fullmatch("[0-9]{1,20}", wish.seed.strip()):
            raise SettingsError(f"seed: expected an integer of {limits.SEED}, found {shown(wish.seed)}")
        label = self.pipeline.classes.label(wish.label.strip())
        self.pipeline.check(wish.sampling)
        return {
            "labels": [label] * int(wish.count),
            "seed": int(wish.seed),
            "batch": int(wish.count),
            "sampling": wish.sampling,
        }

    def _on_scale(self, run: _Run, wish: Wish) -> Callable[[ScaleView], None]:
        scales = len(self.pipeline.manifest.scales)

        def on_scale(view: ScaleView) -> None:
            if run.stop.is_set():
                raise Stopped(f"stopped after scale {view.index + 1} of {scales}")
            if wish.previews and not view.last:
                run.images.update(zip(view.pictures, view.preview(), strict=True))
            previews = [run.images[i] for i in sorted(run.images)] or None
            run.updates.put(Update(f"scale {view.index + 1} of {scales}", previews))

        return on_scale

    def _on_stage(self, run: _Run) -> Callable[[str, int | None, float], None]:
        sides = self.pipeline.manifest.model.patch_nums

        def on_stage(graph: str, scale: int | None, seconds: float) -> None:
            if scale is None:
                key = (len(sides) if DECODER in graph else -1, graph)
            else:
                key = (scale, f"{sides[scale]} × {sides[scale]}")
            run.times[key] = run.times.get(key, 0) + seconds

        return on_stage

    def _prepared(self, edit: Edit) -> tuple[np.ndarray, Any]:
        """Return the image (H, W, 3) uint8 and the region as `Pipeline.edit` takes them. Raises SettingsError."""
        model = self.pipeline.manifest.model
        if edit.image is None:
            raise SettingsError("image: expected one; upload an image first")
        width, height = edit.image.size
        if min(width, height) < model.grid or width * height > limits.PIXELS:
            expected = f"{model.grid} or more pixels on each side and at most {limits.PIXELS // 10**6} megapixels"
            raise SettingsError(f"image: expected {expected}, found {width} x {height}")
        image = fitted(on_paper(edit.image, "white"), model.image_size)
        if edit.box is not None:
            return image, edit.box
        drawn = edit.mask and edit.mask.getchannel("A")
        if drawn is None or drawn.getbbox() is None:
            raise SettingsError("mask: expected one; draw it on the image, or choose the box")
        painted = drawn.point([0] + [255] * 255).convert("RGB")  # the brush is half transparent
        return image, fitted(painted, model.image_size).mean(2) > 127.5


def chart(seconds: dict[str, float]) -> str:
    """Return a small bar chart of the seconds of each stage, as HTML that loads nothing."""
    longest = max(seconds.values(), default=0) or 1
    rows = (
        f'<div class="stage"><span>{html.escape(stage)}</span>'
        f'<i style="width:{50 * value / longest:.1f}%"></i>{value:.3f} s</div>'
        for stage, value in seconds.items()
    )
    return f'<div class="stages">{"".join(rows)}</div>'


def _file_name(record: Record) -> str:
    """Return a file name such as 0207_golden-retriever_7.png."""
    name = "".join(record.classes)
    words = "-".join(re.findall("[a-z0-9]+", name.lower()))[:40]
    return "_".join(filter(None, (f"{record.labels[0]:04}", words, record.seeds[0]))) + ".png"
