"""Errors that stop a bench, with the remedy in the message."""

from __future__ import annotations

__all__ = ["BenchError", "Interrupted", "ToolMissing"]


class BenchError(Exception):
    """The bench cannot go on; the message says why and what helps."""


class ToolMissing(BenchError):
    """A program or a library that an experiment needs is not installed; the message names the package."""


class Interrupted(BaseException):
    """A signal asked the bench to end; not an `Exception`, so that no trial takes it for its own failure."""
