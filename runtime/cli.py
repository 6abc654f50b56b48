"""What every command does the same way: its options, its errors and its warnings."""

from __future__ import annotations

import functools
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, ParamSpec

import click

from . import limits
from .errors import VarEdgeError, one_line
from .files.unfinished import remove_unfinished
from .limits import Range, shown
from .optional import advice

P = ParamSpec("P")
ENDS: dict[int, bytes] = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    ENDS[signal.SIGHUP] = b"terminal closed"


class _Command(click.Command):
    """A command, or a group of them, whose wrong usage is one line on stderr and exit code 2."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        _print_everything()
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            name = info_name or str(self.name)
            _fail_usage(error, f"{parent.command_path} {name}" if parent else name)


class Group(_Command, click.Group):
    """Commands under one name. Ask for its help to list them."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            _fail_usage(error, ctx.command_path)


command = functools.partial(click.command, cls=_Command, context_settings={"show_default": True})


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only in later releases of click
    """A number in a range, written in plain digits: "1_000" and digits of other scripts are none."""

    def __init__(self, kind: type[int] | type[float], allowed: Range) -> None:
        self.name, self._kind, self._allowed = "integer" if kind is int else "float", kind, allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        text = str(value).strip()
        plain = text.isascii() and "_" not in text and len(text) < 100
        try:
            number = self._kind(text) if plain else None
        except ValueError:
            number = None
        vanished = number == 0 and re.search("[1-9]", re.split("[eE]", text)[0])  # 1e-400 is no 0, which may mean "all"
        if vanished or number not in self._allowed:
            kind = "an integer" if self._kind is int else "a number"
            self.fail(f"expected {kind} of {self._allowed}, found {shown(text)}", param, ctx)
        return number  # type: ignore[return-value]


class _File(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) == "" or "\0" in str(value):
            self.fail(f"expected a path, found {shown(str(value))}", param, ctx)
        return super().convert(value, param, ctx)


BOTH = "Expected both of '--draft' and '--draft-scales', or neither."  # of every command that drafts
FILE = _File(path_type=Path)


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turns an expected error into one line on stderr and exit code 1, a signal into exit code 128 + its number."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _ended_by_signals():
                command(*args, **kwargs)
        except click.UsageError as error:
            _fail_usage(error, click.get_current_context().command_path)
        except VarEdgeError as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except ModuleNotFoundError as error:
            fail(advice(error))
        except MemoryError:
            fail("out of memory")

    return run


def _fail_usage(error: click.UsageError, command_path: str) -> NoReturn:
    fail(f"{error.format_message().rstrip('.')}; {command_path} --help lists the options", 2)


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with one line on stderr."""
    print(one_line(f"Error: {message}"), file=sys.stderr)
    sys.exit(code)


def warn(note: str) -> None:
    """Print one line on stderr and go on."""
    print(one_line(f"Warning: {note}"), file=sys.stderr)


def _print_everything() -> None:
    """A name that is no UTF-8, or that the terminal's encoding lacks, is printed with escapes: it is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    parts = [part.strip() for part in text.split(",")]
    sizes = tuple(dict.fromkeys(int(part) for part in parts if re.fullmatch("[0-9]{1,9}", part)))
    if len(sizes) < len(set(parts)) or len(sizes) > limits.BATCHES or not all(size in limits.BATCH for size in sizes):
        expected = f"at most {limits.BATCHES} numbers of {limits.BATCH} such as 1,8"
        raise click.UsageError(f"--batches: expected {expected}, found {shown(text)}.")
    return sizes
