"""`send-proxy` of one server, before that of the rule."""

from __future__ import annotations

import pytest

from oinetd import ConfigError
from oinetd.config import parse_config
from oinetd.forwarder import Forwarder
from tests.forwarding import bound, in_one_loop
from tests.peers import dial
from tests.preamble.lanes import in_lanes, lane_options, looking


@in_lanes
@pytest.mark.parametrize("own", ["v1", "v2", "off", ""])
@in_one_loop
async def test_the_word_of_a_server_stands_before_that_of_the_rule(lane: str, own: str) -> None:
    async def anybody(record: object) -> bool:
        return True

    async with looking(wanted=5, headed=own != "off") as server:
        host, port = server.address
        options = f" [send-proxy={own}]" if own else ""
        text = f"127.0.0.1 0 @web [send-proxy=v1, {lane_options(lane)}]\nupstream web {host} {port}{options}\n"
        async with Forwarder(parse_config(text), admit=anybody if lane == "handed-over" else None) as forwarder:
            client = await dial(bound(forwarder))
            await client.send(b"hello")
            taken = await server.taken.get()
            assert taken.data == b"hello"
            if own == "off":
                assert taken.header is None
            else:
                assert taken.header is not None
                assert taken.header.version == (2 if own == "v2" else 1)
                assert taken.header.source is not None
                assert (taken.header.source.host, taken.header.source.port) == client.sock.getsockname()
            client.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0 53/udp @x\nupstream x 10.0.0.1 53/udp [send-proxy=v1]",
            "send-proxy=v1 is for TCP, and the server 10.0.0.1",
        ),
        ("0 53/udp @x\nupstream x 10.0.0.1 53 [send-proxy]", "TCP to TCP or from UDP to UDP, and the server"),
        ("0 80 @x [proxy-tlv=crc32c]\nupstream x 10.0.0.1 80 [send-proxy=v1]", "10.0.0.1:80 of @x gets version 1"),
        ("0 80 @x [proxy-tlv=crc32c]\nupstream x 10.0.0.1 80", "proxy-tlv has no effect without send-proxy"),
    ],
)
def test_what_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert message in str(caught.value)


def test_a_server_is_enough_for_tlvs() -> None:
    parse_config("0 80 @x [proxy-tlv=crc32c]\nupstream x 10.0.0.1 80 [send-proxy]")
