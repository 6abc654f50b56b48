"""Write a model repository of Triton Inference Server, and recognise one that was written before."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..bundle.manifest import Manifest
from ..drafted import check_draft_scales, check_fit
from ..errors import SettingsError
from ..files.atomic import atomic_directory
from ..files.outputs import Kind
from ..files.unfinished import is_temporary
from ..limits import shown
from .settings import Settings
from .tensors import INPUTS, OUTPUTS, REQUIRED, Tensor

MARK = "# Written by VAR Edge: python -m runtime.triton\n"
MODEL_PY = """from runtime.serving.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
WAIT = 5000  # microseconds that a request waits for others: those of clients that were answered at the same time
QUEUE = 256  # requests that wait; more are refused


def _owned(folder: Path) -> set[str] | None:
    """Return the models in a repository that this module wrote; None if there is another file."""
    names = {entry.name for entry in folder.iterdir() if not is_temporary(entry.name)}
    return names if all(_is_ours(folder / name / "config.pbtxt") for name in names) else None


def _is_ours(config: Path) -> bool:
    with suppress(OSError), config.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()
    return False


REPOSITORY = Kind("a model repository of VAR Edge", _owned)


def write_repository(path: Path, name: str, settings: Settings) -> None:
    """Write a repository with the model `name`: config.pbtxt, model.py and copies of its bundles.

    The copies are hard links where the disk is the same. Raises BundleError if a bundle is damaged, SettingsError.
    """
    if not MODEL_NAME.fullmatch(name):
        raise SettingsError(f"name: expected letters, digits, _ and -, at most 64, found {shown(name)}")
    loading = settings.loading
    manifest = Manifest.load(settings.bundle, loading.verify)
    if loading.draft is not None and loading.draft_scales is not None:
        check_fit(loading.draft, Manifest.load(loading.draft, loading.verify), settings.bundle, manifest)
        check_draft_scales(loading.draft_scales, len(manifest.scales))
    with atomic_directory(path, REPOSITORY, *loading.sources(settings.bundle)) as made:
        model = made / name
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.py").write_text(MODEL_PY)
        _copy(settings.bundle, model / "bundle")
        draft = None
        if loading.draft is not None:
            _copy(loading.draft, model / "draft")
            draft = Path("draft")
        inside = replace(settings, bundle=Path("bundle"), loading=replace(loading, draft=draft))
        (model / "config.pbtxt").write_text(config(name, inside))


def config(name: str, settings: Settings) -> str:
    """Return the text of config.pbtxt. Paths in `settings` are relative to the model's folder."""
    kind = "KIND_CPU" if settings.loading.backend == "onnxruntime" else "KIND_AUTO"  # AUTO: one for each GPU
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}'
        for key, value in settings.parameters().items()
    )
    return f"""{MARK}
name: "{name}"
backend: "python"
max_batch_size: {settings.batch}
model_transaction_policy {{ decoupled: true }}
dynamic_batching {{
  max_queue_delay_microseconds: {WAIT}
  default_queue_policy {{ max_queue_size: {QUEUE} }}
}}
instance_group [ {{ kind: {kind} count: 1 }} ]
{parameters}
input [
{_listed(INPUTS)}
]
output [
{_listed(OUTPUTS)}
]
"""


def _listed(tensors: dict[str, Tensor]) -> str:
    return ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_{tensor.datatype.replace("BYTES", "STRING")} dims: {list(tensor.dims)}'
        f"{' optional: true' if tensors is INPUTS and name != REQUIRED else ''} }}"
        for name, tensor in tensors.items()
    )


def _copy(bundle: Path, to: Path) -> None:
    """Copy a bundle with the engines in it, as hard links where possible."""
    shutil.copytree(
        bundle, to, copy_function=_link, ignore=lambda _, names: [name for name in names if is_temporary(name)]
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
