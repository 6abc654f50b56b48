"""The limits of all input: one table for manifest, recipe, files and options, documented in docs/manifest.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import cast

from .errors import UNPRINTABLE


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; with `above`, without `least` itself. Not-a-number is in no range."""

    least: float
    most: float
    above: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):  # Real includes numpy's numbers
            return False
        number = cast(float, value)
        return bool((self.least < number if self.above else self.least <= number) and number <= self.most)

    def __str__(self) -> str:
        return f"{'above ' if self.above else ''}{self.least} to {self.most}"


class Integers(Range):
    """A range of integers, Python's or numpy's."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, Integral) and super().__contains__(value)


JSON_BYTES = 16 << 20
JSON_DEPTH = 64
JSON_COUNTS = {",": 1 << 22, "[": 1 << 19, "{": 1 << 19, ":": 1 << 19, '"': 1 << 21}  # memory and time grow with these
CALIBRATION_BYTES = 64 << 20  # histograms of 36 blocks at ten scales fill 16 MiB
TOML_BYTES = 64 << 10
TOML_DOTS = 128  # in a line: the parser's time grows with the square of their number
HEADER_BYTES = 100_000_000  # of a safetensors file; the limit of the safetensors library
TEXT_BYTES = 16 << 20  # of a list of class names
GRAPH_BYTES = 2 << 30  # of an ONNX file: protobuf's own limit
PICTURE_BYTES = 1 << 30
PIXELS = 89_000_000
RECORD_BYTES = 1 << 20  # of the settings in a picture: Pillow's own limit of a compressed text
INTEGER = Range(-(2**63), 2**63 - 1)
NAME_BYTES = 1024
CLASS_NAME_LENGTH = 1024

# The model, under the names of recipe and manifest.
MODEL: dict[str, Range | tuple[int, ...]] = {
    "depth": Range(1, 256),
    "heads": Range(1, 1024),
    "width": Range(1, 65536),
    "vocab_size": Range(64, 2**20),
    "code_size": Range(1, 4096),
    "num_classes": Range(1, 2**20),
    "image_size": Range(1, 16384),
    "ch": Range(1, 4096),
    "num_res_blocks": Range(1, 64),
    "share_quant_resi": Range(0, 64),
    "quant_resi": Range(0, 1),
    "mlp_ratio": Range(0, 64, above=True),
    "norm_eps": Range(0, 1, above=True),
    "quant_conv_ks": (1, 3, 5, 7),
}
LISTS = {"patch_nums": (Range(2, 64), Range(1, 1024)), "ch_mult": (Range(1, 16), Range(1, 64))}  # length, each entry
TOKENS = 65536  # of all scales together
COUNT = 4096  # graphs; files; tensors of a graph
RANK = 8
SIZE = Range(0, 2**31 - 1)  # of an axis

# Settings and options.
CFG = Range(0, 1000)
TOP_K = Integers(0, 2**20)
TOP_P = Range(0, 1)
LEAST_TOP_P = 1e-6  # the least value above 0
GUIDANCE_SCALES = Integers(1, 64)  # at most the scales of the model
DRAFT_SCALES = Integers(0, 64)  # likewise
BATCH = Integers(1, 1024)
BATCHES = 64  # sizes that engines are built for
PICTURES = Integers(1, 2**20)
SERVED = Integers(1, 64)  # images of a request to a server
TIMEOUT = Range(0, 86400, above=True)  # seconds that a client waits for a response
PICTURES_BEFORE = Range(0, 2**20)  # in a shared run
THREADS = Integers(1, 1024)
PORT = Integers(1, 65535)
SEED = Integers(0, 2**64 - 1)
STORED_SEED = Range(0, 2**63 - 1)  # of weights and calibrations: JSON files keep it
SET_SEED = Integers(0, 2**24 - 1)  # of an evaluation set: the other 40 bits are the class and the index
HISTOGRAM = Range(2.0**-20, 2.0**127)  # the largest magnitude that a histogram covers
CHANNEL_SCALING = Range(0, 1e30, above=True)  # the divisor of a channel
COLLECTED = 2**22  # index of the last calibration image
KL = Range(0, 100, above=True)  # nats per token
ALPHA = Range(0, 1)
WORKSPACE = Range(1, 2**20)  # MiB
VERIFIED = Range(1, 4096)  # images
RUNS = Range(1, 10**6)  # timed
TESTED_TOKENS = Range(1, 10**6)  # at every scale


def model_fault(values: Mapping[str, object]) -> str | None:
    """Return what is wrong with the sizes of a model, such as "depth: expected 1 to 256, found 20000", or None."""
    for name, allowed in MODEL.items():
        if name in values and values[name] not in allowed:
            listed = ", ".join(map(str, allowed)) if isinstance(allowed, tuple) else allowed
            return f"{name}: expected {listed}, found {shown(values[name])}"
    for name, (length, each) in LISTS.items():
        entries = values.get(name)
        if not isinstance(entries, Sequence):
            continue
        if len(entries) not in length:
            return f"{name}: expected {length} entries, found {len(entries)}"
        if wrong := [entry for entry in entries if entry not in each]:
            return f"{name}: expected entries of {each}, found {shown(wrong[0])}"
        if name == "patch_nums" and (tokens := sum(side * side for side in entries)) > TOKENS:
            return f"{name}: expected at most {TOKENS} tokens of all scales together, found {tokens}"
    return None


def name_fault(text: str) -> str | None:
    """Return what is wrong with the name of a tensor, a graph or a file, or None."""
    if not text or len(text.encode("utf-8", "surrogatepass")) > NAME_BYTES or UNPRINTABLE.search(text):
        return f"expected a printable name of 1 to {NAME_BYTES} bytes, found {shown(text)}"
    return None


def shown(value: object) -> str:
    """Return a value as text for a message; a long value is shortened."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if isinstance(value, (str, bytes)):
        value = value[:60]
    elif isinstance(value, (list, tuple, dict)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return f"{value!r:.60}"
