"""One check of one server: connect, and perhaps ask and look at the answer."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Final

from oinetd.enums import Protocol
from oinetd.net.sockets import Address
from oinetd.servers import Check, GroupOptions
from oinetd.upstream.group import reason
from oinetd.upstream.member import WHY_CHARS_MAX, Member

__all__ = ["judge_answer", "printable", "probe", "request_of"]

ANSWER_BYTES_MAX: Final = 16 * 1024
"""What is read of an answer."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r?\n)")


def printable(content: bytes) -> str:
    """What a server said, as it may be shown."""
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in content[:WHY_CHARS_MAX])


def request_of(options: GroupOptions, name: str) -> bytes:
    """What a check sends; `name` is the server's."""
    if options.check is Check.HTTP:
        host = options.check_host or name
        head = f"{options.check_method} {options.check_path} HTTP/1.1\r\nHost: {host}\r\n"
        return f"{head}User-Agent: oinetd\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode("ascii", "replace")
    return options.check_send if options.check is Check.SEND else b""


def judge_answer(options: GroupOptions, answer: bytes, ended: bool) -> str | None:
    """Why what came so far is wrong, empty if it is right, None if there has to be more."""
    if options.check is Check.HTTP:
        found = _STATUS_LINE.match(answer)
        if found is None:
            wrong = ended or len(answer) >= ANSWER_BYTES_MAX or not b"HTTP/1.".startswith(answer[:7])
            return f"http: no status: {printable(answer)}"[:WHY_CHARS_MAX] if wrong else None
        status = int(found[1])
        right = any(low <= status <= high for low, high in options.check_status)
        return "" if right else f"http: status {status}"
    wanted = options.check_expect
    if len(answer) >= max(1, len(wanted)):
        return "" if answer.startswith(wanted) else f"answer: {printable(answer)}"[:WHY_CHARS_MAX]
    if answer and not wanted.startswith(answer):
        return f"answer: {printable(answer)}"[:WHY_CHARS_MAX]
    return (f"answer: {printable(answer)}"[:WHY_CHARS_MAX] if answer else "no answer") if ended else None


async def probe(member: Member) -> str:
    """Check a server within its `check-timeout`; returns why it failed, empty if it did not."""
    try:
        async with asyncio.timeout(member.options.check_timeout_s):
            return await _probe(member)
    except TimeoutError:
        return "check: timed out"
    except OSError as error:
        return f"check: {reason(error.errno or 0)}"


async def _probe(member: Member) -> str:
    options, loop = member.options, asyncio.get_running_loop()
    port = member.config.check_port or options.check_port or member.port(0)
    addresses = member.destination.at(port)
    if not addresses:
        return "check: no address"
    address = addresses[0]
    udp = member.config.endpoint.protocol is Protocol.UDP and options.check is Check.SEND
    with socket.socket(
        address.family, (socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) | socket.SOCK_NONBLOCK
    ) as sock:
        source = _source(member, address)
        if source is not None:
            sock.bind(source.sockaddr)
        if udp:
            sock.connect(address.sockaddr)
        else:
            await loop.sock_connect(sock, address.sockaddr)
        if options.check is Check.TCP:
            return ""
        request = request_of(options, member.name)
        if request or udp:
            await loop.sock_sendall(sock, request)
        answer = b""
        while (verdict := judge_answer(options, answer, False)) is None:
            piece = await loop.sock_recv(sock, ANSWER_BYTES_MAX - len(answer))
            answer += piece
            if not piece:
                return judge_answer(options, answer, True) or ""
        return verdict


def _source(member: Member, address: Address) -> Address | None:
    if member.source is None:
        return None
    return next((each for each in member.source.at(0) if each.family == address.family), None)
