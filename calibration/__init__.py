"""Quantize FP32 bundles to INT8."""

import sys

import var_edge

if line := var_edge.shadowing():  # a file in the current folder has the name of a module; nothing below would import
    raise SystemExit(f"Error: {line}") if sys.argv[:1] == ["-m"] else ImportError(line)
