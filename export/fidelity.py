"""python -m export.fidelity: the command of `export.verify.fidelity`."""

from export.verify.fidelity import main

if __name__ == "__main__":
    main()
