"""A ``multipart/form-data`` body with one file, parsed while it comes: its fields whole, the file in pieces."""

from __future__ import annotations

from collections.abc import Collection

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from schemas.errors import InvalidRequest, TooLarge

#: Bytes of a field, and characters of a file's name.
FIELD_LIMIT, NAME_LIMIT = 1024, 512
#: What may come beside the file: boundaries, headers, fields.
OVERHEAD = 64 * 1024

_FILE = "file"
_PLAIN = (b"", b"binary", b"8bit", b"7bit")


class Form:
    """``feed`` it the body, ``take`` the file's bytes whenever there are enough of them, and ``finish`` it.

    Each of them raises InvalidRequest for what is wrong, or TooLarge for a file of more than ``limit`` bytes.
    """

    def __init__(self, content_type: str, fields: Collection[str], *, limit: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            raise InvalidRequest(
                "Send the file as multipart/form-data, with the parts 'file' and 'purpose'.",
                code="invalid_content_type",
            )
        if not options.get(b"boundary"):
            raise InvalidRequest("The Content-Type names no boundary.", code="invalid_multipart")
        self._known = fields
        self._limit = limit
        #: What the form says beside the file.
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        #: Bytes of the file so far.
        self.size = 0
        self._fed = 0
        self._waiting = bytearray()
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._field = bytearray()
        self._whole = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_part,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _broken(error) from None

    @property
    def waiting(self) -> int:
        """How many bytes ``take`` would give."""
        return len(self._waiting)

    def take(self) -> bytes:
        """The bytes of the file that came since the last time."""
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken

    def feed(self, data: bytes) -> None:
        self._fed += len(data)
        if self._fed > self._limit + OVERHEAD:
            raise too_large(self._limit)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _broken(error) from None

    def finish(self) -> None:
        if not self._whole:
            raise InvalidRequest(
                "The multipart body ends before its last boundary: it was cut off.", code="invalid_multipart"
            )
        if self.filename is None:
            raise _missing(_FILE)
        if not self.size:
            raise InvalidRequest("The file is empty.", param=_FILE, code="empty_file")

    def field(self, name: str) -> str:
        """Raises InvalidRequest where the form doesn't have it."""
        if name not in self.fields:
            raise _missing(name)
        return self.fields[name]

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value).strip(b" \t")
        self._header.clear()
        self._value.clear()

    def _begin_part(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequest(
                "A part has no 'Content-Disposition: form-data' with a name.", code="invalid_multipart"
            )
        name = options[b"name"].decode(errors="replace")
        if name != _FILE and name not in self._known:
            raise InvalidRequest(
                f"There is no field {name[:40]!r} here; there are {', '.join((_FILE, *self._known))}.",
                param=name[:40],
            )
        if name in self.fields or (name == _FILE and self.filename is not None):
            raise InvalidRequest(f"'{name}' must be sent once.", param=name)
        if self._headers.get(b"content-transfer-encoding", b"").lower() not in _PLAIN:
            raise InvalidRequest(
                f"'{name}' has a Content-Transfer-Encoding: send its bytes as they are.", param=name
            )
        if name == _FILE:
            self.filename = _filename(options.get(b"filename", b""))
        self._name = name
        self._field.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _FILE:
            self.size += end - start
            if self.size > self._limit:
                raise too_large(self._limit)
            self._waiting += memoryview(data)[start:end]
        elif len(self._field) + end - start > FIELD_LIMIT:
            raise InvalidRequest(f"'{self._name}' is longer than {FIELD_LIMIT:,} bytes.", param=self._name)
        else:
            self._field += data[start:end]

    def _end_part(self) -> None:
        if self._name != _FILE:
            try:
                self.fields[self._name] = self._field.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"'{self._name}' is not UTF-8.", param=self._name) from None

    def _end(self) -> None:
        self._whole = True


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The file is larger than {limit:,} bytes. Send less, or raise TAILRACE_MAX_FILE_BYTES.",
        param=_FILE,
        code="file_too_large",
    )


def _filename(given: bytes) -> str:
    try:
        name = given.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The filename of 'file' is not UTF-8.", param=_FILE) from None
    if not name:
        raise InvalidRequest("'file' has no filename: send it as a file, not as a field.", param=_FILE)
    if len(name) > NAME_LIMIT or not name.isprintable():
        raise InvalidRequest(
            f"The filename of 'file' must be at most {NAME_LIMIT} printable characters.", param=_FILE
        )
    return name


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"The part '{name}' is missing.", param=name, code="missing_required_parameter")


def _broken(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"The multipart body can't be read: {error}.", code="invalid_multipart")
