"""The kinds of values of options of sockets, as `values` has them: modes, users, marks, names of the kernel."""

from __future__ import annotations

import re

from oinetd.config.mistake import Mistake, shown

__all__ = ["FileMode", "Mark", "Name", "UserName"]

_MODE = re.compile("0?[0-7]{1,3}")
_MARK = re.compile("0[xX][0-9a-fA-F]{1,16}|[0-9]{1,12}")
_NAME = re.compile(r"[0-9A-Za-z_.][-0-9A-Za-z_.@:]{0,14}")
_USER = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_.]{0,31}")


class FileMode:
    """The permissions of a file, as an octal number."""

    form = "MODE"

    def parse(self, text: str) -> int:
        if not _MODE.fullmatch(text):
            raise Mistake(f"{shown(text)} is not a valid mode", "an octal number from 0 to 777, such as 660")
        return int(text, 8)

    def format(self, value: int) -> str:
        return f"{value:03o}"


class Mark:
    """A number of 32 bits, decimal or hexadecimal."""

    form = "N"

    def parse(self, text: str) -> int:
        if not _MARK.fullmatch(text):
            raise Mistake(f"{shown(text)} is not a valid mark", "a number such as 16 or 0x10")
        value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
        if value > 0xFFFFFFFF:
            raise Mistake(f"{shown(text)} is out of range", "from 0 to 0xffffffff")
        return value

    def format(self, value: int) -> str:
        return f"{value:#x}"


class Name:
    """A name that the kernel resolves: an interface, or a congestion control."""

    def __init__(self, form: str, example: str) -> None:
        self.form = form
        self._example = example

    def parse(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            raise Mistake(f"{shown(text)} is not a valid name", f"at most 15 characters, such as {self._example}")
        return text

    def format(self, value: str) -> str:
        return value


class UserName:
    """A user by name or number; with `group` followed by a colon and a group, either of which may be left out."""

    def __init__(self, *, group: bool = False) -> None:
        self._group = group
        self.form = "USER:GROUP" if group else "USER"

    def parse(self, text: str) -> str:
        user, colon, group = text.partition(":")
        if colon and not self._group:
            raise Mistake(f"{shown(text)} is not one user", "a name or a number, such as www-data or 33")
        for part, start in ((user, 0), (group, len(user) + 1)):
            if part and not _USER.fullmatch(part):
                raise Mistake(f"{shown(part)} is not a valid name", "a name or a number", start=start, width=len(part))
        if not (user or group):
            raise Mistake("the name is missing", self.form)
        return text.removesuffix(":")

    def format(self, value: str) -> str:
        return value
