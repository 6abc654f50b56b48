"""The common part of the commands that draw: their options, and the files that they write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import limits
from .backends import BACKENDS
from .cli import BOTH, FILE, Number
from .errors import SettingsError
from .files.outputs import PREVIEW, check_apart, check_folder, check_target, followed, previews
from .sampling import BATCH, DECODERS, TOP_K, Sampling

if TYPE_CHECKING:
    import numpy as np

    from .base_pipeline import BasePipeline, Result, ScaleView
    from .record import Record

Command = Callable[..., Any]
Options = Callable[[Command], Command]


def together(*options: Options) -> Options:
    """Combine these options into one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def sampling_options(defaults: Sampling, shortcuts: bool = True) -> Options:
    """Return the options --cfg, --top-k and --top-p, and with `shortcuts` also --guidance-scales and --decoder.

    The command gets them as `sampling`, with its --smooth if any.
    """
    default = f"{TOP_K}, or all of a smaller vocabulary"

    def gathered(command: Command) -> Command:
        @functools.wraps(command)
        def run(
            *,
            cfg: float,
            top_k: int | None,
            top_p: float,
            guidance_scales: int | None = None,
            decoder: str = defaults.decoder,
            smooth: bool = False,
            **others: Any,
        ) -> None:
            command(sampling=Sampling(cfg, top_k, top_p, smooth, guidance_scales, decoder), **others)

        return run

    filters = (
        click.option(
            "--cfg",
            type=Number(float, limits.CFG),
            default=defaults.cfg,
            help="Strength of classifier-free guidance: 0 is none, more is closer to the class.",
        ),
        click.option(
            "--top-k",
            type=Number(int, limits.TOP_K),
            help=f"Draw from the K likeliest tokens; 0 means all.  [default: {default}]",
        ),
        click.option(
            "--top-p",
            type=Number(float, limits.TOP_P),
            default=defaults.top_p,
            help="Draw from the likeliest tokens whose probabilities add up to P; 0 means all.",
        ),
    )
    shorter = (
        click.option(
            "--guidance-scales",
            type=Number(int, limits.GUIDANCE_SCALES),
            metavar="M",
            help="Guide the first M scales only; the others take half the work.  [default: all scales]",
        ),
        click.option(
            "--decoder",
            type=click.Choice(list(DECODERS)),
            default=defaults.decoder,
            help="Decoder of the image; the tiny one imitates the full one in a twentieth of the work.",
        ),
    )
    return together(*filters, *(shorter if shortcuts else ()), gathered)


drawing_options = together(
    click.option(
        "--seed",
        type=Number(int, limits.SEED),
        default=0,
        help="Seed of the first image. Image i is drawn with SEED + i.",
    ),
    sampling_options(Sampling()),
    click.option("--smooth", is_flag=True, help="Mix codes instead of drawing tokens, which gives smoother images."),
    click.option("--batch", type=Number(int, limits.BATCH), default=BATCH, help="Number of images drawn together."),
)


@dataclass(frozen=True)
class Loading:
    """How to load what draws: the options `loading_options`."""

    threads: int | None
    backend: str
    verify: bool
    draft: Path | None
    draft_scales: int | None

    def pipeline(self, bundle: Path) -> BasePipeline:
        """Load the bundle, and the draft if there is one. Raises BundleError, SettingsError."""
        from .drafted import DraftedPipeline
        from .pipeline import Pipeline

        if self.draft is None or self.draft_scales is None:
            return Pipeline(bundle, self.backend, self.threads, self.verify)
        return DraftedPipeline.load(self.draft, bundle, self.draft_scales, self.backend, self.threads, self.verify)

    def sources(self, *others: Path | None) -> list[Path]:
        """Return the files that must not be written: `others` and the draft."""
        return [path for path in (*others, self.draft) if path]


def _gathered(command: Command) -> Command:
    @functools.wraps(command)
    def run(
        *,
        threads: int | None,
        backend: str,
        verify: bool,
        draft: Path | None,
        draft_scales: int | None,
        **others: Any,
    ) -> None:
        if (draft is None) != (draft_scales is None):
            raise click.UsageError(BOTH)
        command(loading=Loading(threads, backend, verify, draft, draft_scales), **others)

    return run


loading_options = together(
    click.option("--draft", type=FILE, help="Larger bundle with the same VQVAE, which draws the first scales."),
    click.option(
        "--draft-scales",
        type=Number(int, limits.DRAFT_SCALES),
        metavar="N",
        help="Number of scales that the bundle of --draft draws.",
    ),
    click.option(
        "--threads",
        type=Number(int, limits.THREADS),
        help="Number of CPU threads.  [default: as many CPUs as this process may use]",
    ),
    click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="Inference engine to run on."),
    click.option("--verify/--no-verify", default=True, help="Check the SHA-256 of the bundle's files first."),
    _gathered,
)


@dataclass(frozen=True)
class Files:
    """The files that a drawing command writes: the image `out`, and optional others."""

    out: Path
    preview_dir: Path | None = None
    animation: Path | None = None
    dump: Path | None = None
    metadata: bool = True  # whether images hold the settings that drew them

    def check(self, *sources: Path) -> None:
        """Raise SettingsError if a file cannot be written or is one of `sources`. Call it before long work."""
        from .images import check_animation

        check_target(self.out, ".png", sources=sources)
        if self.dump:
            check_target(self.dump, ".npz", sources=sources)
        if self.animation:
            check_animation(self.animation, *sources)
        check_apart(self.out, self.dump, self.animation, self.preview_dir)
        if self.preview_dir:
            check_folder(self.preview_dir, previews(self.out, self.dump, self.animation), *sources)
            if PREVIEW.fullmatch(self.out.name) and followed(self.out).parent == followed(self.preview_dir):
                raise SettingsError(f"{self.out}: --preview-dir writes a file of this name; give another")

    def watch(self, advance: Callable[[float], None], with_logits: bool = False) -> Watch:
        """Return an `on_scale` hook that keeps what these files need of each scale.

        The hook calls `advance` with the number of tokens that were drawn.
        """
        return Watch(bool(self.animation or self.preview_dir), with_logits, advance)

    def checked(self, record: Record) -> Record:
        """Return the record. Raises SettingsError if it could not be read from `out`. Call it before long work."""
        if self.metadata:
            record.check_readable(self.out)
        return record

    def write(
        self, sheet: np.ndarray, result: Result, watch: Watch, record: Record, others_shown: bool = False
    ) -> None:
        """Write all files; `sheet` (H, W, 3) uint8 becomes `out`. `record` are the settings that drew it.

        With `others_shown` the sheet has also images that were not drawn, so it gets no record.
        """
        import numpy as np

        from .dump import write_dump
        from .images import grid, write_animation, write_png

        stored = record if self.metadata else None
        previews = [grid(np.concatenate(batches)) for batches in watch.previews.values()]
        if self.preview_dir:
            self.preview_dir.mkdir(exist_ok=True)
            for k, preview in enumerate(previews):
                write_png(self.preview_dir / f"scale_{k:02}.png", preview, stored)
        if self.animation:
            write_animation(self.animation, previews, stored)
        if self.dump:
            write_dump(self.dump, result, [np.concatenate(batches) for batches in watch.logits.values()])
        write_png(self.out, sheet, None if others_shown else stored)


metadata_option = click.option(
    "--metadata/--no-metadata", default=True, help="Store the settings in each PNG and WebP file."
)


def file_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `Files` to a command, which gets them as `files`."""

    @functools.wraps(command)
    def run(
        *,
        out: Path,
        preview_dir: Path | None,
        animation: Path | None,
        dump: Path | None,
        metadata: bool,
        **others: Any,
    ) -> None:
        command(files=Files(out, preview_dir, animation, dump, metadata), **others)

    result: Callable[..., None] = together(
        click.option("--out", type=FILE, default=Path("image.png"), help="PNG file to write."),
        click.option("--preview-dir", type=FILE, help="Also write the image after each scale to this folder."),
        click.option(
            "--animation",
            type=FILE,
            help="Also write the image after each scale as one animation, a .webp or .gif file.",
        ),
        click.option("--dump", type=FILE, help="Also write tokens and images to this .npz file."),
        metadata_option,
    )(run)
    return result


@dataclass
class Watch:
    """An `on_scale` hook. `previews` and `logits` map each scale to a list of arrays (B, …), one for each batch."""

    with_previews: bool
    with_logits: bool
    advance: Callable[[float], None]
    previews: dict[int, list[np.ndarray]] = field(default_factory=dict)
    logits: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def of(self, pipeline: BasePipeline) -> Watch | None:
        """Return the hook for this pipeline; None if it would only show progress and make a GPU stop for it."""
        wanted = self.with_previews or self.with_logits or not pipeline.launches_whole
        return self if wanted else None

    def __call__(self, view: ScaleView) -> None:
        if self.with_previews:
            self.previews.setdefault(view.index, []).append(view.preview())
        if self.with_logits:
            self.logits.setdefault(view.index, []).append(view.logits())
        self.advance(len(view.pictures) * view.side**2)
