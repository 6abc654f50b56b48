"""Print what the changelog says of a version: the notes of its release.

    python -m packages.release_notes [VERSION | --tag vX.Y.Z]

Without VERSION: of the version that is in runtime/version.py. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = re.compile(r"^## \[([^\]]+)\].*\n", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", default=current(), help="default: that of runtime/version.py")
    parser.add_argument("--tag", help="fail unless this is the tag of the version: v and the version")
    arguments = parser.parse_args()
    if arguments.tag not in (None, f"v{arguments.version}"):
        sys.exit(f"--tag: expected v{arguments.version}, found {arguments.tag}; change it or runtime/version.py")
    print(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), arguments.version))


def current() -> str:
    """Return the version of this checkout. To import it would import numpy."""
    return (ROOT / "runtime" / "version.py").read_text(encoding="utf-8").split('__version__ = "')[1].split('"')[0]


def notes(changelog: str, version: str) -> str:
    """Return the section of a version without its heading. Raise SystemExit if there is none, or nothing in it."""
    _, *parts = HEADING.split(changelog)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    if not sections.get(version, "").strip():
        found = ", ".join(sections) or "none"
        sys.exit(f"CHANGELOG.md: expected a section '## [{version}] - DATE' with text, found {found}; write it")
    return sections[version].strip()


if __name__ == "__main__":
    main()
