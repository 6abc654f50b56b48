"""Errors a user can act on. Each message is one line: what, where, expected, found, what to do."""


class VarEdgeError(Exception):
    """Base of every error this project raises on purpose."""


class BundleError(VarEdgeError):
    """A bundle is missing, damaged, or not what its manifest says."""


class NumericError(VarEdgeError):
    """A bundle computes NaN or infinity: its numbers overflow."""


class SettingsError(VarEdgeError):
    """A value the caller gave cannot be used."""
