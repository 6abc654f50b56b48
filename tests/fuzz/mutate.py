"""Damage good files at random; the same random generator gives the same files."""

from __future__ import annotations

import json
from random import Random
from typing import Any

VALUES: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x" * 5000, "\x1b[31m", "\u202e", "../x"]
VALUES += [[], {}, [[]], [0, 10**13], [1] * 5000, {"a": {}}, "\ud800", "NaN", float("nan"), float("inf"), "{}\n"]
PIECES = [
    b"[" * 3000,
    b'{"a":' * 300,
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\0",
    b'"',
    b",",
    b"}",
]
PIECES += [b"\\ud800", b"-", b"\r\n", b"\x1b[2J", b"\xff" * 8, b"a." * 200, b"0x" + b"f" * 90, b"=", b"\xe2\x80\xa8"]


def mutated(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Return `data` damaged in one to four places."""
    for _ in range(random.choice((1, 1, 2, 4))):
        data = random.choice((_flip, _cut, _repeat, _insert, _splice, _value, _value))(data, others, random)
    return data[: 1 << 20]


def _flip(data: bytes, others: list[bytes], random: Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(random.randint(1, 8)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _cut(data: bytes, others: list[bytes], random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:] if random.random() < 0.5 else data[:end]


def _repeat(data: bytes, others: list[bytes], random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[start:end] * random.choice((2, 3, 50)) + data[end:]


def _insert(data: bytes, others: list[bytes], random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + random.choice(PIECES) + data[random.choice((start, end)) :]


def _splice(data: bytes, others: list[bytes], random: Random) -> bytes:
    return data[: _span(data, random)[0]] + (other := random.choice(others))[_span(other, random)[0] :]


def _value(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Replace a value of a JSON document, also if it follows eight bytes with its length, as in safetensors."""
    skipped = 0 if data[:1] in b"{[" else 8
    try:
        document, end = json.JSONDecoder().raw_decode(data[skipped:].decode("latin-1"))
    except (ValueError, RecursionError):
        return _flip(data, others, random)
    places = [(document, key) for key in _keys(document)]
    for holder, key in places:
        if len(places) < 3000:
            places += [(holder[key], inner) for inner in _keys(holder[key])]
    if not places:
        return _flip(data, others, random)
    holder, key = random.choice(places)
    if isinstance(holder, dict) and random.random() < 0.2:
        holder[str(random.choice(VALUES))] = holder.pop(key)
    else:
        holder[key] = random.choice(VALUES)
    text = json.dumps(document).encode()
    length = len(text).to_bytes(8, "little") if skipped else b""
    return length + text + data[skipped + end :]


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def _span(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 4, 16, 200)))
