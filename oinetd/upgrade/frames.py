"""The frames that two processes exchange during an upgrade, as bytes. Nothing here touches a socket.

A frame is a header, a JSON document and bytes: `oiu1`, the sizes of both (4 bytes each), the number of descriptors that
come with the header (2 bytes). The document has a `kind`. A reader skips names that it does not know, so that a later
version can say more; what it must know is a new number in `VERSION`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["DESCRIPTORS_MAX", "HEADER_BYTES", "VERSION", "BadFrame", "Frame", "Header"]

VERSION: Final = 1
"""Of the protocol; the table in docs/architecture.md says which versions of oinetd speak it."""

DESCRIPTORS_MAX: Final = 250
"""In one frame: the kernel takes 253 (SCM_MAX_FD), and those in flight count against the limit of the sender."""
DOCUMENT_BYTES_MAX: Final = 64 << 20
"""The last frame has the counters of every rule and server, half a kilobyte each."""
BYTES_MAX: Final = 64 << 20

_HEADER: Final = struct.Struct("!4sIIH")
_MAGIC: Final = b"oiu1"
HEADER_BYTES: Final = _HEADER.size


class BadFrame(Exception):
    """What came is not a frame of this protocol."""


@dataclass(frozen=True, slots=True)
class Header:
    """The sizes of what follows."""

    document_bytes: int
    data_bytes: int
    descriptors: int

    @classmethod
    def read(cls, data: bytes) -> Header:
        """Raises `BadFrame`."""
        if len(data) != HEADER_BYTES:
            raise BadFrame("a header is cut short")
        magic, document, extra, descriptors = _HEADER.unpack(data)
        if magic != _MAGIC or document > DOCUMENT_BYTES_MAX or extra > BYTES_MAX or descriptors > DESCRIPTORS_MAX:
            raise BadFrame("not a header of this protocol")
        return cls(document, extra, descriptors)


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: its kind, the document, bytes beside it, and descriptors."""

    kind: str
    document: Mapping[str, Any]
    data: bytes = b""
    descriptors: tuple[int, ...] = ()

    def encode(self) -> tuple[bytes, bytes]:
        """The header, with which the descriptors go, and the rest. Raises `BadFrame` for a frame that is too large."""
        document = json.dumps({**self.document, "kind": self.kind}, separators=(",", ":")).encode()
        if len(document) > DOCUMENT_BYTES_MAX or len(self.data) > BYTES_MAX or len(self.descriptors) > DESCRIPTORS_MAX:
            raise BadFrame("a frame is too large")
        header = _HEADER.pack(_MAGIC, len(document), len(self.data), len(self.descriptors))
        return header, document + self.data

    @classmethod
    def decode(cls, header: Header, body: bytes, descriptors: tuple[int, ...]) -> Frame:
        """Raises `BadFrame`."""
        if len(body) != header.document_bytes + header.data_bytes or len(descriptors) != header.descriptors:
            raise BadFrame("a frame is cut short")
        try:
            document = json.loads(body[: header.document_bytes])
        except (ValueError, RecursionError) as error:
            raise BadFrame(f"not a document: {error}") from None
        if not isinstance(document, dict) or not isinstance(kind := document.get("kind"), str):
            raise BadFrame("a document has no kind")
        return cls(kind, document, body[header.document_bytes :], descriptors)
