"""Read one checkpoint file of any kind: find the VAR and the VQVAE in it, at whatever depth they are nested."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from export.checkpoint.pickled import StandIn, Stored, read_pickled
from runtime.bundle.weight_file import read_header
from runtime.errors import VarEdgeError
from runtime.files.bounded import open_file
from runtime.limits import HEADER_BYTES

MARKS = {"var": "pos_1LC", "vae": "quantize.embedding.weight"}  # a tensor that only this model has
NAMES = {"var": "VAR", "vae": "VQVAE"}
WRAPPERS = ("module", "_orig_mod")  # DistributedDataParallel and torch.compile put these before names, at any depth
AVERAGED = re.compile(r"(^|[._])ema", re.I)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SAFETENSORS |= {"I64": torch.int64}  # for lvl_1L
LONGEST_NAME = 200  # characters of a tensor's name with the keys of all containers around it


class CheckpointError(VarEdgeError):
    """A checkpoint is missing, unreadable, or belongs to another model."""


@dataclass(frozen=True)
class Part:
    """One model in a file: its tensors by their official names, and where they are, such as "trainer.var_wo_ddp"."""

    where: str
    tensors: dict[str, Stored]


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a file: all copies of both models, and the settings that a trainer saved with them."""

    path: Path
    parts: dict[str, list[Part]]  # "var" and "vae"
    settings: dict[str, Any] = field(default_factory=dict)

    def part(self, kind: str) -> Part | None:
        """Return the only copy of the model, or the averaged one (EMA) of two copies; None if there is no copy.

        Raises CheckpointError if several copies could be meant.
        """
        parts = self.parts[kind]
        averaged = [part for part in parts if AVERAGED.search(part.where)]
        chosen = averaged if len(averaged) == 1 and len(parts) == 2 else parts
        if len(chosen) > 1:
            found = ", ".join(part.where or "the file's top" for part in parts)
            raise CheckpointError(
                f"{self.path}: expected one {NAMES[kind]}, found {len(parts)} ({found:.100});"
                " save the one to export to a file of its own"
            )
        return chosen[0] if chosen else None


def read_checkpoint(path: Path) -> CheckpointFile:
    """Open a .safetensors or PyTorch file; its content decides which it is. Raises CheckpointError."""
    try:
        root = _open(path)
        tensors, settings = _flattened(root)
        parts = {kind: [Part(where, found) for where, found in _models(tensors, mark)] for kind, mark in MARKS.items()}
    except CheckpointError:
        raise
    except Exception as error:  # readers raise errors of any type on a damaged file
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it cannot be opened, which is not what a place outside of the file is
        text = re.sub(r"[^ -~]", "?", (str(error).splitlines() or [""])[0])
        raise CheckpointError(
            f"{path}: not a readable checkpoint: truncated or of another kind ({type(error).__name__}: {text:.100});"
            " download it again"
        ) from None
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; save the model's state_dict()")
    return CheckpointFile(path, parts, settings)


def is_html(path: Path) -> bool:
    """Return whether the file is an HTML page instead of a checkpoint. Raises CheckpointError."""
    with open_file(path, error=CheckpointError) as file:
        return file.read(64).lstrip()[:1] == b"<"


def _open(path: Path) -> Any:
    if is_html(path):
        raise CheckpointError(
            f"{path}: expected a checkpoint, found an HTML page, maybe from a proxy or a login page; download it again"
        )
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: expected a checkpoint, found a Git LFS pointer; run git lfs pull")
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header <= min(HEADER_BYTES, path.stat().st_size - 8):
        return _open_safetensors(path)
    return read_pickled(path)


def _open_safetensors(path: Path) -> dict[str, Stored]:
    header = read_header(path, CheckpointError)
    file = safetensors.safe_open(path, framework="pt")

    def reader(name: str) -> Callable[[], Tensor]:
        return lambda: file.get_tensor(name)

    return {
        name: Stored(tensor.shape, SAFETENSORS.get(tensor.dtype), reader(name), f"of type {tensor.dtype}")
        for name, tensor in header.items()
    }


def _flattened(root: Any) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return all tensors in nested containers by their paths of keys without wrappers, and a trainer's settings."""
    tensors: dict[str, Stored] = {}
    settings: dict[str, Any] = {}
    seen: set[int] = set()  # visit each container once: they may hold each other

    def visit(value: Any, path: str) -> None:
        if isinstance(value, Stored):
            tensors[path] = value if path not in tensors else Stored((), None, None, "that the file holds twice")
            return
        if isinstance(value, StandIn):
            value = value.items  # the items of a dictionary of the trainer's own class
        if not isinstance(value, (dict, list, tuple)) or id(value) in seen or len(path) > LONGEST_NAME:
            return
        seen.add(id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            name = key if isinstance(key, str) else str(key) if type(key) is int else "?"
            if name in ("args", "config", "hyper_parameters"):
                own = item.state | item.items if isinstance(item, StandIn) else item
                known = own if isinstance(own, dict) else {}
                settings.update({k: v for k, v in known.items() if isinstance(k, str)})
            inner = ".".join(word for word in (path, *name.split(".")) if word and word not in WRAPPERS)
            visit(item, inner)

    visit(root, "")
    return tensors, settings


def _models(tensors: Mapping[str, Stored], mark: str) -> Iterator[tuple[str, dict[str, Stored]]]:
    """Yield each copy of a model: where it is, and its tensors."""
    for name in tensors:
        if name != mark and not name.endswith(f".{mark}"):
            continue
        prefix = name.removesuffix(mark)
        yield prefix.rstrip("."), {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
