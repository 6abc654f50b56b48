"""The recipe of a checkpoint, read off it and written as TOML to save."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.checkpoint_file import NAMES, CheckpointError, CheckpointFile, read_checkpoint
from export.recipe import Recipe
from export.settings import settings_of, told_by_trainer, written

UNREADABLE = {"norm_eps": 1e-6, "quant_resi": 0.5, "using_znorm": False, "share_quant_resi": 4}  # published values
SETTINGS = [name for name in Recipe.__dataclass_fields__ if name not in ("name", "folder", "hub", "classes")]


def recipe_text(var_file: Path, vae_file: Path | None) -> str:
    """The recipe of the VAR in `var_file` and the VQVAE in `vae_file`, or in the same file. Raises CheckpointError.

    Settings that no tensor tells have the value of the trainer's arguments or the published one, with a comment.
    """
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
    lines = [f"# Read from {var_file.name}" + (f" and {vae_file.name}" if vae_file else "")]
    lines += [f"{name} = {written(values[name])}" for name in SETTINGS if name in values]
    lines += _untold(files, values)
    lines += [f"checkpoints = {written(str(var_file.absolute().parent))}"]
    lines += [f"{kind}_checkpoint = {written(_name(file.path, var_file))}" for kind, file in files.items()]
    return "\n".join(lines) + "\n"


def _told(file: CheckpointFile, tensors: Any) -> dict[str, Any]:
    try:
        return settings_of(tensors)
    except Exception as error:
        raise CheckpointError(f"{file.path}: damaged: {error!s:.100}; download it again") from None


def _name(path: Path, var_file: Path) -> str:
    return path.name if path.absolute().parent == var_file.absolute().parent else str(path.absolute())


def _untold(files: dict[str, CheckpointFile], values: dict[str, Any]) -> Iterator[str]:
    """A line for each setting that the tensors leave open."""
    trained = {**told_by_trainer(files["vae"].settings), **told_by_trainer(files["var"].settings)}
    defaults = UNREADABLE | {"patch_nums": None, "heads": values["depth"] if _published_width(values) else None}
    for setting, default in defaults.items():
        if setting in values:
            continue
        if setting in trained:
            yield f"{setting} = {written(trained[setting])}  # from the trainer's arguments"
        elif default is not None:
            yield f"{setting} = {written(default)}  # the published value: the file does not tell; check it"
        else:
            nothing = "[]" if setting == "patch_nums" else "0"
            yield f"{setting} = {nothing}  # CANNOT BE READ from this file: set it to what the model was trained with"


def _published_width(values: dict[str, Any]) -> bool:
    return bool(values.get("width") == 64 * values["depth"])
