"""Read the recipe from a checkpoint, and write it as TOML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.checkpoint.file import NAMES, CheckpointError, CheckpointFile, read_checkpoint
from export.checkpoint.recipe import Recipe
from export.checkpoint.settings import settings_of, told_by_trainer, written

UNREADABLE = {"norm_eps": 1e-6, "quant_resi": 0.5, "using_znorm": False, "share_quant_resi": 4}  # published values
UNKNOWN = "  # CANNOT BE READ from this file: set it to what the model was trained with"
SETTINGS = [name for name in Recipe.__dataclass_fields__ if name not in ("name", "folder", "hub", "classes")]


def recipe_text(var_file: Path, vae_file: Path | None) -> str:
    """Return the recipe of the VAR in `var_file` and the VQVAE in `vae_file` (None: the same file) as TOML.

    Settings that no tensor shows come from the trainer's arguments, or have the published value; a comment says so.
    Raises CheckpointError.
    """
    values, comments = _read(var_file, vae_file)
    lines = [f"# Read from {written(var_file.name)}" + (f" and {written(vae_file.name)}" if vae_file else "")]
    lines += [f"{name} = {written(value)}" + comments.get(name, "") for name, value in values.items()]
    return "\n".join(lines) + "\n"


def recipe_of(var_file: Path, vae_file: Path | None) -> Recipe:
    """Return the same recipe as an object. Raises SettingsError, and CheckpointError also if a setting is unknown."""
    values, comments = _read(var_file, vae_file)
    if unknown := [name for name, comment in comments.items() if comment == UNKNOWN]:
        raise CheckpointError(
            f"{var_file}: {' and '.join(unknown)} cannot be read from it;"
            " print the recipe without --out, save it, set these values, and give that file as --model"
        )
    return Recipe.from_values(var_file, values)


def _read(var_file: Path, vae_file: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return all settings in the order of a recipe, and comments on those that no tensor shows."""
    files = {"var": read_checkpoint(var_file), "vae": read_checkpoint(vae_file or var_file)}
    values: dict[str, Any] = {}
    for kind, file in files.items():
        part = file.part(kind)
        if part is None:
            option = "--vae-checkpoint" if kind == "vae" else "--model"
            raise CheckpointError(f"{file.path}: holds no {NAMES[kind]}; give the file that does as {option}")
        for setting, value in _told(file, part.tensors).items():
            if values.setdefault(setting, value) != value:
                found = f"the VAR has {written(values[setting])}, the VQVAE {written(value)}"
                raise CheckpointError(f"{file.path}: {setting}: {found}; they do not belong together")
    values = {name: values[name] for name in SETTINGS if name in values}
    untold = {setting: (value, comment) for setting, value, comment in _untold(files, values)}
    values |= {setting: value for setting, (value, _) in untold.items()}
    values["checkpoints"] = str(var_file.absolute().parent)
    values |= {f"{kind}_checkpoint": _name(file.path, var_file) for kind, file in files.items()}
    return values, {setting: comment for setting, (_, comment) in untold.items()}


def _told(file: CheckpointFile, tensors: Any) -> dict[str, Any]:
    try:
        return settings_of(tensors)
    except Exception as error:
        raise CheckpointError(f"{file.path}: damaged: {error!s:.100}; download it again") from None


def _name(path: Path, var_file: Path) -> str:
    return path.name if path.absolute().parent == var_file.absolute().parent else str(path.absolute())


def _untold(files: dict[str, CheckpointFile], values: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield each setting that no tensor shows, with a value and a comment."""
    trained = {**told_by_trainer(files["vae"].settings), **told_by_trainer(files["var"].settings)}
    defaults = UNREADABLE | {"patch_nums": None, "heads": values["depth"] if _published_width(values) else None}
    for setting, default in defaults.items():
        if setting in values:
            continue
        if setting in trained:
            yield setting, trained[setting], "  # from the trainer's arguments"
        elif default is not None:
            yield setting, default, "  # the published value: the file does not tell; check it"
        else:
            yield setting, () if setting == "patch_nums" else 0, UNKNOWN


def _published_width(values: dict[str, Any]) -> bool:
    return bool(values.get("width") == 64 * values["depth"])
