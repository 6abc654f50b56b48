"""python -m export.gpu_check: the command of `export.verify.gpu_check`."""

from export.verify.gpu_check import main

if __name__ == "__main__":
    main()
