"""Errors a user can act on. Each message is one printable line: what, where, expected, found, what to do."""

import re

LENGTH = 300  # characters of a message
# Control characters, line separators, marks that reverse the text behind them, halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str, length: int = LENGTH) -> str:
    """The text without line breaks and terminal escapes; of a long one the beginning and the end."""
    kept = length - 100
    if len(text) > 4 * length:  # before anything that takes time
        text = f"{text[: 2 * length]}{text[-2 * length :]}"
    text = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], " ".join(text.split()))
    return text if len(text) <= length else f"{text[: kept - 3]} … {text[-100:]}"


class VarEdgeError(Exception):
    """Base of every error this project raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class BundleError(VarEdgeError):
    """A bundle is missing, damaged, or not what its manifest says."""


class NumericError(VarEdgeError):
    """A bundle computes NaN or infinity: its numbers overflow, or its weights are damaged."""


class SettingsError(VarEdgeError):
    """A value the caller gave cannot be used."""
