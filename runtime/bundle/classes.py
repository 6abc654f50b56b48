"""Class names, which a user may give instead of labels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .. import limits
from ..errors import UNPRINTABLE, BundleError, SettingsError
from ..files.bounded import read_text
from ..limits import shown
from .manifest import Manifest

NO_CLASS = "none"
CLASS_LISTS = Path(__file__).parent / "class_lists"  # lists that a recipe may refer to by name


@dataclass(frozen=True)
class ClassNames:
    """The classes of a model. `names[label]` holds the names of a label, the usual one first; empty without names."""

    num_classes: int
    names: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def load(cls, bundle: Path, manifest: Manifest) -> ClassNames:
        """Return the classes in the bundle's text file, see `read`. Raises BundleError."""
        num_classes = manifest.model.num_classes
        if manifest.classes is None:
            return cls(num_classes)
        return cls.read(bundle / manifest.classes, num_classes)

    @classmethod
    def read(cls, path: Path, num_classes: int) -> ClassNames:
        """Read a text file with one class per line and synonyms separated by ", ". Raises BundleError."""
        lines = [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]
        if len(lines) != num_classes:
            raise BundleError(f"{path}: expected {num_classes} lines, one for each class, found {len(lines)}")
        names = tuple(tuple(line.split(", ")) for line in lines)
        for label, name in ((label, name) for label, synonyms in enumerate(names) for name in synonyms):
            if len(name) > limits.CLASS_NAME_LENGTH or UNPRINTABLE.search(name):
                expected = f"a printable name of at most {limits.CLASS_NAME_LENGTH} characters"
                raise BundleError(f"{path}: line {label + 1}: expected {expected}, found {shown(name)}")
        return cls(num_classes, names)

    def listing(self) -> str:
        """Return one line per class: its label and its names. `label` accepts the whole line and each name in it."""
        if not self.names:
            return f"no class names; labels are 0 to {self.num_classes - 1}"
        return "\n".join(f"{label:4} {'; '.join(names)}".rstrip() for label, names in enumerate(self._printed))

    def labels(self, wanted: int | str | Sequence[int | str]) -> list[int]:
        """Return the label of each entry, or of a single one; see `label`. Raises SettingsError."""
        if isinstance(wanted, str) or not isinstance(wanted, Iterable):
            wanted = [wanted]
        return [self.label(entry) for entry in wanted]

    def listed(self, groups: Sequence[str]) -> list[int]:
        """Return the labels in texts that may be lists such as "207,980". A name may contain commas.

        Raises SettingsError.
        """
        found = []
        for group in groups:
            parts = group.split(",")
            while parts:
                most = min(len(parts), self._most_parts)
                joined = (",".join(parts[:count]) for count in range(most, 1, -1))
                text = next((text for text in joined if _key(text) in self._exact), parts[0])
                found.append(self.label(text.strip()))
                parts = parts[text.count(",") + 1 :]
        return found

    def label(self, wanted: int | str) -> int:
        """Return the label for a number, a name, or the beginning of a name; `num_classes` and "none" mean "no class".

        Case is ignored. A name, or its beginning, must fit one class only. All names of a class together, as `listing`
        prints them, count as a name too. Raises SettingsError, which suggests similar names.
        """
        if isinstance(wanted, str) and not (wanted.isascii() and wanted.isdecimal()):
            return self._find(wanted)
        last = self.num_classes
        label = int(wanted) if isinstance(wanted, str) and len(wanted) <= 20 else wanted  # int() refuses 5,000 digits
        if label not in limits.Integers(0, last):
            found = wanted if isinstance(wanted, str) else shown(wanted)
            raise SettingsError(f"label: expected 0 to {last} ({last} means no class), found {found:.20}")
        return int(label)

    def _find(self, text: str) -> int:
        key = _key(text)
        if key == NO_CLASS:
            return self.num_classes
        if not self.names:
            raise SettingsError(f"label {shown(text)}: this bundle has no class names; give a number")
        begun = (self._known[name] for name in self._known if key and name.startswith(key))
        found = sorted(self._exact.get(key) or set().union(*begun))
        if len(found) == 1:
            return found[0]
        if found:
            raise SettingsError(f"label {shown(text)}: may be {self._numbered(found)}; give the number")
        similar = difflib.get_close_matches(key, self._known, n=3) if len(key) <= limits.CLASS_NAME_LENGTH else []
        near = sorted({label for name in similar for label in self._known[name]})
        hint = f"did you mean {self._numbered(near)}?" if near else "look it up in the list of classes"
        raise SettingsError(f"label {shown(text)}: no class has this name; {hint}")

    @cached_property
    def _known(self) -> dict[str, set[int]]:
        """All names, each with the labels that have it."""
        known: dict[str, set[int]] = {}
        for label, names in enumerate(self.names):
            for name in names:
                known.setdefault(_key(name), set()).add(label)
        return known

    @cached_property
    def _printed(self) -> list[list[str]]:
        """The names by label, as `listing` prints them: a name of several classes includes the label: "crane (134)"."""
        return [
            [f"{name} ({label})" if len(self._known[_key(name)]) > 1 else name for name in names]
            for label, names in enumerate(self.names)
        ]

    @cached_property
    def _exact(self) -> dict[str, set[int]]:
        """All texts that stand for a class without completion: its names, and its line in `listing`."""
        exact = dict(self._known)
        for label, (names, printed) in enumerate(zip(self.names, self._printed, strict=True)):
            line = "; ".join(printed)
            for text in (*printed, line, f"{label} {line}", ", ".join(names)):
                exact.setdefault(_key(text), {label})
        return exact

    @cached_property
    def _most_parts(self) -> int:
        """The largest number of parts that a text in `_exact` has when it is split at commas."""
        return 1 + max((text.count(",") for text in self._exact), default=0)

    def _numbered(self, labels: list[int], limit: int = 5) -> str:
        listed = [f"{label} ({self.names[label][0]:.60})" for label in labels[:limit]]
        return ", ".join(listed) + (f" or {len(labels) - limit} more" if len(labels) > limit else "")


def _key(text: str) -> str:
    return " ".join(text.split()).lower()
