"""The error tree. Every failure that a user, a file or a device can cause is one of these.

A message names the thing, what it was, what was needed and what to do; the command line prints it
as one line and exits with 2.
"""

from __future__ import annotations


class BcquantError(Exception):
    """Root of every error that bcquant raises on purpose."""


class ConfigError(BcquantError):
    """A setting, a flag or a model config cannot be used as given."""


class CheckpointError(BcquantError):
    """A file of a checkpoint is missing, truncated, corrupt or of a kind that cannot be read."""


class ShapeError(BcquantError):
    """An array does not have the shape or dtype that a function needs."""


class SolverError(BcquantError):
    """A solver could not produce a result for a module."""


class ExportError(BcquantError):
    """An output format cannot represent what it was asked to hold, or cannot be written."""


class KernelError(BcquantError):
    """A kernel tier is unknown, missing on this CPU, or refused its arguments."""
