"""The choice of `balance=source`, against vectors that were made by other programs.

SipHash-2-4: `openssl mac -macopt size:8 SIPHASH` of OpenSSL 3.0; those with the key 00 01 … 0f are also in the paper's
reference implementation. Tables: a Perl program with the permutations of the Maglev paper written out (section 3.4,
pseudo-code 1), and BLAKE2b by `openssl mac -macopt size:16 BLAKE2BMAC`. The digests are SHA-256 of the entries as
decimal numbers with commas between them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise

import pytest

from oinetd.lanes.native.groups import build_table
from oinetd.lanes.native.plane import available
from oinetd.upstream.maglev import TABLE_SIZE, client_key, entry_of, fill, server_name, siphash, table_of, turns_of

REFERENCE = {
    0: "310e0edd47db6f72", 1: "fd67dc93c539f874", 7: "37d1018bf50002ab", 8: "6224939a79f5f593", 15: "e545be4961ca29a1",
}  # fmt: skip

CLIENTS = {
    "10.0.0.1": ("00000000000000000000ffff0a000001", "48190937633f49ad"),
    "192.0.2.1": ("00000000000000000000ffffc0000201", "e8cc19b8a8165e88"),
    "::ffff:192.0.2.1": ("00000000000000000000ffffc0000201", "e8cc19b8a8165e88"),
    "2001:db8:1:2:3::4": ("20010db8000100020000000000000000", "66c540722ab5a998"),
    "2001:db8::9": ("20010db8000000000000000000000000", "ab4beaeee12d836e"),
    "fe80::1%eth0": ("fe800000000000000000000000000000", "f0339d404d61ed25"),
}

FOUR = [(b"10.0.0.%d:80" % last, 1) for last in range(1, 5)]
HEAVY = [(b"10.0.%d.1:80" % third, 256) for third in range(40)]
TABLES = {
    "four": (FOUR, "36543a5a61c31ff17d4ce56e2d90e98acbb09f2cb1805f9312acc7c016b0102f"),
    "other-names": (
        [
            (server_name("Web.example", 8080), 3),
            (server_name("[2001:DB8:0::1]", 443), 1),
            (server_name("unix:/run/A.sock", 0), 2),
        ],
        "b877227fcc08769c3cbddc3773d49c6192e154da0a0858d5189d7d28eac07be1",
    ),
    "one": ([(b"10.0.0.1:80", 5)], "bfee2413119bfc92e1e52ae4c3dbbc32bf9cee580c053247df8b6e71b02a4e66"),
    "weights-scaled": (HEAVY, "e6847824f91494f194e88c0a20d834ffc1c70e8ac18863ad744d1855571b3ef0"),
    "at-least-one": (
        [*HEAVY, (b"10.9.9.9:80", 1)],
        "202a9cb04f13574b4e9d7f25b2bfa273fba6d083dfce65a748f9feeed776af6d",
    ),
    "hundred": (
        [(b"10.0.0.%d:80" % last, 1) for last in range(1, 101)],
        "68fc3b129e82548ff6ceb2c6e4b0aa0fc0bddaf71965eac4e6791799d044d987",
    ),
}


@pytest.mark.parametrize("length", REFERENCE)
def test_siphash_is_that_of_the_paper(length: int) -> None:
    assert siphash(bytes(range(length)), bytes(range(16))).to_bytes(8, "little").hex() == REFERENCE[length]


@pytest.mark.parametrize("host", CLIENTS)
def test_the_key_of_a_client(host: str) -> None:
    key, digest = CLIENTS[host]
    assert client_key(host).hex() == key
    assert siphash(client_key(host)).to_bytes(8, "little").hex() == digest
    assert entry_of(host) == int.from_bytes(bytes.fromhex(digest), "little") % TABLE_SIZE


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_golden_one(name: str) -> None:
    servers, digest = TABLES[name]
    assert hashlib.sha256(",".join(map(str, table_of(servers))).encode()).hexdigest() == digest


@pytest.mark.skipif(bool(available()), reason="the extension is not built")
@pytest.mark.parametrize("name", TABLES)
def test_the_extension_fills_the_golden_table(name: str) -> None:
    servers, digest = TABLES[name]
    table = build_table(turns_of(servers, range(len(servers))))
    assert hashlib.sha256(",".join(map(str, table)).encode()).hexdigest() == digest
    numbers = [7 * at for at in range(len(servers))]
    assert list(build_table(turns_of(servers, numbers))) == [7 * at for at in table]


@pytest.mark.skipif(bool(available()), reason="the extension is not built")
def test_what_the_extension_does_not_fill() -> None:
    empty = turns_of([], [])
    for turns in (empty, turns_of(FOUR, range(4))._replace(steps=empty.steps), turns_of(FOUR, [-1, 0, 1, 2])):
        with pytest.raises(ValueError, match=r"a table is for servers|out of range"):
            build_table(turns)


def test_a_client_of_a_golden_table() -> None:
    table = table_of(FOUR)
    assert table[:16].tolist() == [1, 0, 0, 0, 0, 3, 2, 1, 3, 3, 2, 0, 1, 0, 1, 3]
    assert entry_of("10.0.0.1") == 29786
    assert entry_of("2001:db8::9") == 7200


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("APP.Example.ORG", b"app.example.org:80"),
        ("0", b"0.0.0.0:80"),
        ("2001:DB8:0:0:0:0:0:1", b"[2001:db8::1]:80"),
        ("[::1]", b"[::1]:80"),
        ("::", b"[::]:80"),
        ("1:0:0:2:0:0:0:3", b"[1:0:0:2::3]:80"),
        ("1:0:2:3:4:5:6:7", b"[1:0:2:3:4:5:6:7]:80"),
        ("1:2:3:4:5:6:0:0", b"[1:2:3:4:5:6::]:80"),
        ("0:0:3:4:5:6:7:8", b"[::3:4:5:6:7:8]:80"),
        ("1:0:0:4:5:0:0:8", b"[1::4:5:0:0:8]:80"),
        ("::ffff:c000:201", b"[::ffff:192.0.2.1]:80"),
        ("fe80::1%eth0", b"[fe80::1%eth0]:80"),
        ("unix:/run/X", b"unix:/run/X"),
    ],
)
def test_the_name_of_a_server(host: str, name: bytes) -> None:
    assert server_name(host, 80) == name


def test_the_order_in_which_servers_are_written_plays_no_part() -> None:
    there = table_of(FOUR)
    back = table_of(FOUR[::-1])
    assert [3 - index for index in back] == there.tolist()


@pytest.mark.parametrize("weights", [[1] * 7, [1, 2, 3], [256, 1], [100, 50, 25, 25]])
def test_shares_are_those_of_the_weights(weights: list[int]) -> None:
    shares = Counter(table_of([(b"s%d:1" % index, weight) for index, weight in enumerate(weights)]))
    for index, weight in enumerate(weights):
        assert abs(shares[index] / TABLE_SIZE - weight / sum(weights)) < 0.02


def test_a_server_that_leaves_moves_its_own_share_and_hardly_any_others() -> None:
    servers = [(b"10.0.0.%d:80" % last, 1) for last in range(10)]
    before = table_of(servers)
    after = table_of(servers[:-1])
    moved = sum(old != new for old, new in zip(before, after, strict=True) if old != 9)
    assert moved < 0.01 * TABLE_SIZE


def test_no_server_no_entry() -> None:
    assert set(table_of([])) == {-1}


def test_a_table_is_filled_with_pauses() -> None:
    steps = list(fill(turns_of([(b"10.0.0.%d:80" % last, 1) for last in range(50)], range(50))))
    assert len(steps) > 20
    assert all(step is None for step in steps[:-1])


def test_names_differ_for_servers_that_differ() -> None:
    names = sorted(server_name("::", port) for port in range(1, 2000))
    assert all(one != other for one, other in pairwise(names))
