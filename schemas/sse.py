"""Server-sent events: the parser for what providers send, and the frames that the gateway sends.

The parser follows the WHATWG HTML standard, section 9.2.6: lines end in LF, CRLF or CR, data lines of an event are
joined with LF, comments and unknown fields are passed over. It works on bytes and decodes nothing, so a chunk of the
connection may end anywhere, also inside a UTF-8 character or between the CR and the LF of one line end.
"""

from __future__ import annotations

import msgspec

#: A comment: keeps the connection and the proxies on its way awake.
COMMENT = b": tailrace\n\n"

#: The frames of OpenAI's streams: only ``data:`` lines.
OPENAI_DONE = b"data: [DONE]\n\n"

_BOM = b"\xef\xbb\xbf"
_json = msgspec.json.Encoder()


class SSETooLarge(ValueError):
    """One event is longer than the parser's limit."""


class SSEParser:
    """Bytes in, the ``data`` of whole events out.

    ``limit`` is the size in bytes of one event from which the stream is refused (SSETooLarge).
    """

    __slots__ = ("_buffer", "_data", "_first", "_limit", "_size", "_skip_lf")

    def __init__(self, limit: int = 64 * 1024 * 1024) -> None:
        self._buffer = b""  # an unfinished line
        self._data: list[bytes] = []  # data lines of the unfinished event
        self._size = 0
        self._limit = limit
        self._skip_lf = False  # the last piece ended in CR: an LF that comes next belongs to it
        self._first = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that ``piece`` completes, oldest first."""
        if not piece:
            return []
        if self._skip_lf:
            self._skip_lf = False
            if piece[0] == 0x0A:
                piece = piece[1:]
        if self._buffer:
            piece = self._buffer + piece
            self._buffer = b""
        if self._first:
            if len(piece) < 3 and _BOM.startswith(piece):
                self._buffer = piece
                return []
            self._first = False
            piece = piece.removeprefix(_BOM)
        if b"\r" in piece:
            self._skip_lf = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = piece.split(b"\n")
        self._buffer = lines.pop()
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                data.append(value)
                self._size += len(value)
            elif not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                    self._size = 0
            elif line == b"data":
                data.append(b"")
        if self._size + len(self._buffer) > self._limit:
            raise SSETooLarge(f"one event is longer than {self._limit} bytes")
        return events

    def close(self) -> list[bytes]:
        """At the end of the stream: a last event whose closing blank line is missing, as some servers leave it."""
        return self.feed(b"\n\n") if self._buffer or self._data else []


def done_frame(index: int) -> bytes:
    """The end of a whole answer in the seed's framing; ``index`` is the one after the last chunk."""
    return b"event: done\nid: %d\ndata: null\n\n" % index


def error_frame(code: str, message: str) -> bytes:
    """The end of any other answer in the seed's framing: a JSON string ``code: message``."""
    return b"event: error\ndata: " + _json.encode(f"{code}: {message}") + b"\n\n"


def openai_error_frame(body: object) -> bytes:
    """The end of any other answer in OpenAI's framing; ``body`` is ``{"error": {…}}``."""
    return b"data: " + _json.encode(body) + b"\n\n"
