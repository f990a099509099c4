"""One check of one server: connect, and perhaps ask and look at the answer."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from typing import Final

from oinetd.enums import Protocol, SendProxy
from oinetd.net.connect_result import connect_result
from oinetd.net.poller import Poller
from oinetd.net.sockets import SHORTAGE, Address, client_address, close_with_reset, is_connected_to_itself
from oinetd.preamble.proxy_protocol import Party
from oinetd.preamble.proxy_writer import write_v1, write_v2
from oinetd.servers import Check, GroupOptions
from oinetd.upstream.address_order import now_ms
from oinetd.upstream.group import reason
from oinetd.upstream.member import WHY_CHARS_MAX, Member

__all__ = ["Probe", "judge_answer", "printable", "request_of"]

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


class Probe:
    """A check under way: it connects, sends what is asked for, and looks at the answer. Nothing waits for it.

    `done` is called once with the result: empty if the server passed, else why not; None if this machine had no
    descriptor for it. After `give_up` and `time_out` it is not called. The addresses of a server are tried one after
    the other, in the order of `address_order`.
    """

    __slots__ = (
        "_address", "_answer", "_connecting", "_done", "_header", "_member", "_order", "_poller", "_sock", "_tried",
        "_udp", "_unsent", "_why",
    )  # fmt: skip

    def __init__(self, member: Member, poller: Poller, header: SendProxy, done: Callable[[str | None], object]) -> None:
        options = member.options
        port = member.config.check_port or options.check_port or member.port(0)
        self._member = member
        self._poller = poller
        self._header = header if port == member.port(0) else SendProxy.OFF
        self._done = done
        self._order = member.destination.order(port)
        self._tried = 0
        self._udp = member.config.endpoint.protocol is Protocol.UDP and options.check is Check.SEND
        self._sock: socket.socket | None = None
        self._address: Address | None = None
        self._connecting = False
        self._unsent = b""
        self._answer = b""
        self._why = "check: no address"

    def begin(self) -> None:
        """Connect to the first address that takes the connection."""
        addresses = self._order.addresses
        while (at := self._order.pick(self._tried, 0, now_ms())) >= 0:
            self._tried |= 1 << at
            try:
                self._connect(addresses[at])
                return
            except OSError as error:
                self._failed(error.errno or 0)
                if error.errno in SHORTAGE or error.errno == errno.ENOSPC:
                    self._done(None)
                    return
        self._done(self._why)

    def give_up(self) -> None:
        """End it without a result."""
        self._close()

    def time_out(self) -> str:
        """End it: its time is over. The result."""
        self._failed(errno.ETIMEDOUT)
        return "check: timed out"

    # Connecting

    def _connect(self, address: Address) -> None:
        """Begin to connect. Raises `OSError` if that fails."""
        kind = socket.SOCK_DGRAM if self._udp else socket.SOCK_STREAM
        self._address = address
        self._sock = sock = socket.socket(address.family, kind | socket.SOCK_NONBLOCK)
        source = _source(self._member, address)
        if source is not None:
            sock.bind(source.sockaddr)
        code = sock.connect_ex(address.sockaddr)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self._connecting = code != 0
        self._poller.watch(sock.fileno(), self._on_event)
        if not self._connecting:
            self._connected(sock)

    def _on_event(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            if self._connecting:
                code = connect_result(sock)
                if code == errno.EINPROGRESS:
                    return
                if code and code != errno.ECONNRESET:  # it took the connection, and has nothing to say
                    self._failed(code)
                    self.begin()
                    return
                if self._address is not None and is_connected_to_itself(sock, self._address):
                    raise OSError(errno.ECONNREFUSED, "connected to itself")
                self._connecting = False
                self._connected(sock)
            else:
                self._send(sock)
                self._read(sock)
        except OSError as error:
            self._end(f"check: {reason(error.errno or 0)}")

    def _failed(self, code: int) -> None:
        """The address did not take the connection: of several it is tried last for a while."""
        self._close()
        self._why = f"check: {reason(code)}"
        if self._address is not None and len(self._order.addresses) > 1:
            self._member.destination.note_failed(self._address, code)

    def _connected(self, sock: socket.socket) -> None:
        """The server took the connection."""
        member = self._member
        if self._address is not None and len(self._order.addresses) > 1:
            member.destination.note_worked(self._address)
        request = b"" if member.options.check is Check.TCP else request_of(member.options, member.name)
        if self._udp:
            sock.send(request)
        else:
            self._unsent = _header_of(sock, self._header) + request
            self._send(sock)
        if member.options.check is Check.TCP:
            # If no byte was sent, a reset spares both ends the rest of a connection's life.
            self._end("", reset=self._header is SendProxy.OFF)
        else:
            self._read(sock)

    # Asking

    def _send(self, sock: socket.socket) -> None:
        """Send what is left, as far as there is room for it."""
        try:
            while self._unsent:
                self._unsent = self._unsent[sock.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return

    def _read(self, sock: socket.socket) -> None:
        """Read until the answer is right or wrong, or there is no more for now."""
        while self._sock is not None:
            try:
                piece = sock.recv(ANSWER_BYTES_MAX - len(self._answer))
            except BlockingIOError:
                return
            self._answer += piece
            verdict = judge_answer(self._member.options, self._answer, not piece and not self._udp)
            if verdict is not None:
                self._end(verdict)

    # End

    def _end(self, why: str, *, reset: bool = False) -> None:
        self._close(reset=reset)
        self._done(why)

    def _close(self, *, reset: bool = False) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._poller.closing(sock.fileno())
        if reset:
            close_with_reset(sock)
        else:
            sock.close()


def _header_of(sock: socket.socket, header: SendProxy) -> bytes:
    """The PROXY header of a check: version 2 says LOCAL, version 1 has no word for that and names the two ends."""
    if header is SendProxy.OFF:
        return b""
    if header is SendProxy.V2:
        return write_v2(None, None)
    if sock.family == socket.AF_UNIX:
        return write_v1(None, None)
    return write_v1(Party(*client_address(sock.getsockname())), Party(*client_address(sock.getpeername())))


def _source(member: Member, address: Address) -> Address | None:
    if member.source is None:
        return None
    return next((each for each in member.source.at(0) if each.family == address.family), None)
