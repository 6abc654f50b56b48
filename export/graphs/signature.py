"""The signature of a graph: all that its writers need to know about it."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.bundle.manifest import Tensor


@dataclass(frozen=True)
class Signature:
    """A graph's name, inputs and outputs, in this order."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
