"""Whether a pattern can match a printed address: exact, in both directions, against what the system prints."""

from __future__ import annotations

import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oinetd.config.printed import printed_example
from oinetd.core.access import glob_match

ALPHABET = "0123456789abcdef:.*?%[f01:.**"


def canonical(text: str) -> bool:
    """Whether the system prints an address in this way."""
    address, percent, scope = text.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(family, address)
    except OSError:
        return False
    if socket.inet_ntop(family, packed) != address:
        return False
    link_local = len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
    return not percent or (link_local and 1 <= len(scope) <= 15 and not set(scope) & set("/: "))


@given(st.text(ALPHABET, max_size=24))
@example("2001:db8:0:0:*")
@example("::102:*")
@example("::0.*")
@example("::0.1*")
@example("::ffff:?:*")
@example("*:0:0:*")
@example("*%*%*")
def test_what_it_finds_is_printed_so_and_matches(pattern: str) -> None:
    found = printed_example(pattern)
    if found is not None:
        assert canonical(found)
        assert glob_match(pattern, found)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """A printed address; often with zeros, and of every kind that is printed in a way of its own."""
    kind = draw(st.sampled_from(["4", "6", "mapped", "compatible", "link-local"]))
    if kind == "4":
        return socket.inet_ntop(socket.AF_INET, draw(st.binary(min_size=4, max_size=4)))
    group = st.one_of(st.just(0), st.sampled_from([1, 0xFFFF, 0xFFF, 0x10]), st.integers(0, 0xFFFF))
    groups = draw(st.lists(group, min_size=8, max_size=8))
    if kind in ("mapped", "compatible"):
        groups[:6] = [0, 0, 0, 0, 0, 0xFFFF if kind == "mapped" else 0]
    scope = ""
    if kind == "link-local":
        groups[0] = draw(st.integers(0xFE80, 0xFEBF))
        scope = draw(st.sampled_from(["", "%eth0", "%7", "%a.b-c_15chars12"]))
    packed = b"".join(number.to_bytes(2, "big") for number in groups)
    return socket.inet_ntop(socket.AF_INET6, packed) + scope


@given(addresses(), st.data())
def test_a_pattern_that_matches_a_printed_address_is_never_taken_for_one_that_cannot(
    text: str, data: st.DataObject
) -> None:
    pattern = text
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(pattern)))
        end = data.draw(st.integers(start, len(pattern)))
        wild = ["*"] if "*" in pattern[start:end] else ["*", "?" * (end - start)]
        pattern = pattern[:start] + data.draw(st.sampled_from(wild)) + pattern[end:]
    assert glob_match(pattern, text)
    assert printed_example(pattern) is not None


@given(addresses(), st.data())
def test_a_text_that_differs_in_one_character_matches_only_if_it_is_printed_so(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    other = (
        text[:at] + data.draw(st.text("0123456789abcdef:.%", max_size=1)) + text[at + data.draw(st.integers(0, 1)) :]
    )
    assert (printed_example(other) == other) is canonical(other)


@pytest.mark.parametrize("pattern", ["", "?" * 56, "1" * 255, "g" + "*" * 200, "*:*:*:*:*:*:*:*:*:*"])
def test_what_cannot_be_printed(pattern: str) -> None:
    assert printed_example(pattern) is None


def test_the_longest_text() -> None:
    assert printed_example("?" * 55) is not None
    assert printed_example("*" * 200) is not None
