"""Server-sent events: the parser for what providers send, and the frames that the gateway sends.

The parser follows the WHATWG HTML standard, section 9.2.6: lines end in LF, CRLF or CR, data lines of an event are
joined with LF, comments and unknown fields are passed over. It works on bytes and decodes nothing, so a chunk of the
connection may end anywhere, also inside a UTF-8 character or between the CR and the LF of one line end.
"""

from __future__ import annotations

from schemas.codec import dumps

#: A comment: keeps the connection and the proxies on its way awake.
COMMENT = b": tailrace\n\n"

#: The frames of OpenAI's streams: only ``data:`` lines.
OPENAI_DONE = b"data: [DONE]\n\n"

_BOM = b"\xef\xbb\xbf"


class SSETooLarge(ValueError):
    """One event is longer than the parser's limit."""


class SSEParser:
    """Bytes in, the ``data`` of whole events out.

    ``limit`` is the size in bytes of one event from which the stream is refused (SSETooLarge).
    """

    __slots__ = ("_data", "_first", "_held", "_limit", "_parts", "_size", "_skip_lf")

    def __init__(self, limit: int = 64 * 1024 * 1024) -> None:
        self._parts: list[bytes] = []  # an unfinished line, as it came
        self._held = 0  # its size
        self._data: list[bytes] = []  # data lines of the unfinished event
        self._size = 0  # theirs, each with its line feed
        self._limit = limit
        self._skip_lf: bool = False  # the last piece ended in CR: an LF that comes next belongs to it
        self._first = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that ``piece`` completes, oldest first. Raises SSETooLarge."""
        if self._skip_lf and piece:
            self._skip_lf = False
            if piece[0] == 0x0A:
                piece = piece[1:]
        if b"\n" not in piece and b"\r" not in piece:
            if piece:
                self._parts.append(piece)
                self._held += len(piece)
                self._check()
            return []
        if self._parts:
            self._parts.append(piece)
            piece = b"".join(self._parts)
            self._parts.clear()
        if self._first:
            self._first = False
            piece = piece.removeprefix(_BOM)
        if b"\r" in piece:
            self._skip_lf = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = piece.split(b"\n")
        rest = lines.pop()
        self._held = len(rest)
        if rest:
            self._parts.append(rest)
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                data.append(value)
                self._size += len(value) + 1
            elif not line:
                if data:
                    if self._size - 1 > self._limit:
                        self._check()
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                    self._size = 0
            elif line == b"data":
                data.append(b"")
                self._size += 1
        if rest or data:
            self._check()
        return events

    def close(self) -> list[bytes]:
        """At the end of the stream: a last event whose closing blank line is missing, as some servers leave it."""
        self._skip_lf = False
        return self.feed(b"\n\n") if self._parts or self._data else []

    def _check(self) -> None:
        # An unfinished line may begin with "data: ", which is not the event's.
        if self._size - 1 > self._limit or self._size + self._held > self._limit + 6:
            raise SSETooLarge(f"one event is longer than {self._limit} bytes")


def done_frame(index: int) -> bytes:
    """The end of a whole answer in the seed's framing; ``index`` is the one after the last chunk."""
    return b"event: done\nid: %d\ndata: null\n\n" % index


def error_frame(code: str, message: str) -> bytes:
    """The end of any other answer in the seed's framing: a JSON string ``code: message``."""
    return b"event: error\ndata: " + dumps(f"{code}: {message}") + b"\n\n"


def openai_error_frame(body: object) -> bytes:
    """The end of any other answer in OpenAI's framing; ``body`` is ``{"error": {…}}``."""
    return b"data: " + dumps(body) + b"\n\n"
