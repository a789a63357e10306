"""Messages between a client (the QGIS plugin) and `geosam2 worker`: protocol version 1.

A message is one line of JSON (an object) and, when it has the key `bin`, that many raw bytes
after the line. The same framing is used in both directions. Pixels and geometries travel as raw
bytes because base64 inside JSON costs ten times the time.

The QGIS plugin carries this very file (`qgis_plugin/geosam2_qgis/core/protocol.py`; a test compares
the bytes), so it needs nothing but the standard library and runs on Python 3.9.

>>> parser = MessageParser()
>>> list(parser.feed(encode({"op": "ping", "id": 1}) + encode({"op": "pixels"}, b"abc")))
[({'op': 'ping', 'id': 1}, b''), ({'op': 'pixels', 'bin': 3}, b'abc')]
>>> list(parser.feed(b"not json" + bytes([10])))[0].reason
'not a line of JSON'
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

PROTOCOL = 1
"""Version of the protocol; a client refuses a worker that speaks another one."""

MAX_HEADER = 8 * 2**20
"""Longest JSON line in bytes that is accepted."""

MAX_BINARY = 256 * 2**20
"""Most raw bytes that one message may announce."""

Header = dict[str, Any]
Message = tuple[Header, bytes]


class Malformed(NamedTuple):
    """Something that is no message; the parser went on with the next line."""

    reason: str
    """Why it was refused, for people."""
    text: str
    """How it begins, at most 80 characters."""


class MessageParser:
    """Turn a stream of bytes, in pieces of any size, into messages.

    It never raises: what is not a message comes out as `Malformed` and parsing resumes behind the
    next line end.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: Header | None = None
        self._searched = 0  # no line end before this place; keeps long lines linear in time
        self._skipping = False  # inside a line that is too long

    def feed(self, data: bytes) -> Iterator[Message | Malformed]:
        """Take the next bytes of the stream and yield every message that they complete."""
        self._buffer += data
        while True:
            if self._header is None:
                line = self._line()
                if line is None:
                    return
                item = self._start(line)
                if item is not None:
                    yield item
                continue
            size = self._header.get("bin", 0)
            if len(self._buffer) < size:
                return
            payload = bytes(self._buffer[:size])
            del self._buffer[:size]
            header, self._header = self._header, None
            yield header, payload

    def _line(self) -> bytes | None:
        """The next whole line, or None when it has not arrived yet."""
        end = self._buffer.find(b"\n", self._searched)
        if end >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            return line
        if len(self._buffer) > MAX_HEADER:
            self._skipping = True
            self._buffer.clear()
        self._searched = len(self._buffer)
        return None

    def _start(self, line: bytes) -> Malformed | None:
        """Read a header line; None when it is good (or blank)."""
        if self._skipping or len(line) > MAX_HEADER:
            self._skipping = False
            return Malformed(f"a line longer than {MAX_HEADER} bytes", _begin(line))
        if not line.strip():
            return None
        try:
            header = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return Malformed("not a line of JSON", _begin(line))
        if not isinstance(header, dict):
            return Malformed("not a JSON object", _begin(line))
        size = header.get("bin", 0)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_BINARY:
            return Malformed(f"bin must be 0 to {MAX_BINARY} bytes", _begin(line))
        self._header = header
        return None


def encode(header: Header, payload: bytes = b"") -> bytes:
    """One message as bytes; `bin` is set from the payload.

    Raises:
        ValueError: If the header holds NaN or infinity, which are not JSON.
    """
    header = dict(header)
    header.pop("bin", None)
    if payload:
        header["bin"] = len(payload)
    text = json.dumps(header, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8") + b"\n" + payload


def join(parts: Iterable[bytes]) -> tuple[list[int], bytes]:
    """Several pieces as one payload: their lengths (for the header's `parts`) and the bytes.

    >>> join([b"ab", b"", b"c"])
    ([2, 0, 1], b'abc')
    """
    pieces = list(parts)
    return [len(piece) for piece in pieces], b"".join(pieces)


def split(lengths: Iterable[int], payload: bytes) -> list[bytes]:
    """Undo `join`.

    >>> split([2, 0, 1], b"abc")
    [b'ab', b'', b'c']
    """
    pieces, start = [], 0
    for length in lengths:
        pieces.append(payload[start : start + length])
        start += length
    return pieces


def _begin(line: bytes) -> str:
    return line[:80].decode("utf-8", "replace")
