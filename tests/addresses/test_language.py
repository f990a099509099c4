"""Unix sockets in the language: one word for address and port, and the mistakes that can be made with it."""

from __future__ import annotations

import pytest

from oinetd.config import parse_config, parse_rule
from oinetd.errors import ConfigError
from oinetd.model import Endpoint


@pytest.mark.parametrize(
    ("text", "bind", "connect"),
    [
        ("unix:/run/a.sock unix:@b", Endpoint("unix:/run/a.sock", 0), Endpoint("unix:@b", 0)),
        ("unix:/run/a 192.0.2.1 80 [mode=600]", Endpoint("unix:/run/a", 0), Endpoint("192.0.2.1", 80)),
        ("0.0.0.0 80 unix:/run/a# comment", Endpoint("0.0.0.0", 80), Endpoint("unix:/run/a", 0)),
        ("unix:@a,b=c ::1 80", Endpoint("unix:@a,b=c", 0), Endpoint("::1", 80)),
    ],
)
def test_one_word_in_place_of_address_and_port(text: str, bind: Endpoint, connect: Endpoint) -> None:
    rule = parse_rule(text)
    assert (rule.bind, rule.connect) == (bind, connect)
    assert str(rule.bind) == (bind.host if bind.is_unix else "0.0.0.0 80")


def test_longest_path() -> None:
    assert parse_rule(f"unix:/{'a' * 106} unix:@{'b' * 107}").bind.is_unix


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("unix: ::1 80", "the path of the unix socket is missing", 1),
        ("unix:@ ::1 80", "the path of the unix socket is missing", 1),
        ("unix:run/a ::1 80", "'run/a' is not an absolute path", 6),
        ("unix:/run/ ::1 80", "'/run/' is not the path of a file", 6),
        ("unix:/run/../a ::1 80", "'/run/../a' is not the path of a file", 6),
        (f"unix:/{'a' * 107} ::1 80", "the path of the unix socket has 108 bytes; the limit is 107", 6),
        ("0.0.0.0 80 unix:/a 80", "unexpected '80' after the four words of a rule", 20),
        ("0.0.0.0 80-81 unix:/a", "2 ports to listen on, 1 port to connect to", 15),
        ("unix:/a", "the connect address and connect port are missing", 8),
        ("0.0.0.0 80 ::1 80 [mode=660]", "mode is for the file of a unix socket to listen on", 20),
        ("unix:@a ::1 80 [mode=600]", "mode is for the file of a unix socket to listen on", 17),
        ("unix:@a ::1 80 [owner=a]", "owner is for the file of a unix socket to listen on", 17),
        ("unix:/a ::1 80 [peer-uid=a]", "peer-uid is for a unix socket as destination", 17),
        ("unix:/a unix:/b [mode=888]", "'888' is not a valid mode", 23),
        ("unix:/a unix:/b [owner=a:b:c]", "'b:c' is not a valid name", 26),
        ("0.0.0.0 80 ::1 80 [src=unix:/a]", "the source address of a connection cannot be a unix socket", 24),
    ],
)
def test_mistakes_have_their_place(text: str, message: str, column: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    (problem,) = caught.value.problems
    assert (problem.message, problem.column) == (message, column)


def test_two_rules_on_one_path() -> None:
    with pytest.raises(ConfigError, match=r"unix:/a is already used by"):
        parse_config("unix:/a ::1 80\nunix:/a ::1 81\n")


def test_rule_that_leads_to_itself_is_warned_of() -> None:
    (warning,) = parse_config("unix:/a unix:/b\nunix:/b unix:/a\n").warnings
    assert "leads back to this rule" in warning.message
