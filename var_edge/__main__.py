"""python -m var_edge COMMAND, and var-edge COMMAND: every command of VAR Edge."""

from __future__ import annotations

import sys

from var_edge import HOME


def main() -> None:
    """Run the command line. VAR Edge's own packages come first, whatever the current folder holds."""
    sys.path.insert(0, str(HOME))
    from var_edge.commands import group

    group()


if __name__ == "__main__":
    main()
