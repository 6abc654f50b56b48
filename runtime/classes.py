"""Class names: what a user types instead of a label."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError, SettingsError
from .manifest import Manifest

NO_CLASS = "none"


@dataclass(frozen=True)
class ClassNames:
    """The classes of a model: `names[label]` are the label's names, the usual one first; empty if unknown."""

    num_classes: int
    names: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def load(cls, bundle: Path, manifest: Manifest) -> ClassNames:
        """From the bundle's text file, see `read`. Raises BundleError."""
        num_classes = manifest.model.num_classes
        if manifest.classes is None:
            return cls(num_classes)
        return cls.read(bundle / manifest.classes, num_classes)

    @classmethod
    def read(cls, path: Path, num_classes: int) -> ClassNames:
        """From a text file: one class a line, synonyms separated by ", ". Raises BundleError."""
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) != num_classes:
            raise BundleError(f"{path}: expected {num_classes} lines, one for each class, found {len(lines)}")
        return cls(num_classes, tuple(tuple(line.split(", ")) for line in lines))

    def listing(self) -> str:
        """One line a class: its label and its names."""
        if not self.names:
            return f"no class names; labels are 0 to {self.num_classes - 1}"
        return "\n".join(f"{label:4} {', '.join(names)}" for label, names in enumerate(self.names))

    def labels(self, wanted: int | str | Sequence[int | str]) -> list[int]:
        """The label of each entry, or of the only one: see `label`. Raises SettingsError."""
        if isinstance(wanted, (int, str)):
            wanted = [wanted]
        return [self.label(entry) for entry in wanted]

    def label(self, wanted: int | str) -> int:
        """The label for a number, a name, or the beginning of a name; `num_classes` and "none" mean "no class".

        Upper and lower case are the same. A beginning must fit one class only, and so must a name. Raises
        SettingsError, with what may have been meant.
        """
        if isinstance(wanted, str) and not wanted.isdecimal():
            return self._find(wanted.strip())
        if not 0 <= int(wanted) <= self.num_classes:
            last = self.num_classes
            raise SettingsError(f"label: expected 0 to {last} ({last} means no class), found {wanted}")
        return int(wanted)

    def _find(self, text: str) -> int:
        if text.lower() == NO_CLASS:
            return self.num_classes
        if not self.names:
            raise SettingsError(f"label {text!r}: this bundle has no class names; give a number")
        key = text.lower()
        known = [(name.lower(), label) for label, names in enumerate(self.names) for name in names]
        exact = {label for name, label in known if name == key}
        found = sorted(exact or {label for name, label in known if key and name.startswith(key)})
        if len(found) == 1:
            return found[0]
        if found:
            raise SettingsError(f"label {text!r}: may be {self._listed(found)}; give the number")
        similar = difflib.get_close_matches(key, [name for name, _ in known], n=3)
        near = sorted({label for name, label in known if name in similar})
        hint = f"did you mean {self._listed(near)}?" if near else "--list-classes shows all names"
        raise SettingsError(f"label {text!r}: no class has this name; {hint}")

    def _listed(self, labels: list[int], limit: int = 5) -> str:
        shown = [f"{label} ({self.names[label][0]})" for label in labels[:limit]]
        return ", ".join(shown) + (f" or {len(labels) - limit} more" if len(labels) > limit else "")
