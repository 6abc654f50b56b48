"""What every command does the same way: its errors, and its progress bar."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, ParamSpec

import click

from .errors import VarEdgeError
from .unfinished import remove_unfinished

if TYPE_CHECKING:
    from rich.progress import Progress

P = ParamSpec("P")
ENDS: dict[int, bytes] = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    ENDS[signal.SIGHUP] = b"terminal closed"


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turns an expected error into one line on stderr and exit code 1, a signal into exit code 128 + its number."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _ended_by_signals():
                command(*args, **kwargs)
        except (VarEdgeError, OSError) as error:
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(1)
        except ModuleNotFoundError as error:
            print(f"Error: {error}; this command needs the export extra: pip install '.[export]'", file=sys.stderr)
            sys.exit(1)
        except MemoryError:
            print("Error: out of memory", file=sys.stderr)
            sys.exit(1)

    return run


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C, TERM and a closed terminal end the process where it is, after removing what is half written.

    As an exception it would pass through C++ that cannot take one, and be dropped where a destructor runs.
    """

    def end(number: int, frame: FrameType | None) -> None:
        remove_unfinished()
        clear_line_and_show_cursor = b"\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else b""  # a progress bar hides it
        with suppress(OSError):  # of a terminal that is closed
            os.write(2, clear_line_and_show_cursor + ENDS[number] + b"\n")
        os._exit(128 + number)

    in_charge = threading.current_thread() is threading.main_thread()
    usual = (signal.default_int_handler, signal.SIG_DFL)  # others belong to the caller: nohup, a test, an application
    found = {number: signal.getsignal(number) for number in ENDS if in_charge}
    ours = {number: handler for number, handler in found.items() if handler in usual}
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def batch_sizes(text: str) -> tuple[int, ...]:
    """The value of --batches, "1,8": each size once, in the order given. Raises click.UsageError."""
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.UsageError(f"--batches: expected numbers from 1 up such as 1,8, found {text!r}.")
    return sizes


def progress_bar(unit: str | None = None) -> Progress:
    """A bar on stderr, gone when done; nothing where stderr is no terminal. With `unit`: how many, and a second."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f} {unit}/s" if task.speed else "")

    console = Console(stderr=True)
    columns = [*Progress.get_default_columns(), *([MofNCompleteColumn(), Rate()] if unit else [])]
    period = 600 if unit else 30  # seconds whose mean is the speed: pictures come in batches
    return Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=period
    )
