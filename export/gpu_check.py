"""The command python -m export.gpu_check; see `export.verify.gpu_check`."""

from export.verify.gpu_check import main

if __name__ == "__main__":
    main()
