"""FP32 bundles to INT8."""

import sys

import var_edge

if line := var_edge.shadowing():  # a module of the folder the command runs in; else nothing below would import
    raise SystemExit(f"Error: {line}") if sys.argv[:1] == ["-m"] else ImportError(line)
