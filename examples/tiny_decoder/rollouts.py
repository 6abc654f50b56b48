"""The teacher's rollouts: what a bundle generates is all the data that a tiny decoder learns from."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from runtime.backends.base import StageRun
from runtime.base_pipeline import ScaleView
from runtime.bundle.names import BRIDGE, F_HAT_OUT
from runtime.errors import SettingsError
from runtime.files.atomic import atomic_file
from runtime.pipeline import Pipeline
from runtime.progress import Progress, silent
from runtime.sampling import Sampling

PART = 64  # images in a file
BATCH = 8
CFG = (1.0, 6.0)  # guidance strengths to draw with: weaker guidance shows the decoder more kinds of images

Pairs = tuple[np.ndarray, np.ndarray]  # f_hat (N, Z, P, P) float32, images (N, H, W, 3) uint8


def rollouts(pipeline: Pipeline, images: int, folder: Path, progress: Progress = silent) -> Pairs:
    """Return f_hat (2N, Z, P, P) float32 and the decoder's images (2N, H, W, 3) uint8 of at least `images` rollouts.

    Image 2i is a finished one. Image 2i + 1 is the preview of the same rollout after a random scale. Files in `folder`
    keep them, so an interrupted call resumes. Raises SettingsError for a file that is truncated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for part in range(-(-images // PART)):
        path = folder / f"{part:04d}.npz"
        if not path.exists():
            f_hat, decoded = _draw(pipeline, range(part * PART, (part + 1) * PART), images, progress)
            with atomic_file(path) as file:
                np.savez(file, f_hat=f_hat, images=decoded)
        try:
            with np.load(path) as stored:
                parts.append((stored["f_hat"], stored["images"]))
        except (ValueError, TypeError, KeyError, EOFError, BadZipFile):
            raise SettingsError(f"{path}: truncated, or no rollouts; remove it to draw them again") from None
    f_hats, decoded_parts = zip(*parts, strict=True)
    return np.concatenate(f_hats), np.concatenate(decoded_parts)


def _draw(pipeline: Pipeline, seeds: range, images: int, progress: Progress) -> Pairs:
    chance = np.random.default_rng(seeds.start)
    scales, classes = len(pipeline.manifest.scales), pipeline.manifest.model.num_classes
    f_hats, decoded = [], []
    for seed in seeds[::BATCH]:
        progress("drawing", seed, images)
        chosen = int(chance.integers(scales - 1))
        states: dict[int, list[np.ndarray]] = {chosen: [], scales - 1: []}  # f_hat by scale, of each batch
        previews: list[np.ndarray] = []

        def keep_f_hat(run: StageRun, states: dict[int, list[np.ndarray]] = states) -> None:
            if run.graph == BRIDGE and run.scale in states:
                states[run.scale].append(run.outputs[F_HAT_OUT])

        def keep_preview(view: ScaleView, wanted: int = chosen, previews: list[np.ndarray] = previews) -> None:
            if view.index == wanted:
                previews.append(view.backend.decode())  # by the full decoder, also if there is a tiny one

        result = pipeline.generate(
            [int(label) for label in chance.integers(classes, size=BATCH)],
            seed=seed,
            sampling=Sampling(cfg=float(chance.uniform(*CFG))),
            batch=BATCH,
            on_scale=keep_preview,
            observe=keep_f_hat,
        )
        finished, early = (np.concatenate(states[scale]) for scale in (scales - 1, chosen))
        f_hats.append(_alternating(finished, early))
        decoded.append(_alternating(result.images, np.concatenate(previews)))
    return np.concatenate(f_hats), np.concatenate(decoded)


def _alternating(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (2N, …): the rows of two arrays (N, …) in turn."""
    return np.stack([first, second], 1).reshape(2 * len(first), *first.shape[1:])
