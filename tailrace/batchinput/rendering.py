"""One row as a line of the Batch format: ``{"custom_id", "method", "url", "body"}``."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from tailrace.batchinput.readers import InvalidRow, Source
from tailrace.errors import TailraceError

URL = "/v1/chat/completions"
#: What a line of the Batch format may have; all else in it is the user's own.
FIELDS = frozenset({"custom_id", "method", "url", "body", "headers"})
#: The longest custom_id, in characters.
LONGEST_ID = 512
#: Hex digits of a custom_id that is made of what the row says.
ID_DIGITS = 16

_encode = msgspec.json.Encoder(order="deterministic").encode
_plain = msgspec.json.Encoder().encode


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """A row as it is sent. ``digest``: 16 bytes of what is asked, without the custom_id: equal ones ask the same.
    ``given``: whether the custom_id is the user's own. ``carried``: the other columns, as JSON."""

    line: int
    custom_id: str
    given: bool
    digest: bytes
    payload: bytes
    carried: bytes | None

    def renamed(self, custom_id: str) -> Rendered:
        """The same row under another custom_id; only one that was not given has such a need."""
        row: dict[str, Any] = msgspec.json.decode(self.payload)
        return dataclasses.replace(self, custom_id=custom_id, payload=_plain(row | {"custom_id": custom_id}))

    @property
    def body(self) -> dict[str, Any]:
        return msgspec.json.decode(self.payload)["body"]


class Renderer:
    """``model`` and ``params`` go before what a row says; ``template`` makes the prompt from the columns."""

    def __init__(
        self,
        *,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        template: _Template | None = None,
    ) -> None:
        self._model = model
        self._params = dict(params or {})
        self._template = template

    def render(self, source: Source) -> Rendered:
        """Raises InvalidRow."""
        row = source.columns
        custom_id = _custom_id(source)
        try:
            if "body" in row:
                return self._batch_line(source, custom_id)
            return self._columns(source, custom_id)
        except InvalidRow as error:
            error.custom_id = custom_id
            raise

    def _batch_line(self, source: Source, custom_id: str | None) -> Rendered:
        """A row that is in the Batch format already: sent as it is, where nothing changes it."""
        row, line = source.columns, source.line
        if self._template is not None:
            raise InvalidRow(line, "is in the Batch format, for which --template has no use", "body")
        body = row["body"]
        if isinstance(body, str):  # a CSV cell
            body = _json_cell(line, "body", body)
        if not isinstance(body, dict):
            raise InvalidRow(line, "must be a JSON object", "body")
        if row.get("method", "POST") != "POST":
            raise InvalidRow(line, "must be POST", "method")
        if str(row.get("url", URL)).removeprefix("/api/v1/llm").removeprefix("/v1") != "/chat/completions":
            raise InvalidRow(line, f"must be {URL}", "url")
        headers = row.get("headers")
        if isinstance(headers, str):
            headers = _json_cell(line, "headers", headers)
        if not isinstance(headers, dict | None):
            raise InvalidRow(line, "must be a JSON object", "headers")
        request = self._request(line, cast("dict[str, Any]", body), "body.")
        carried = {name: value for name, value in row.items() if name not in FIELDS}
        whole = not carried and isinstance(row["body"], dict) and row.get("method") and row.get("url")
        as_it_is = source.raw if whole and custom_id is not None and request is body else None
        return _rendered(line, custom_id, request, headers or None, carried, as_it_is)

    def _columns(self, source: Source, custom_id: str | None) -> Rendered:
        """A row of columns: ``messages`` or ``prompt`` says what is asked."""
        row, line = source.columns, source.line
        used = {"custom_id"} if "custom_id" in row else set[str]()
        if self._template is not None:
            messages: Any = _user(_not_blank(line, "the template's text", self._template.render(line, row)))
        elif row.get("messages") is not None:
            messages = row["messages"]
            if isinstance(messages, str):
                messages = _json_cell(line, "messages", messages)
            used.add("messages")
        elif row.get("prompt") is not None:
            messages = _user(_not_blank(line, "prompt", row["prompt"]))
            used.add("prompt")
        else:
            names = ", ".join(map(repr, list(row)[:8])) or "no columns"
            raise InvalidRow(line, f"has no 'prompt', 'messages' or 'body' (it has {names}): see --template")
        request: dict[str, Any] = {"messages": messages}
        if self._model is None and row.get("model"):
            request = {"model": row["model"], **request}
            used.add("model")
        carried = {name: value for name, value in row.items() if name not in used}
        return _rendered(line, custom_id, self._request(line, request, ""), None, carried, None)

    def _request(self, line: int, body: dict[str, Any], where: str) -> dict[str, Any]:
        """``body`` itself where nothing changes in it."""
        if self._model is not None or self._params:
            model = {} if self._model is None else {"model": self._model}
            body = {**body, **model, **self._params}
        model = body.get("model")
        if model is None:
            raise InvalidRow(line, "is missing: say --model", f"{where}model")
        if not isinstance(model, str) or not model:
            raise InvalidRow(line, "must be a string that is not empty", f"{where}model")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise InvalidRow(line, "must be an array with a message at least", f"{where}messages")
        for position, message in enumerate(cast("list[Any]", messages)):
            if not isinstance(message, dict) or not isinstance(cast("Any", message).get("role"), str):
                raise InvalidRow(line, "must be an object with a 'role'", f"{where}messages[{position}]")
        return body


class _Template(Protocol):
    def render(self, line: int, columns: Mapping[str, Any]) -> str: ...


class Template:
    """A Jinja2 template over the columns of a row, in a sandbox. Raises TailraceError where it is none."""

    def __init__(self, text_or_file: str) -> None:
        from tailrace import templating  # here, for it loads jinja2

        text = _template_text(text_or_file)
        try:
            self._template = templating.Template(text)
        except templating.Invalid as error:
            raise TailraceError(f"the template's line {error.line}: {error.message}") from None

    def render(self, line: int, columns: Mapping[str, Any]) -> str:
        """Raises InvalidRow."""
        from tailrace.templating import Failed

        try:
            return self._template.render(columns)
        except Failed as error:
            raise InvalidRow(line, f"the template fails: {error}") from None


def _template_text(text_or_file: str) -> str:
    try:
        path = Path(text_or_file)
        if path.is_file():
            return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        if "{{" not in text_or_file:
            raise TailraceError(f"the template {text_or_file!r} can't be read: {error}") from None
    if "{{" not in text_or_file and "{%" not in text_or_file:
        raise TailraceError(
            f"the template {text_or_file!r} is neither a file nor a text with {{{{ column }}}} in it"
        )
    return text_or_file


def _custom_id(source: Source) -> str | None:
    name = "custom_id" if source.columns.get("custom_id") is not None else "id"
    found = source.columns.get(name)
    if found is None or found == "" or isinstance(found, bool | float):
        if name == "custom_id":
            raise InvalidRow(source.line, "must be a string that is not empty", "custom_id")
        return None
    if not isinstance(found, str | int):
        if name == "custom_id":
            raise InvalidRow(source.line, "must be a string", "custom_id")
        return None
    if len(str(found)) > LONGEST_ID:
        raise InvalidRow(source.line, f"must have at most {LONGEST_ID} characters", name)
    return str(found)


def _rendered(
    line: int,
    custom_id: str | None,
    body: dict[str, Any],
    headers: Any,
    carried: dict[str, Any],
    as_it_is: bytes | None,
) -> Rendered:
    asked = {"body": body} if headers is None else {"body": body, "headers": headers}
    try:
        digest = hashlib.blake2b(_encode(asked), digest_size=16).digest()
        payload = as_it_is
        id = custom_id or f"row-{digest.hex()[:ID_DIGITS]}"
        if payload is None:
            payload = _plain({"custom_id": id, "method": "POST", "url": URL, **asked})
        kept = _plain(carried) if carried else None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRow(line, f"can't be said in JSON: {error}", custom_id=custom_id) from None
    return Rendered(line, id, custom_id is not None, digest, payload, kept)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _not_blank(line: int, name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise InvalidRow(line, "must be a string", name)
    if not text.strip():
        raise InvalidRow(line, "is empty", name)
    return text


def _json_cell(line: int, name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRow(line, f"is not valid JSON: {error}", name) from None
