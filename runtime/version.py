"""The version of VAR Edge. pyproject.toml reads it from here; runtime/cpp/include/var_edge.h repeats it."""

__version__ = "0.2.0"
