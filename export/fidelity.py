"""The command python -m export.fidelity; see `export.verify.fidelity`."""

from export.verify.fidelity import main

if __name__ == "__main__":
    main()
