"""The errors that a user can act on. Each message is one printable line: what, where, expected, found, what to do."""

import re
from collections.abc import Callable
from typing import TypeVar

LENGTH = 300  # characters of a message
T = TypeVar("T")
# Control characters, line separators, marks that reverse the direction of text, surrogates.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str, length: int = LENGTH) -> str:
    """Return the text without line breaks and terminal escapes, and without the middle if it exceeds `length`."""
    kept = length - 100
    if len(text) > 4 * length:  # cut first, because the next steps are slow for a very long text
        text = f"{text[: 2 * length]}{text[-2 * length :]}"
    text = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], " ".join(text.split()))
    return text if len(text) <= length else f"{text[: kept - 3]} … {text[-100:]}"


class VarEdgeError(Exception):
    """The base class of all errors that this project raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class BundleError(VarEdgeError):
    """A bundle is missing, damaged, or differs from its manifest."""


class NumericError(VarEdgeError):
    """A bundle computes NaN or infinity: a number overflows, or the weights are damaged."""


class SettingsError(VarEdgeError):
    """The caller gave a value that cannot be used."""


class OutOfMemoryError(VarEdgeError):
    """The memory of the GPU, or of the machine, does not suffice. Fewer images at once need less."""


def with_room(make_room: Callable[[], object] | None, work: Callable[[], T]) -> T:
    """Return what `work` returns. If memory runs out, call `make_room`, unless it is None, and try again.

    Raises OutOfMemoryError.
    """
    try:
        return work()
    except OutOfMemoryError:
        if make_room is None:
            raise
    make_room()  # the error is gone by now: its traceback would keep the memory
    return work()


# How ONNX Runtime, TensorRT, CUDA and the system say that memory has run out, which they tell only as text.
OUT_OF_MEMORY = re.compile(
    "bad_alloc|failed to allocate memory|smaller than requested bytes|out of memory|OutOfMemory|cannot allocate memory"
    "|ALLOC_FAILED",
    re.IGNORECASE,
)


DRAW_FEWER = "draw fewer pictures at once (--batch 1)"


def engine_error(message: str) -> VarEdgeError:
    """Return the error for an inference engine's own message, of which only the text tells whether memory ran out."""
    if tells_out_of_memory(message):
        return OutOfMemoryError(f"{message}; {DRAW_FEWER}")
    return VarEdgeError(message)


def tells_out_of_memory(text: str) -> bool:
    """Return whether the message of a library says that memory has run out."""
    return OUT_OF_MEMORY.search(text) is not None
