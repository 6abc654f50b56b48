"""Parse JSON into frozen dataclasses, and refuse everything that they do not declare."""

from __future__ import annotations

import dataclasses
import os
import types
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .. import limits
from ..errors import BundleError
from ..files.bounded import read_json
from ..limits import shown

T = TypeVar("T")


def load(kind: type[T], path: Path, schema_version: int, absent: str, advice: str, most: int = limits.JSON_BYTES) -> T:
    """Read the JSON file at `path` as a `kind` of this schema version, of at most `most` bytes.

    Raises BundleError; its message is `absent` if there is no file, and ends with `advice` for another version.
    """
    if not os.path.lexists(path):
        raise BundleError(absent)
    document = read_json(path, most)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != schema_version:
        raise BundleError(f"{path}: expected schema_version {schema_version}, found {shown(version)}; {advice}")
    return parse(kind, document, str(path))


def parse(kind: type[T], value: Any, where: str) -> T:
    """Convert parsed JSON to a `kind`.

    A kind is a dataclass, an Enum of strings, int, float, str, bool, Any, a union of these, tuple[X, ...] or
    dict[str, X].

    Raises BundleError for an unknown key, a missing key or a wrong type; the message gives the place as `where.key[2]`.
    """
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = {member.value: member for member in kind}
        if isinstance(value, str) and value in known:
            return known[value]
        raise BundleError(f"{where}: expected one of {', '.join(known)}, found {shown(value)}")
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(value, (list, dict)) and len(value) > limits.COUNT and not _is_plain(kind, value):
        raise BundleError(f"{where}: expected at most {limits.COUNT} entries, found {len(value)}")
    if origin is tuple and isinstance(value, list):
        if _is_plain(kind, value):
            return tuple(value)  # type: ignore[return-value]
        return tuple(parse(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))  # type: ignore[return-value]
    if origin is dict and isinstance(value, dict):
        return {key: parse(args[1], item, f"{where}.{key:.60}") for key, item in value.items()}  # type: ignore[return-value]
    allowed = args if origin in (Union, types.UnionType) else (kind,)
    for option in filter(dataclasses.is_dataclass, allowed):
        if isinstance(value, dict):
            return parse(option, value, where)  # type: ignore[arg-type,return-value]
    if kind is Any or type(value) in allowed:  # not isinstance: a bool is not accepted as an integer
        result: T = value
        return result
    if float in allowed and type(value) is int:
        return float(value)  # type: ignore[return-value]
    raise BundleError(f"{where}: expected {_name(kind)}, found {shown(value)}")


def _is_plain(kind: Any, values: Any) -> bool:
    """Return whether a list can be taken as it is: any type is allowed, or all its entries have the one type asked for.

    This avoids a call of `parse` for each entry of a long list.
    """
    return kind is Any or (get_origin(kind) is tuple and set(map(type, values)) <= {get_args(kind)[0]})


def _parse_dataclass(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, dict):
        raise BundleError(f"{where}: expected an object, found {shown(value)}")
    hints = get_type_hints(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        raise BundleError(f"{where}: unknown key(s) {', '.join(unknown):.100}")
    if missing := sorted(hints.keys() - value.keys()):
        raise BundleError(f"{where}: missing key(s) {', '.join(missing)}")
    return kind(**{key: parse(hint, value[key], f"{where}.{key}") for key, hint in hints.items()})


def _name(kind: Any) -> str:
    names: dict[Any, str] = {  # all others are objects
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "null",
        tuple: "a list",
    }
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return " or ".join(names.get(get_origin(kind) or kind, "an object") for kind in kinds)
