"""python -m tests.text_files FILE…: remove blanks at the end of lines, and end every file with one line break.

It exits with 1 if it changed a file. Git hooks run it (.pre-commit-config.yaml).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def tidied(text: bytes) -> bytes:
    """Return `text` without blanks at the end of lines, and with one line break at its end unless it is empty."""
    text = re.sub(rb"[ \t\r]+$", b"", text.replace(b"\r\n", b"\n"), flags=re.MULTILINE).rstrip(b"\n")
    return text + b"\n" if text else b""


def main(paths: list[Path]) -> int:
    changed = 0
    for path in paths:
        before = path.read_bytes()
        if (after := tidied(before)) != before:
            path.write_bytes(after)
            print(f"{path}: tidied")
            changed = 1
    return changed


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
