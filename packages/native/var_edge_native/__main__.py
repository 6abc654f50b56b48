import sys

from . import PATHS


def main() -> None:
    names = sys.argv[1:]
    if not names:
        for name, path in PATHS.items():
            print(f"{name:10} {path}")
    elif len(names) == 1 and names[0] in PATHS:
        print(PATHS[names[0]])
    else:
        sys.exit(f"var_edge_native: expected one of {', '.join(PATHS)}, found {' '.join(names)!r}")


if __name__ == "__main__":
    main()
