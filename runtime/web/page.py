"""The layout of the page: which control is where, and which action it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from PIL import Image

from ..sampling import DECODERS, Sampling
from .actions import MOST, Actions, Edit, Update, Wish, chart

# No fonts of other sites.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.stage {display: flex; white-space: nowrap; align-items: center; gap: .5em; font-size: .8em; line-height: 1.4}
.stage span {width: 6.5em; text-align: right}
.stage i {height: .7em; min-width: 1px; background: var(--color-accent)}
"""
BOX, MASK = "box", "drawn mask"
MOST_WAITING = 16  # requests of all visitors; each holds its uploads in memory
# What the browser itself shows as the status: a run that waits, or was stopped, sends none.
AT_CLICK = "() => 'waiting for a turn'"
AT_STOP = "status => /^(waiting|started|scale)/.test(status) ? 'stopping' : status"
AT_FAILURE = "status => /^waiting/.test(status) ? 'Error: not started; the notice says why' : 'stopped'"


def page(actions: Actions, folder: Path) -> gr.Blocks:
    """Return the page. Finished images are for a moment in `folder`, from where Gradio copies them."""
    default, model = Sampling(), actions.pipeline.manifest.model
    with gr.Blocks(title="VAR Edge", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        gr.Markdown(f"## VAR Edge\n{actions.about}", elem_id="about")
        with gr.Row():
            with gr.Column(min_width=300):
                label = gr.Dropdown(
                    actions.classes, label="Class: search, or type a number", allow_custom_value=True, elem_id="label"
                )
                with gr.Row():
                    seed = gr.Textbox("0", label="Seed of the first image", elem_id="seed", min_width=100)
                    count = gr.Slider(1, MOST, 1, step=1, label="Images", elem_id="count", min_width=140)
                with gr.Accordion("Sampling and shortcuts", open=False, elem_id="settings"):
                    cfg = gr.Slider(0, 20, default.cfg, step=0.1, label="Guidance (cfg)")
                    top_k = gr.Slider(
                        0, model.vocab_size, default.default_top_k(model.vocab_size), step=1, label="top-k; 0 is all"
                    )
                    top_p = gr.Slider(0, 1, default.top_p, step=0.01, label="top-p; 0 is all")
                    scales = len(model.patch_nums)
                    guided = gr.Slider(1, scales, scales, step=1, label="Scales with guidance")
                    decoder = gr.Radio(
                        list(DECODERS), value=default.decoder, label="Decoder", visible=actions.has_tiny_decoder
                    )
                    smooth = gr.Checkbox(label="Smooth sampling", visible=actions.can_smooth, elem_id="smooth")
                    previews = gr.Checkbox(True, label="Show each scale; takes a decoder run each", elem_id="previews")
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                with gr.Accordion("Edit an image", open=False, visible=actions.can_edit, elem_id="edit"):
                    canvas = gr.ImageEditor(
                        label="Image: its middle square is used; paint the region",
                        type="pil",
                        sources=("upload", "clipboard"),
                        transforms=(),
                        layers=False,
                        height=380,
                        buttons=[],
                        brush=gr.Brush(colors=[("#ff4d00", 0.6)], color_mode="fixed"),
                        elem_id="canvas",
                    )
                    mode = gr.Radio(
                        ["inpaint", "outpaint"],
                        value="inpaint",
                        label="What is drawn anew: the region (inpaint) or the rest (outpaint)",
                    )
                    kind = gr.Radio([MASK, BOX], value=MASK, label="Region", elem_id="region")
                    with gr.Row():
                        sides = [
                            gr.Slider(0, 1, value, step=0.01, label=f"Box: {name}", min_width=140)
                            for name, value in (("top", 0.25), ("left", 0.25), ("bottom", 0.75), ("right", 0.75))
                        ]
                    edit = gr.Button("Edit", variant="primary", elem_id="start-edit")
            with gr.Column(min_width=300):
                with gr.Row():
                    status = gr.Textbox(label="Status", interactive=False, elem_id="status", min_width=180)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
                gallery = gr.Gallery(
                    label="Images", columns=2, object_fit="contain", format="png", buttons=[], elem_id="images"
                )
                files = gr.File(
                    label="Download: each PNG holds its settings", file_count="multiple", interactive=False,
                    elem_id="files",
                )  # fmt: skip
                stages = gr.HTML(label="Seconds of each stage", elem_id="seconds")

        settings = [label, seed, count, cfg, top_k, top_p, guided, decoder, smooth, previews]
        outputs = [status, gallery, files, stages]

        def on_draw(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
            yield from _outputs(actions.draw(str(request.session_hash), _wish(*values)), folder)

        def on_edit(request: gr.Request, drawing: Any, mode: str, kind: str, *values: Any) -> Iterator[list[Any]]:
            box, values = values[:4], values[4:]
            wanted = Edit(*_layers(drawing), None if kind == MASK else box, mode)
            yield from _outputs(actions.edit(str(request.session_hash), _wish(*values), wanted), folder)

        def on_stop(request: gr.Request) -> None:
            actions.stop(str(request.session_hash))

        turns: dict[str, Any] = {"concurrency_id": "pipeline", "show_progress": "hidden"}
        gr.on([draw.click, edit.click], None, None, status, js=AT_CLICK)
        drawing = draw.click(on_draw, settings, outputs, **turns)
        editing = edit.click(on_edit, [canvas, mode, kind, *sides, *settings], outputs, **turns)
        for run in (drawing, editing):
            run.failure(None, status, status, js=AT_FAILURE)
        stop.click(None, status, status, js=AT_STOP)
        stop.click(on_stop, queue=False, cancels=[drawing, editing])  # also where it waits for its turn
    return blocks.queue(max_size=MOST_WAITING)


def _wish(
    label: str | None,
    seed: str,
    count: int,
    cfg: float,
    top_k: int,
    top_p: float,
    guided: int,
    decoder: str,
    smooth: bool,
    previews: bool,
) -> Wish:
    sampling = Sampling(cfg, top_k, top_p, bool(smooth), guided, decoder)  # checked by the action
    return Wish(str(label or ""), str(seed), count, previews, sampling)


def _layers(drawing: Any) -> tuple[Image.Image | None, Image.Image | None]:
    """Return the image and what was drawn over it, which may lie on several layers."""
    if not drawing or drawing["background"] is None:
        return None, None
    mask = None
    for layer in drawing["layers"]:
        mask = Image.alpha_composite(mask, layer) if mask else layer
    return drawing["background"], mask


def _outputs(updates: Iterator[Update], folder: Path) -> Iterator[list[Any]]:
    """Yield the values of status, gallery, files and chart for each update."""
    for update in updates:
        seconds = gr.skip() if update.seconds is None else chart(update.seconds)
        if not update.drawn:
            previews = gr.skip() if update.previews is None else update.previews
            yield [update.status, previews, gr.skip() if update.drawn is None else None, seconds]
            continue
        try:
            with TemporaryDirectory(dir=folder) as place:
                paths = [str(Path(place, drawn.name)) for drawn in update.drawn]
                for path, drawn in zip(paths, update.drawn, strict=True):
                    Path(path).write_bytes(drawn.png)
                yield [update.status, paths, paths, seconds]
        except OSError as error:
            yield [f"Error: {folder}: {error.strerror}", gr.skip(), gr.skip(), seconds]
