"""The values of options about TLS hellos: server names, and names of protocols."""

from __future__ import annotations

import socket

from oinetd.config.mistake import Mistake, shown
from oinetd.preamble.tls_hello import is_server_name

__all__ = ["ProtocolNames", "ServerNames"]

PROTOCOL_CHARS_MAX = 255


class ServerNames:
    """Server names joined by `+`; `*.` at the beginning of one stands for one label. Kept in lower case."""

    form = "NAME+NAME"

    def parse(self, text: str) -> tuple[str, ...]:
        found: list[str] = []
        start = 0
        for word in text.split("+"):
            name = word.lower().removesuffix(".")
            problem = self._problem(name)
            if problem:
                raise Mistake(f"{shown(word)} {problem[0]}", problem[1], start=start, width=max(1, len(word)))
            if name not in found:
                found.append(name)
            start += len(word) + 1
        return tuple(found)

    @staticmethod
    def _problem(name: str) -> tuple[str, str] | None:
        plain = name.removeprefix("*.")
        if not plain or not plain.isascii() or not is_server_name(plain.encode()) or ".." in plain or plain[0] == ".":
            hint = "letters, digits, '-', '_' and '.', such as www.example.org; *.example.org for any first label"
            return "is not a server name", hint
        family = socket.AF_INET6 if ":" in plain else socket.AF_INET
        try:
            socket.inet_pton(family, plain)
        except OSError:
            return None
        return "is an address", "clients name no server by its address: a rule without sni gets them"

    def format(self, value: tuple[str, ...]) -> str:
        return "+".join(value)


class ProtocolNames:
    """Names of protocols as in the ALPN extension, joined by `+`, such as h2+http/1.1."""

    form = "PROTOCOL+PROTOCOL"

    def parse(self, text: str) -> tuple[str, ...]:
        start = 0
        for word in text.split("+"):
            if not word or not word.isascii() or not word.isprintable() or len(word) > PROTOCOL_CHARS_MAX:
                raise Mistake(
                    f"{shown(word)} is not a protocol name",
                    "such as h2 or http/1.1",
                    start=start,
                    width=max(1, len(word)),
                )
            start += len(word) + 1
        return tuple(dict.fromkeys(text.split("+")))

    def format(self, value: tuple[str, ...]) -> str:
        return "+".join(value)
