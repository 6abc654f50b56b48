"""Read files within limits: regular files of bounded size, documents of bounded depth, counts and numbers.

All files that come from outside are read through this module.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from .. import limits
from ..errors import BundleError, VarEdgeError
from ..limits import shown

MANY_DIGITS = re.compile(rb"\d{19}")  # an integer that may need more than 64 bits

Kind = type[VarEdgeError]  # the class of the error to raise


def open_file(path: Path, most: int | None = None, error: Kind = BundleError) -> BufferedReader:
    """Open the regular file at `path` for reading. Raises `error`, also if it has more than `most` bytes.

    The file is opened without blocking, because a FIFO without a writer would block for ever. Its type is checked
    after it is open, because another file could take the name between a check and the opening.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        raise error(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise error(f"{path}: expected a file, found a directory") from None
    except (OSError, ValueError) as reason:  # ValueError: a name with a NUL
        raise error(f"{path}: cannot be opened: {getattr(reason, 'strerror', None) or reason}") from None
    with contextlib.ExitStack() as undo:
        undo.callback(file.close)
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise error(f"{path}: expected a regular file, found {_kind(state.st_mode)}")
        if most is not None and state.st_size > most:
            raise error(f"{path}: expected at most {most} bytes, found {state.st_size}")
        undo.pop_all()
    return file


def read_bytes(path: Path, most: int, error: Kind = BundleError) -> bytes:
    """Return the content of a file. Raises `error`, also if it has more than `most` bytes."""
    with open_file(path, most, error) as file:
        try:
            data = file.read(most + 1)
        except OSError as reason:
            raise error(f"{path}: cannot be read: {reason.strerror}") from None
    if len(data) > most:  # the file grew, or reports no size, like files in /proc
        raise error(f"{path}: expected at most {most} bytes, found more")
    return data


def read_text(path: Path, most: int = limits.TEXT_BYTES, error: Kind = BundleError) -> str:
    """Return the content of a text file: UTF-8 without byte order mark and without NUL. Raises `error`."""
    return _text(read_bytes(path, most, error), str(path), error)


def read_json(path: Path, most: int = limits.JSON_BYTES, error: Kind = BundleError) -> Any:
    """Read the JSON file at `path`, see `parse_json`. Raises `error`."""
    return parse_json(read_bytes(path, most, error), str(path), error)


def parse_json(data: bytes, where: str, error: Kind = BundleError) -> Any:
    """Parse one JSON document.

    It must have no duplicate keys, no text after its end, only finite numbers, only integers of 64 bits, and no
    unpaired surrogates. Raises `error`; the message starts with `where`.
    """
    for mark, most in limits.JSON_COUNTS.items():
        if (count := data.count(mark.encode())) > most:
            raise error(f"{where}: expected at most {most} '{mark}' characters, found {count}")
    text = _text(data, where, error)
    integer = _integer if MANY_DIGITS.search(data) else None  # without `_integer` parsing is three times as fast
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_int=integer, parse_constant=_no_constant)
    except RecursionError:
        raise error(f"{where}: nested more than {limits.JSON_DEPTH} deep") from None
    except ValueError as reason:
        raise error(f"{where}: not valid JSON: {reason}") from None
    _check_values(document, where, error)
    return document


def read_toml(path: Path, error: Kind = BundleError) -> dict[str, Any]:
    """Read the TOML file at `path`. Raises `error`."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    text = read_text(path, limits.TOML_BYTES, error)
    if any(line.count(".") > limits.TOML_DOTS for line in text.splitlines()):
        raise error(f"{path}: expected at most {limits.TOML_DOTS} dots in a line")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise error(f"{path}: nested more than {limits.JSON_DEPTH} deep") from None
    except ValueError as reason:  # also raised for a number with too many digits
        raise error(f"{path}: not a TOML file: {reason}") from None
    _check_values(values, str(path), error)
    result: dict[str, Any] = values
    return result


def _text(data: bytes, where: str, error: Kind) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise error(f"{where}: not UTF-8 at byte {reason.start}") from None
    for unwanted, name in (("\ufeff", "a byte order mark"), ("\0", "NUL")):
        if text.startswith(unwanted) or (unwanted == "\0" and unwanted in text):
            raise error(f"{where}: expected UTF-8 text without {name}")
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {shown(twice)}")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or (value := int(digits)) not in limits.INTEGER:  # int() is slow for many digits
        raise ValueError("an integer of more than 64 bits")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_values(document: Any, where: str, error: Kind) -> None:
    """Check the depth, the numbers and the texts of a parsed document. The TOML parser checks no numbers."""
    level: list[Any] = [[document]]
    for _ in range(limits.JSON_DEPTH + 1):
        inner: list[Any] = []
        for group in level:
            kinds = set(map(type, group))
            if float in kinds and not all(map(math.isfinite, (value for value in group if type(value) is float))):
                raise error(f"{where}: holds a number that is not finite")
            integers = [value for value in group if type(value) is int] if int in kinds else [0]
            if min(integers) not in limits.INTEGER or max(integers) not in limits.INTEGER:
                raise error(f"{where}: holds an integer of more than 64 bits")
            if str in kinds and not all(map(_is_text, group)):
                raise error(f"{where}: holds an unpaired surrogate")
            if list in kinds or dict in kinds:
                inner += (value for value in group if type(value) is list)
                inner += (part for value in group if type(value) is dict for part in (value.keys(), value.values()))
        level = inner
    if level:
        raise error(f"{where}: nested more than {limits.JSON_DEPTH} deep")


def _is_text(value: object) -> bool:
    try:
        return not isinstance(value, str) or value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _kind(mode: int) -> str:
    names = {stat.S_ISFIFO: "a FIFO", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in names.items() if is_kind(mode)), "a directory")
