"""The schema of `manifest.json`, which describes a bundle. Exporter and runtime both use it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import limits
from ..errors import BundleError
from ..files.atomic import atomic_file, sha256
from ..files.unfinished import recover
from .names import REQUIRED_GRAPHS, TRANSFORMER
from .precision import Precision
from .schema import load

SCHEMA_VERSION = 3
FILE_NAME = "manifest.json"
WEIGHTS = "weights.safetensors"
DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
SYMBOLS = ("B", "2B", "L", "L_next", "S")
VQVAE_SHA256 = "vqvae_sha256"  # key of `provenance.source`: hash of the VQVAE's float32 tensors
TINY_SOURCE = "tiny_decoder"  # key of `provenance.source`: file and hash of the tiny decoder
BESIDES = (VQVAE_SHA256, TINY_SOURCE)  # keys of `provenance.source` that name no checkpoint of VAR or VQVAE


@dataclass(frozen=True)
class Model:
    """The values of the recipe, under the names that the recipe uses."""

    name: str
    depth: int
    width: int
    heads: int
    vocab_size: int
    code_size: int
    num_classes: int
    patch_nums: tuple[int, ...]
    image_size: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    shared_aln: bool
    attn_l2_norm: bool
    norm_eps: float
    mlp_ratio: float
    quant_resi: float
    share_quant_resi: int
    using_znorm: bool
    quant_conv_ks: int

    @property
    def grid(self) -> int:
        """The side P of the last token map and of f_hat."""
        return self.patch_nums[-1]

    @property
    def tokens(self) -> int:
        """The number T of tokens of all scales together."""
        return sum(side * side for side in self.patch_nums)


@dataclass(frozen=True)
class Scale:
    """One scale: a token map. `upsample` and `downsample` are names of matrices in the weight file."""

    side: int
    tokens: int
    offset: int
    phi: int
    upsample: str  # resizes the codes of this scale to the last grid
    downsample: str | None  # resizes f_hat to the input of this scale; None at the first scale


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph. A string in the shape is a symbolic size, which changes from call to call."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """An ONNX file, with its inputs and outputs in the graph's order."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class File:
    """The size in bytes and the hexadecimal SHA-256 of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        return cls(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Provenance:
    """The origin of a bundle: time, checkpoints, versions of the tools, options."""

    created: str
    source: dict[str, Any]
    tools: dict[str, str]
    options: dict[str, Any]

    @property
    def tiny_decoder_sha256(self) -> str | None:
        """The hash of the file of the tiny decoder; None without one."""
        found: str | None = self.source.get(TINY_SOURCE, {}).get("sha256")
        return found

    def same_checkpoints(self, other: Provenance) -> bool:
        """Return whether VAR and VQVAE of both bundles were made of the same checkpoints, or of the same seed."""
        ours, theirs = ({key: v for key, v in p.source.items() if key not in BESIDES} for p in (self, other))
        return ours == theirs


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` of a bundle."""

    schema_version: int
    model: Model
    precision: Precision
    classes: str | None
    scales: tuple[Scale, ...]
    step_constants: tuple[str, ...]  # inputs of the transformer; at scale k, row k of the weight of the same name
    graphs: dict[str, Graph]
    files: dict[str, File]
    provenance: Provenance

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the names and hashes of the bundle's files. It is the same for every export of the bundle."""
        lines = [f"{name} {file.sha256}\n" for name, file in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def vqvae_sha256(self) -> str | None:
        """The hash of the VQVAE's tensors before any rounding: the same in FP32, FP16 and INT8. None in old bundles."""
        digest: str | None = self.provenance.source.get(VQVAE_SHA256)
        return digest

    @property
    def runtime_tensors(self) -> set[str]:
        """The names of tensors in the weight file that no graph loads: the runtime passes them as inputs."""
        resizes = {name for scale in self.scales for name in (scale.upsample, scale.downsample)}
        return {name for name in resizes if name is not None} | set(self.step_constants)

    @classmethod
    def load(cls, bundle: Path, verify: bool = True) -> Manifest:
        """Read the manifest of the directory `bundle`, and check it and the files it lists.

        Without `verify` only the sizes of the files are checked, not their SHA-256. Raises BundleError.
        """
        path = bundle / FILE_NAME
        recover(bundle)
        absent = f"{bundle}: no {FILE_NAME}, so not a bundle; make onnx makes one"
        manifest = load(cls, path, SCHEMA_VERSION, absent, "export the bundle again")
        manifest.check(str(path))
        manifest.check_files(bundle, verify)
        return manifest

    def write(self, bundle: Path) -> None:
        """Check the manifest and write it into `bundle`, atomically. Raises BundleError if it contradicts itself."""
        path = bundle / FILE_NAME
        self.check(str(path))
        with atomic_file(path) as file:
            file.write(self.to_json().encode())

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    def check(self, where: str) -> None:
        """Raise BundleError unless the values are in range and fit each other. The message starts with `where`."""
        self._check_model(where)
        self._check_scales(where)
        self._check_names(where)
        self._check_provenance(where)

    def check_files(self, bundle: Path, verify: bool = True) -> None:
        """Raise BundleError unless every file exists with its size and, if `verify`, its SHA-256."""
        for name, expected in self.files.items():
            path = bundle / name
            if not os.path.isfile(path):
                raise BundleError(f"{path}: missing; copy the whole bundle again")
            if (size := path.stat().st_size) != expected.size:
                raise BundleError(f"{path}: expected {expected.size} bytes, found {size}; copy the whole bundle again")
            if verify and (digest := sha256(path)) != expected.sha256:
                raise BundleError(
                    f"{path}: altered: expected SHA-256 {expected.sha256:.12}…, found {digest:.12}…;"
                    " copy the whole bundle again"
                )

    def _check_model(self, where: str) -> None:
        model = self.model
        if fault := limits.model_fault(dataclasses.asdict(model)):
            raise BundleError(f"{where}.model.{fault}")
        plain = _is_plain(model.name)
        _expect(plain, f"{where}.model.name", "a printable name without folders", limits.shown(model.name))
        sides = list(model.patch_nums)
        growing = sides == sorted(set(sides))
        _expect(growing, f"{where}.model.patch_nums", "two or more growing sides", sides)
        fits = model.width % model.heads == 0
        _expect(fits, f"{where}.model.width", f"a multiple of heads ({model.heads})", model.width)
        found, size = model.image_size, model.grid * 2 ** (len(model.ch_mult) - 1)
        _expect(found == size, f"{where}.model.image_size", f"{size}, as the other sizes say", found)

    def _check_scales(self, where: str) -> None:
        sides = self.model.patch_nums
        found: object = [scale.side for scale in self.scales]
        _expect(found == list(sides), f"{where}.scales", f"the sides {list(sides)}", found)
        offset, phis = 0, self.model.share_quant_resi or len(sides)
        for k, scale in enumerate(self.scales):
            found, expected = (scale.tokens, scale.offset), (scale.side**2, offset)
            _expect(found == expected, f"{where}.scales[{k}]", f"tokens, offset {expected}", found)
            _expect(0 <= scale.phi < phis, f"{where}.scales[{k}].phi", f"0 to {phis - 1}", limits.shown(scale.phi))
            downsample = "null" if k == 0 else "the name of a tensor"
            agrees = (scale.downsample is None) == (k == 0)
            _expect(agrees, f"{where}.scales[{k}].downsample", downsample, scale.downsample)
            offset += scale.tokens

    def _check_names(self, where: str) -> None:
        for name, file in self.files.items():
            plain = _is_plain(name) and name != FILE_NAME
            _expect(plain, f"{where}.files", "plain names of other files", limits.shown(name))
            _expect(file.size >= 0, f"{where}.files.{name}.size", "0 or more", file.size)
        missing = [name for name in REQUIRED_GRAPHS if name not in self.graphs]
        _expect(not missing, f"{where}.graphs", ", ".join(missing), list(self.graphs))
        for used in (WEIGHTS, self.classes, *(graph.file for graph in self.graphs.values())):
            listed = used is None or used in self.files
            _expect(listed, f"{where}.files", f"{used}, which the bundle uses", list(self.files))
        inputs = [tensor.name for tensor in self.graphs[TRANSFORMER].inputs]
        unknown = [name for name in self.step_constants if name not in inputs]
        _expect(not unknown, f"{where}.step_constants", "inputs of the transformer", unknown)
        for key, graph in self.graphs.items():
            if fault := limits.name_fault(key):
                raise BundleError(f"{where}.graphs: {fault}")
            for tensor in graph.inputs + graph.outputs:
                place = f"{where}.graphs.{key}: {tensor.name:.60}"
                if fault := limits.name_fault(tensor.name):
                    raise BundleError(f"{where}.graphs.{key}: {fault}")
                _expect(len(tensor.shape) <= limits.RANK, place, f"at most {limits.RANK} axes", len(tensor.shape))
                _expect(tensor.dtype in DTYPES, place, f"a dtype out of {', '.join(DTYPES)}", tensor.dtype)
                for size in tensor.shape:
                    known = size in SYMBOLS if isinstance(size, str) else size in limits.SIZE
                    _expect(known, place, f"{limits.SIZE} or {', '.join(SYMBOLS)} in its shape", size)

    def _check_provenance(self, where: str) -> None:
        """Check the parts that other commands read later: the origin of the weights, and the plan of an INT8 bundle."""
        source, plan = self.provenance.source, self.provenance.options.get("plan", {})
        for key in ("var_checkpoint", "vae_checkpoint"):
            found = source.get(key, {})
            texts = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
            _expect(texts, f"{where}.provenance.source.{key}", "an object of strings", limits.shown(found))
            file = found.get("file", key)
            _expect(_is_plain(file), f"{where}.provenance.source.{key}", "a plain file name", limits.shown(file))
        digest = source.get(VQVAE_SHA256, "0" * 64)
        _expect(
            isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest),
            f"{where}.provenance.source.{VQVAE_SHA256}",
            "64 hexadecimal digits",
            limits.shown(digest),
        )
        seed = source.get("random_weights", 0)
        _expect(
            type(seed) is int and seed in limits.STORED_SEED,
            f"{where}.provenance.source.random_weights",
            "a seed",
            seed,
        )
        kinds = list(plan.values()) if isinstance(plan, dict) else [None]
        lists = all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in kinds)
        _expect(lists, f"{where}.provenance.options.plan", "an object of lists of strings", limits.shown(plan))


def _is_plain(name: str) -> bool:
    """Return whether the name is that of a file directly in a folder, and cannot lead out of it."""
    return limits.name_fault(name) is None and name not in (".", "..") and not {"/", "\\"} & set(name)


def _expect(holds: object, where: str, expected: str, found: object) -> None:
    if not holds:
        raise BundleError(f"{where}: expected {expected}; found {found!s:.100}")
