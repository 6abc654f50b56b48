"""Recipes: the hyper-parameters of the model in a checkpoint, from `recipes/NAME.toml` or any TOML file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from runtime.bundle.classes import CLASS_LISTS, ClassNames
from runtime.bundle.manifest import Manifest, Model
from runtime.errors import SettingsError, VarEdgeError
from runtime.files.bounded import read_toml
from runtime.limits import LISTS, MODEL, model_fault, shown

NO_PHI = 1e-6  # with a quant_resi up to this, phi is the identity, as in the official code
RECIPES = Path(__file__).parents[1] / "recipes"


class Scale(NamedTuple):
    """One step of next-scale prediction: a `side` x `side` token map that starts at `offset` in the sequence."""

    side: int
    tokens: int
    offset: int


@dataclass(frozen=True)
class Recipe:
    """Settings of one VAR and its VQVAE, with the names and defaults of the official code.

    `width` is its `embed_dim` (default: 64 x depth), `heads` its `num_heads` (default: depth). `checkpoints` is the
    folder of the two checkpoint files, relative to the recipe, if they are shipped with it, and `tiny_decoder` the file
    of a tiny decoder beside them; `hub` is the model hub repository that has them otherwise. `classes` is the name of a
    shipped list of class names, or a text file in the recipe's folder with one class a line.
    """

    name: str
    depth: int
    patch_nums: tuple[int, ...]
    ch: int
    var_checkpoint: str
    vae_checkpoint: str
    shared_aln: bool = False
    attn_l2_norm: bool = True
    width: int = 0
    heads: int = 0
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    quant_resi: float = 0.5  # phi(h) = (1 - quant_resi) h + quant_resi conv(h)
    share_quant_resi: int = 4  # phi convolutions that the scales share; 0: one for each scale
    using_znorm: bool = False  # the encoder's nearest code by cosine instead of distance
    quant_conv_ks: int = 3
    num_classes: int = 1000
    vocab_size: int = 4096
    code_size: int = 32
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    classes: str | None = None
    hub: str | None = None
    checkpoints: str | None = None
    tiny_decoder: str | None = None
    folder: Path = RECIPES

    def __post_init__(self) -> None:
        for name, default in (("width", 64 * self.depth), ("heads", self.depth)):
            object.__setattr__(self, name, getattr(self, name) or default)

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Channels between the two layers of a block's MLP."""
        return round(self.width * self.mlp_ratio)

    @property
    def class_list(self) -> Path | None:
        """The file with the class names, which may not exist; None if the recipe has no class names."""
        if self.classes is None:
            return None
        own = self.folder / self.classes
        places = (CLASS_LISTS / f"{self.classes}.txt", own, own.with_name(f"{own.name}.txt"))
        return next((place for place in places if os.path.isfile(place)), own)  # False where no file can have the name

    @property
    def phi_count(self) -> int:
        """The number of phi convolutions; 0 if `quant_resi` is 0."""
        return 0 if self.quant_resi <= NO_PHI else self.share_quant_resi or len(self.patch_nums)

    @property
    def grid(self) -> int:
        """Side P of the last token map, and of f_hat."""
        return self.patch_nums[-1]

    @property
    def tokens(self) -> int:
        """Tokens T of all scales together."""
        return sum(side * side for side in self.patch_nums)

    @property
    def image_size(self) -> int:
        result: int = self.grid * 2 ** (len(self.ch_mult) - 1)
        return result

    @property
    def scales(self) -> tuple[Scale, ...]:
        sides = self.patch_nums
        return tuple(Scale(p, p * p, sum(q * q for q in sides[:k])) for k, p in enumerate(sides))

    @property
    def model(self) -> Model:
        """The values that a manifest holds, under the same names."""
        return Model(**{name: getattr(self, name) for name in Model.__dataclass_fields__})

    @classmethod
    def load(cls, name_or_path: str) -> Recipe:
        """Load the recipe called `name_or_path`, or the one in that TOML file. Raises SettingsError."""
        path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
        if not os.path.exists(path):
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
            raise SettingsError(
                f"--model: no recipe {shown(name_or_path)}; known are {known}, or give the path of a .toml file"
            )
        return cls.from_values(path, read_toml(path, SettingsError))

    @classmethod
    def from_values(cls, path: Path, values: dict[str, Any]) -> Recipe:
        """Return the recipe with these settings, named after the file `path`. Raises SettingsError."""
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in ("name", "folder")}
        if unknown := sorted(values.keys() - fields.keys()):
            raise SettingsError(f"{path}: unknown keys {', '.join(unknown):.100}; known are {', '.join(fields)}")
        required = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
        if missing := sorted(required - values.keys()):
            raise SettingsError(f"{path}: missing keys {', '.join(missing)}")
        hints = get_type_hints(cls)
        if absent := [name for name in ("width", "heads") if type(values.get(name)) is int and values[name] < 1]:
            raise SettingsError(f"{path}: {absent[0]}: expected 1 or more, found {values[absent[0]]}")
        for key, value in values.items():
            if hints[key] == tuple[int, ...] and isinstance(value, list):
                values[key] = value = tuple(value)
            if key == "quant_resi" and type(value) is float:
                values[key] = value = abs(value)  # as the official code takes it
            if hints[key] is float and type(value) is int:
                values[key] = value = float(value)
            if not _is_a(value, hints[key]):
                raise SettingsError(f"{path}: {key}: expected {hints[key]}, found {shown(value)}")
        # Check these first: sizes computed from a depth of 10^30 would exhaust memory or time.
        if fault := model_fault(values):
            raise SettingsError(f"{path}: {fault}")
        recipe = cls(name=path.stem, folder=path.parent, **values)
        if fault := model_fault({name: getattr(recipe, name) for name in (*MODEL, *LISTS)}):
            raise SettingsError(f"{path}: {fault}")
        recipe._check(path)
        return recipe

    def _check(self, path: Path) -> None:
        for holds, rule in self._rules():
            if not holds:
                raise SettingsError(f"{path}: {rule}")
        if self.class_list is None:
            return
        try:
            ClassNames.read(self.class_list, self.num_classes)
        except (VarEdgeError, OSError, ValueError) as error:
            raise SettingsError(f"{path}: classes: {error}") from None

    def _rules(self) -> Iterator[tuple[bool, str]]:
        """Yield whether each rule holds, and its text. Their order matters: a later rule may need an earlier one."""
        growing = all(a < b for a, b in pairwise(self.patch_nums))
        yield growing, "patch_nums: expected growing sides"
        yield self.width % self.heads == 0, f"width: expected a multiple of heads ({self.heads}), found {self.width}"
        yield self.hidden > 0, f"mlp_ratio: expected 1 or more channels, found ratio {self.mlp_ratio}"
        yield self.ch % 32 == 0, "ch: expected a multiple of 32, the groups of GroupNorm"


def phi_indices(scale_count: int, phi_count: int) -> list[int]:
    """Return the index of each scale's phi convolution: its tick is the nearest to k / (K - 1). Without any, return 0.

    Some scales are equally near to two ticks. Float64 and this formula break those ties as the published code does.
    """
    edge = (1 / 3 if phi_count == 4 else 1 / 2) / max(phi_count, 1)
    import numpy as np  # not needed for --help

    ticks = np.linspace(edge, 1 - edge, max(phi_count, 1))
    return [int(np.argmin(np.abs(ticks - k / (scale_count - 1)))) for k in range(scale_count)]


def _is_a(value: object, hint: Any) -> bool:
    if hint == tuple[int, ...]:
        return isinstance(value, tuple) and bool(value) and all(type(item) is int for item in value)
    if hint == (str | None):
        return isinstance(value, str)
    return type(value) is hint


def model_of(name: str) -> Model:
    """Return the model of a bundle's directory, or of a recipe. Raises BundleError, SettingsError."""
    if not name:
        raise SettingsError("model: expected the name of a recipe or the directory of a bundle, found ''")
    if Path(name).is_dir():
        return Manifest.load(Path(name), verify=False).model
    return Recipe.load(name).model
