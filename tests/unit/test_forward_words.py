"""`oinetd forward`: pairs of words become lines of the language."""

from __future__ import annotations

import pytest

from oinetd.config import parse_config
from oinetd.process.forward import forward_lines


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["8080", "db.example.org:80"], ["0.0.0.0 8080 db.example.org 80"]),
        (["127.0.0.1:8443", "web:443[idle-timeout=5m]"], ["127.0.0.1 8443 web 443 [idle-timeout=5m]"]),
        (["[::1]:53/udp", "[2001:db8::1]:53/udp"], ["[::1] 53/udp [2001:db8::1] 53/udp"]),
        (["8000-8010", "10.0.0.1:9000-9010"], ["0.0.0.0 8000-8010 10.0.0.1 9000-9010"]),
        (["unix:/run/a.sock", "10.0.0.1:80"], ["unix:/run/a.sock 10.0.0.1 80"]),
        (["81", "a.example:1", "http", "a.example:2"], ["0.0.0.0 81 a.example 1", "0.0.0.0 http a.example 2"]),
    ],
)
def test_pairs_become_rules(words: list[str], lines: list[str]) -> None:
    assert forward_lines(words) == lines
    assert len(parse_config("\n".join(lines)).rules) == len(lines)


def test_several_servers_have_one_port() -> None:
    assert forward_lines(["443", "web:443,web2:443[balance=first]"]) == ["0.0.0.0 443 web,web2 443 [balance=first]"]
    with pytest.raises(ValueError, match="different ports"):
        forward_lines(["443", "web:443,web2:444"])


@pytest.mark.parametrize("words", [[], ["8080"], ["8080", "web"], ["a b:80", "web:80:"], ["8080", ":80"]])
def test_other_words_are_refused_with_an_example(words: list[str]) -> None:
    with pytest.raises(ValueError, match="such as"):
        forward_lines(words)
