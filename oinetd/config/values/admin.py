"""Kinds of values of the admin interface: its addresses, and names of rules."""

from __future__ import annotations

import re

from oinetd.config.mistake import Mistake, shown

__all__ = ["AdminPlace", "RuleName"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class AdminPlace:
    """The address of the admin interface. Its lines have several words and options, see `oinetd.config.admin`."""

    def __init__(self, form: str) -> None:
        self.form = form

    def parse(self, text: str) -> str:
        return text

    def format(self, value: str) -> str:
        return value


class RuleName:
    """A name for commands and metrics: letters, digits, `-`, `_`, `.`, at most 64 of them."""

    form = "NAME"

    def parse(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            raise Mistake(f"{shown(text)} is not a valid name", "at most 64 letters, digits, '-', '_' or '.'")
        return text

    def format(self, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"a configuration cannot contain the name {value!r}")
        return value
