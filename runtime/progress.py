"""The type of progress callbacks, and the progress bar of the commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float, int], None]  # called with the stage of the work, the amount done, the total amount


def silent(stage: str, done: float, total: int) -> None:
    """Show nothing: the default of everything that reports its progress."""


def counter(progress: Progress, stage: str, total: int) -> Callable[..., None]:
    """Return a function that adds its argument, by default 1, to the amount done in this stage, and reports it."""
    done = 0.0
    progress(stage, done, total)

    def advance(amount: float = 1) -> None:
        nonlocal done
        done += amount
        progress(stage, done, total)

    return advance


@contextmanager
def progress_bar(unit: str | None = None) -> Iterator[Progress]:
    """Show a bar on stderr that disappears when the work is done; show nothing where stderr is no terminal.

    With `unit`, such as "images", the bar also shows how many are done and how many per second.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, ProgressColumn, Task
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f} {unit}/s" if task.speed else "")

    console = Console(stderr=True)
    columns = [*Bar.get_default_columns(), *([MofNCompleteColumn(), Rate()] if unit else [])]
    period = 600 if unit else 30  # seconds whose mean is the speed: images come in batches
    terminal = console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=not terminal, speed_estimate_period=period) as bar:
        task = bar.add_task("starting", total=None)

        def progress(stage: str, done: float, total: int) -> None:
            if stage != bar.tasks[0].description:
                bar.reset(task, description=stage, total=total)  # the speed is that of the new stage
            bar.update(task, completed=done, total=total)

        yield progress
