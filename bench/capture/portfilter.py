"""The filter that the kernel runs before a packet costs anything: TCP from or to one of a few ports.

It is classic BPF for packets that begin with their network header, as those of a cooked packet socket do.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.errors import BenchError

__all__ = ["NOTHING", "PORTS_MAX", "PortFilter", "attachable"]

PORTS_MAX = 40
"""Jumps reach 255 instructions, and every port is compared four times."""

LOOPBACK_INDEX = 1
"""The interface `lo` has this index in every namespace."""

_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD = 0x30, 0x28, 0x20
_LOAD_HALF_BEHIND_HEADER = 0x48
_HEADER_LENGTH = 0xB1
_EQUAL, _ANY_BIT, _SHIFT_RIGHT, _RETURN = 0x15, 0x45, 0x74, 0x06
_ANCILLARY, _PACKET_TYPE, _INTERFACE_INDEX = 0xFFFFF000, 4, 8
_OUTGOING = 4
_TCP = 6


@dataclass(frozen=True, slots=True)
class _Instruction:
    """`then` and `otherwise` are labels; empty is the next instruction."""

    code: int
    value: int
    then: str = ""
    otherwise: str = ""
    label: str = ""


class PortFilter:
    """Passes the first `snaplen` bytes of TCP packets that have one of `ports`; no fragments, no other protocol.

    On the loopback interface a packet passes a packet socket twice, going out and coming in; with `once`, only the
    latter counts. Raises `BenchError` for no port, or more than `PORTS_MAX`.
    """

    def __init__(self, ports: Iterable[int], snaplen: int, *, once: bool = True) -> None:
        self.ports = sorted(set(ports))
        self.snaplen = snaplen
        if not 0 < len(self.ports) <= PORTS_MAX:
            raise BenchError(f"a capture follows 1 to {PORTS_MAX} ports, not {len(self.ports)}")
        self._program = self._once() * once + self._ipv4() + self._ipv6() + self._ends()

    @staticmethod
    def _once() -> list[_Instruction]:
        return [
            _Instruction(_LOAD_WORD, _ANCILLARY + _INTERFACE_INDEX),
            _Instruction(_EQUAL, LOOPBACK_INDEX, otherwise="packet"),
            _Instruction(_LOAD_BYTE, _ANCILLARY + _PACKET_TYPE),
            _Instruction(_EQUAL, _OUTGOING, then="drop"),
        ]

    def _ipv4(self) -> list[_Instruction]:
        return [
            _Instruction(_LOAD_BYTE, 0, label="packet"),
            _Instruction(_SHIFT_RIGHT, 4),
            _Instruction(_EQUAL, 4, otherwise="ipv6"),
            _Instruction(_LOAD_BYTE, 9),
            _Instruction(_EQUAL, _TCP, otherwise="drop"),
            _Instruction(_LOAD_HALF, 6),
            _Instruction(_ANY_BIT, 0x3FFF, then="drop"),
            _Instruction(_HEADER_LENGTH, 0),
            *self._either(_LOAD_HALF_BEHIND_HEADER, 0, 2),
        ]

    def _ipv6(self) -> list[_Instruction]:
        return [
            _Instruction(_EQUAL, 6, otherwise="drop", label="ipv6"),
            _Instruction(_LOAD_BYTE, 6),
            _Instruction(_EQUAL, _TCP, otherwise="drop"),
            *self._either(_LOAD_HALF, 40, 42),
        ]

    def _either(self, code: int, source: int, target: int) -> list[_Instruction]:
        lines = []
        for offset in (source, target):
            lines.append(_Instruction(code, offset))
            lines += [_Instruction(_EQUAL, port, then="pass") for port in self.ports]
        last = lines.pop()
        return [*lines, _Instruction(last.code, last.value, then="pass", otherwise="drop")]

    def _ends(self) -> list[_Instruction]:
        return [_Instruction(_RETURN, self.snaplen, label="pass"), _Instruction(_RETURN, 0, label="drop")]

    def instructions(self) -> list[tuple[int, int, int, int]]:
        """As the kernel takes them: code, jump if true, jump if false, constant."""
        at = {line.label: index for index, line in enumerate(self._program) if line.label}

        def jump(label: str, index: int) -> int:
            return at[label] - index - 1 if label else 0

        return [
            (line.code, jump(line.then, index), jump(line.otherwise, index), line.value)
            for index, line in enumerate(self._program)
        ]


def attachable(lines: Sequence[tuple[int, int, int, int]]) -> tuple[bytes, object]:
    """The value of SO_ATTACH_FILTER, and what must live until it was set."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    return struct.pack("@HP", len(lines), ctypes.addressof(program)), program


NOTHING = [(_RETURN, 0, 0, 0)]
"""The filter that no packet passes."""
