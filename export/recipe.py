"""A recipe: the hyper-parameters that make a model of a checkpoint, from `recipes/NAME.toml` or any TOML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from runtime.errors import SettingsError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"


class Scale(NamedTuple):
    """One step of next-scale prediction: a `side` x `side` token map that starts at `offset` in the sequence."""

    side: int
    tokens: int
    offset: int


@dataclass(frozen=True)
class Recipe:
    """Sizes of one VAR and its VQVAE, with the names the official code gives them.

    `checkpoints` is the folder, relative to the recipe, that holds the two files if they ship with it; `hub` the model
    hub repository that has them otherwise.
    """

    name: str
    depth: int
    patch_nums: tuple[int, ...]
    ch: int
    var_checkpoint: str
    vae_checkpoint: str
    shared_aln: bool = False
    attn_l2_norm: bool = True
    num_classes: int = 1000
    vocab_size: int = 4096
    code_size: int = 32
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    classes: str | None = None
    hub: str | None = None
    checkpoints: str | None = None
    folder: Path = RECIPES

    @property
    def width(self) -> int:
        return 64 * self.depth

    @property
    def heads(self) -> int:
        return self.depth

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
        return self.grid * 2 ** (len(self.ch_mult) - 1)

    @property
    def scales(self) -> tuple[Scale, ...]:
        sides = self.patch_nums
        return tuple(Scale(p, p * p, sum(q * q for q in sides[:k])) for k, p in enumerate(sides))

    @classmethod
    def load(cls, name_or_path: str) -> Recipe:
        """The recipe called `name_or_path`, or the one in that TOML file. Raises SettingsError."""
        path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
            raise SettingsError(
                f"--model: no recipe {name_or_path!r}; known are {known}, or give the path of a .toml file"
            )
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: not a TOML file: {error}") from None
        return cls._from_values(path, values)

    @classmethod
    def _from_values(cls, path: Path, values: dict[str, Any]) -> Recipe:
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in ("name", "folder")}
        if unknown := sorted(values.keys() - fields.keys()):
            raise SettingsError(f"{path}: unknown keys {', '.join(unknown)}; known are {', '.join(fields)}")
        required = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
        if missing := sorted(required - values.keys()):
            raise SettingsError(f"{path}: missing keys {', '.join(missing)}")
        hints = get_type_hints(cls)
        for key, value in values.items():
            if hints[key] == tuple[int, ...] and isinstance(value, list):
                values[key] = value = tuple(value)
            if not _is_a(value, hints[key]):
                raise SettingsError(f"{path}: {key}: expected {hints[key]}, found {value!r}")
        recipe = cls(name=path.stem, folder=path.parent, **values)
        recipe._check(path)
        return recipe

    def _check(self, path: Path) -> None:
        sizes = (self.depth, self.ch, self.num_classes, self.num_res_blocks, self.code_size, *self.ch_mult)
        growing = all(a < b for a, b in pairwise(self.patch_nums))
        for holds, rule in (
            (min(sizes) > 0, "expected sizes from 1 up"),
            (
                len(self.patch_nums) > 1 and self.patch_nums[0] == 1 and growing,
                "patch_nums: expected 1 and growing sides",
            ),
            (self.ch % 32 == 0, "ch: expected a multiple of 32, the groups of GroupNorm"),
            (
                self.vocab_size > 0 and self.vocab_size % 64 == 0,
                "vocab_size: expected a multiple of 64, for the sampler",
            ),
        ):
            if not holds:
                raise SettingsError(f"{path}: {rule}")


def _is_a(value: object, hint: Any) -> bool:
    if hint == tuple[int, ...]:
        return isinstance(value, tuple) and bool(value) and all(type(item) is int for item in value)
    if hint == (str | None):
        return isinstance(value, str)
    return type(value) is hint
