"""The training loop of all stages: AdamW, cosine schedule, averaged weights, checkpoints that resume exactly."""

from __future__ import annotations

import copy
import io
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import SettingsError
from runtime.files.atomic import atomic_file

Batch = tuple[Tensor, ...]  # the arguments of a stage's `loss`; the last one is the labels (B,)
_WARMUP = 0.03  # share of the budget
_AVERAGE_DECAY = 0.998


class Stage(nn.Module, ABC):
    """A model to train, with its loss. Its state is its parameters and buffers."""

    @abstractmethod
    def loss(self, *batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and figures for the progress line."""

    def maintain(self, average: Stage, step: int) -> None:
        """Do maintenance after an optimizer step; a jump in the weights must be copied into `average`."""

    @abstractmethod
    def validate(self, *batch: Tensor) -> dict[str, float]:
        """Return figures on held-out images, for the log."""


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or a number of minutes, with a schedule that follows the clock."""

    steps: int | None = None
    minutes: float | None = None

    def used(self, step: int, seconds: float) -> float:
        """Return the share of the budget that is spent, 1 at the end."""
        return step / self.steps if self.steps is not None else seconds / 60 / (self.minutes or 1.0)


@dataclass(frozen=True)
class Settings:
    """The settings of optimizer, log and checkpoints."""

    learning_rate: float
    weight_decay: float
    seed: int = 0
    log_every: int = 50
    save_every: float = 120.0  # seconds
    validate_every: float = 600.0  # seconds


def train(
    stage: Stage,
    draw: Callable[[torch.Generator], Batch],
    held_out: Batch,
    budget: Budget,
    settings: Settings,
    checkpoint: Path,
    log: Callable[[str], None] = print,
    origin: str = "",
) -> Stage:
    """Train `stage` until the budget is spent. If `checkpoint` exists, the training resumes from it.

    `origin` is the hash of what the training data was made with; the checkpoint keeps it. Raises SettingsError for a
    checkpoint that is truncated, of another model, or of another origin.

    Each step seeds torch with its number, so a resumed run draws the same batches as an uninterrupted one.

    Returns:
        The stage with averaged weights.
    """
    average, optimizer = copy.deepcopy(stage).requires_grad_(False), _optimizer(stage, settings.weight_decay)
    step, seconds = 0, 0.0
    if checkpoint.exists():
        with _reading(checkpoint):
            state = _read(checkpoint, origin)
            stage.load_state_dict(state["stage"])
            average.load_state_dict(state["average"])
            if state["optimizer"]:
                optimizer.load_state_dict(state["optimizer"])
            step, seconds = state["step"], state["seconds"]
        log(f"resumed {checkpoint} at step {step}")

    def save() -> None:
        _write(checkpoint, stage, average, optimizer, step, seconds, origin)

    def validate() -> None:
        log(f"step {step} held-out {_line(average.eval().validate(*held_out))}")

    started = last_log = last_save = last_validation = time.monotonic()
    before, pictures = seconds, 0
    while (used := budget.used(step, seconds)) < 1:
        generator = torch.manual_seed(settings.seed * 1_000_003 + step)
        batch = draw(generator)
        loss, figures = stage.train().loss(*batch)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(used)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
        step += 1
        _update_average(average, stage, step)
        stage.maintain(average, step)

        now = time.monotonic()
        seconds, pictures = before + now - started, pictures + len(batch[-1])
        if step % settings.log_every == 0:
            rate = pictures / (now - last_log)
            log(f"step {step} {used:.1%} loss {loss.item():.4f} {_line(figures)} {rate:.0f} images/s")
            last_log, pictures = now, 0
        if now - last_save > settings.save_every:
            save()
            last_save = now
        if now - last_validation > settings.validate_every:
            validate()
            last_validation = time.monotonic()
    save()
    validate()
    return average.eval()


def load_average(stage: Stage, checkpoint: Path, origin: str = "") -> None:
    """Load the averaged weights of a checkpoint into `stage`. Raises SettingsError as `train` does."""
    with _reading(checkpoint):
        stage.load_state_dict(_read(checkpoint, origin)["average"])


def begin(stage: Stage, checkpoint: Path, origin: str = "") -> None:
    """Write a checkpoint from which `train` trains the weights of `stage` further.

    It counts as one step, since the maintenance after the first one is for weights that are not trained.
    """
    _write(checkpoint, stage, stage, None, 1, 0.0, origin)


def _optimizer(stage: Stage, weight_decay: float) -> torch.optim.AdamW:
    decayed = [p for p in stage.parameters() if p.dim() > 1]
    others = [p for p in stage.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError):
        reason = "truncated, or a checkpoint of another model; remove it to train from the start"
        raise SettingsError(f"{checkpoint}: {reason}") from None


def _read(checkpoint: Path, origin: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    if state.get("origin", "") != origin:
        raise SettingsError(f"{checkpoint}: trained on tokens of another VQVAE; remove it to train from the start")
    return state


def _write(
    checkpoint: Path,
    stage: Stage,
    average: Stage,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    seconds: float,
    origin: str,
) -> None:
    state = {
        "stage": stage.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer and optimizer.state_dict(),
    }
    data = io.BytesIO()  # torch.save hides the error of a full disk
    torch.save(state | {"step": step, "seconds": seconds, "origin": origin}, data)
    with atomic_file(checkpoint) as file:
        file.write(data.getbuffer())


def _schedule(used: float) -> float:
    """Return the factor of the learning rate: a linear warm-up, then a cosine down to 2 %."""
    if used < _WARMUP:
        return (used + 1e-3) / _WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (used - _WARMUP) / (1 - _WARMUP)))


def _update_average(average: nn.Module, stage: nn.Module, step: int) -> None:
    decay = min(_AVERAGE_DECAY, (1 + step) / (10 + step))  # small at first, while the weights still change fast
    ours, theirs = list(average.parameters()), [p.detach() for p in stage.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - decay)
    for mine, other in zip(average.buffers(), stage.buffers(), strict=True):
        mine.copy_(other)


def _line(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in figures.items())
