"""What every command does the same way: its errors, and its progress bar."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

import click

from .errors import VarEdgeError

if TYPE_CHECKING:
    from rich.progress import Progress

P = ParamSpec("P")


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turns an expected error into one line on stderr and exit code 1, Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        sys.unraisablehook = _interrupt_again
        try:
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
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops exceptions in destructors and weak references' callbacks: a Ctrl-C there has to come once more."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()  # at once, it would be dropped again
    else:
        sys.__unraisablehook__(unraisable)


def batch_sizes(text: str) -> tuple[int, ...]:
    """The value of --batches, "1,8": each size once, in the order given. Raises click.UsageError."""
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.UsageError(f"--batches: expected numbers from 1 up such as 1,8, found {text!r}.")
    return sizes


def progress_bar() -> Progress:
    """A bar on stderr, gone when done; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
