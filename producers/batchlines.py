"""A line of a batch's input file: what it asks for, or what is wrong with it.

The file is JSONL in UTF-8. A byte order mark before the first line, CRLF, and blank lines after the last row are passed
over; a blank line between rows is an error, for whoever wrote it may have lost a row there.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, BinaryIO, cast

import msgspec

from schemas.batches import ENDPOINTS, MAX_CUSTOM_ID
from schemas.errors import InvalidRequest
from schemas.headers import cache_directives, integer, name
from schemas.request import ChatCompletionRequest, parse_request

#: What is read of a file at once where nobody wants it, in bytes.
SKIP_BYTES = 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_FIELDS = ("custom_id", "method", "url", "body", "headers")


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line, as a batch's ``errors`` have it. ``line`` counts from 1; None is the file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Headers(msgspec.Struct, frozen=True):
    """What a row's ``headers`` say."""

    sample: int | None = None
    cache_control: str | None = None
    end_user: str | None = None


class InputRow(msgspec.Struct, frozen=True):
    """A row that can be asked, if there is a model of that name."""

    line: int
    custom_id: str
    request: ChatCompletionRequest
    headers: Headers


class Line(msgspec.Struct, frozen=True):
    """``data`` is without its line end; None where it was longer than a line may be."""

    number: int
    data: bytes | None


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row as nearly all are. What is not like it is looked at field by field."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_NO_HEADERS = Headers()
_decode = msgspec.json.Decoder(_Row).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_lines(file: BinaryIO, most: int) -> Generator[Line]:
    """The lines of a file that are to be rows. ``most``: bytes of a line, which are all that is in memory of it.

    Blank lines come when a line that is not blank follows.
    """
    number, blank = 0, 0
    size = len(_BOM) + most + len(b"\r\n") + 1
    while data := file.readline(size):
        number += 1
        if len(data) == size and not data.endswith(b"\n"):
            _skip_line(file)
        row = data.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            row = row.removeprefix(_BOM)
        if not row or row.isspace():
            blank = blank or number
            continue
        if blank:
            yield from (Line(n, b"") for n in range(blank, number))
            blank = 0
        yield Line(number, row if len(row) <= most else None)


def _skip_line(file: BinaryIO) -> None:
    while (part := file.readline(SKIP_BYTES)) and not part.endswith(b"\n"):
        pass


def read_row(line: Line, most: int) -> InputRow | list[LineError]:
    """The row, or all that is wrong with it. ``most`` is for the words."""
    number, data = line.number, line.data
    if data is None:
        return [LineError("line_too_long", f"This line has more than {most:,} bytes.", None, number)]
    if not data:
        return [LineError("blank_line", "This line is blank. Remove it.", None, number)]
    try:
        data.decode()
    except UnicodeDecodeError as error:
        message = f"This line is not UTF-8: byte {error.start + 1} of it is 0x{data[error.start]:02x}."
        return [LineError("invalid_encoding", message, None, number)]
    try:
        row = _decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return _read_fields(number, data)
    if row.method != "POST" or row.url not in ENDPOINTS or not _is_custom_id(row.custom_id):
        return _read_fields(number, data)
    try:
        return InputRow(number, row.custom_id, parse_request(bytes(row.body)), _NO_HEADERS)
    except InvalidRequest as error:
        return [_in_body(error, number)]


def _is_custom_id(value: str) -> bool:
    return 0 < len(value) <= MAX_CUSTOM_ID and "\0" not in value and not value.isspace()


def _read_fields(number: int, data: bytes) -> InputRow | list[LineError]:
    """As ``read_row``, telling of every field by itself."""
    try:
        fields = _decode_fields(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        return [_not_a_row(number, data, error)]
    found = _Findings(number)
    for field in fields:
        if field not in _FIELDS:
            known = ", ".join(_FIELDS)
            found.add(
                "unknown_parameter", f"A row has no field '{field[:80]}'; it may have {known}.", field[:80]
            )
    custom_id = found.text(fields, "custom_id")
    if custom_id is not None and not _is_custom_id(custom_id):
        found.add(
            "invalid_custom_id",
            f"'custom_id' must be 1 to {MAX_CUSTOM_ID} characters without U+0000.",
            "custom_id",
        )
    method = found.text(fields, "method")
    if method is not None and method != "POST":
        found.add("invalid_method", f"'method' must be 'POST', not {method[:40]!r}.", "method")
    url = found.text(fields, "url")
    if url is not None and url not in ENDPOINTS:
        found.add("invalid_url", f"'url' must be '{ENDPOINTS[0]}', not {url[:80]!r}.", "url")
    headers = found.headers(fields)
    request = found.body(fields)
    if found.errors or custom_id is None or headers is None or request is None:
        return found.errors
    return InputRow(number, custom_id, request, headers)


class _Findings:
    """What is wrong with the fields of one row."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.errors: list[LineError] = []

    def add(self, code: str, message: str, param: str) -> None:
        self.errors.append(LineError(code, message, param, self._number))

    def text(self, fields: dict[str, msgspec.Raw], name: str) -> str | None:
        value = self._value(fields, name)
        if value is None:
            self.add("missing_required_parameter", f"'{name}' is required.", name)
        elif not isinstance(value, str):
            self.add(f"invalid_{name}", f"'{name}' must be a string.", name)
        else:
            return value
        return None

    def body(self, fields: dict[str, msgspec.Raw]) -> ChatCompletionRequest | None:
        raw = bytes(fields.get("body", b"null"))
        if raw == b"null":
            self.add("missing_required_parameter", "'body' is required.", "body")
            return None
        try:
            return parse_request(raw)
        except InvalidRequest as error:
            self.errors.append(_in_body(error, self._number))
            return None

    def headers(self, fields: dict[str, msgspec.Raw]) -> Headers | None:
        value = self._value(fields, "headers")
        if value is None:
            return _NO_HEADERS
        if not isinstance(value, dict):
            self.add("invalid_headers", "'headers' must be an object.", "headers")
            return None
        said: dict[str, Any] = {}
        for header, text in cast("dict[str, Any]", value).items():
            try:
                said |= _header(header, text)
            except InvalidRequest as error:
                self.add("invalid_headers", error.message, f"headers.{header[:80]}")
        return Headers(**said)

    def _value(self, fields: dict[str, msgspec.Raw], name: str) -> Any:
        try:
            return msgspec.json.decode(fields[name]) if name in fields else None
        except (msgspec.MsgspecError, RecursionError):  # a number or a depth that nobody needs here
            return object()


def _header(header: str, text: Any) -> dict[str, Any]:
    """Raises InvalidRequest."""
    if not isinstance(text, str):
        raise InvalidRequest(f"The header '{header[:80]}' must be a string.")
    match header.lower():
        case "x-sample":
            return {"sample": integer(text, name=header, least=0)}
        case "x-on-behalf-of":
            return {"end_user": name(text, header=header)}
        case "cache-control":
            cache_directives(name(text, header=header))
            return {"cache_control": text}
        case _:
            raise InvalidRequest(
                f"A row can't have the header '{header[:80]}'; it may have x-sample, Cache-Control and X-On-Behalf-Of."
            )


def _not_a_row(number: int, data: bytes, error: Exception) -> LineError:
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError) as reason:
        hint = " A byte order mark stands before it." if data.startswith(_BOM) else ""
        return LineError("invalid_json_line", f"This line is not valid JSON: {reason}.{hint}", None, number)
    return LineError("invalid_json_line", "This line must be a JSON object.", None, number)


def _in_body(error: InvalidRequest, number: int) -> LineError:
    """The error of a request, as one of a row's body."""
    if error.param is None:
        return LineError("invalid_body", error.message.replace("The body", "'body'", 1), "body", number)
    message = error.message.replace(f"'{error.param}'", f"'body.{error.param}'", 1)
    return LineError(error.code, message, f"body.{error.param}", number)
