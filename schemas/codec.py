"""The chunk log's codec: from a provider's chunk to a log item, and from items to the chunks that clients see.

A log item is one line of bytes (``docs/architecture.md`` has the table). What is the same in all chunks of a generation
is its **head** and stored once; ``id``, ``created`` and ``model`` belong to the completion and are put in at reading.

Encoding costs 2 to 3 µs a chunk where a provider's chunks differ in their text alone, which is nearly always: then the
text is cut out between a known prefix and suffix and never parsed. Rendering an item as an SSE frame joins bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import msgspec

#: Fields of a chunk that belong to the completion or are the same by contract.
_OURS = ("id", "object", "created", "model", "resolved_model", "resolved_provider")
#: What a number's exponent may be where it doesn't fit a double; beyond it the chunk is refused as garbage.
_MAX_EXPONENT = 4096
#: How deep a chunk may be nested. Python's own limit depends on how deep its stack is already, and what a worker takes
#: in every reader must be able to read.
MAX_DEPTH = 256

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

#: A whole JSON string and nothing else. Possessive, so that a text of megabytes costs neither stack nor second looks.
_STRING = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"')
_EMPTY_HEAD = b"{}"


class BadChunk(ValueError):
    """What a provider sent is not a chunk: not JSON, or not an object."""


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all chunks of a generation share: fields of the chunk, and fields of its only choice.

    ``by`` is the provider and the model that said them, where these are not the ones that were meant at first.
    """

    top: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    by: tuple[str, str] | None = None


def loads(text: bytes | str) -> Any:
    """Any JSON text as Python values, without loss: lone surrogates, integers of any size, floats beyond a double.

    Raises BadChunk for what is not JSON, for numbers of more than some 4,000 digits and for what is nested too deeply.
    """
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_float=_parse_float, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadChunk("not usable JSON: it is nested too deeply") from None
    except ValueError as error:
        raise BadChunk(f"not JSON: {error}") from None


def dumps(value: Any) -> bytes:
    """The inverse of ``loads``, on one line."""
    try:
        return _encode(value)
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError):
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _parse_float(text: str) -> float | int:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        try:
            exact = Decimal(text)
        except InvalidOperation:
            exact = Decimal("Infinity")
        if exact.is_infinite() or exact.adjusted() > _MAX_EXPONENT:
            raise ValueError(f"the number {text[:40]} is out of range")
        return int(exact)
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


class ChunkEncoder:
    """Turns the chunks of one attempt into log items.

    After the first ``encode`` the attempt's ``head`` stands. ``finished`` tells which choices have their
    ``finish_reason``; ``usage`` is the last one that the provider sent; ``error`` what it put in place of a chunk.
    With a ``head`` the items are for a log that has it, and goes on; ``by`` goes into one that is new.
    """

    def __init__(self, head: bytes | None = None, *, by: tuple[str, str] | None = None) -> None:
        self._head: Head | None = decode_head(head) if head else None
        self._by = by
        self._fast_prefix: bytes | None = None
        self._fast_suffix = b""
        self._seen_choices: set[int] = set()
        self.finish_reasons: dict[int, str] = {}
        self.usage: dict[str, Any] | None = None
        self.error: Any = None
        self.text_bytes = 0
        #: Whether there was any chunk.
        self.observed = False

    @property
    def head(self) -> bytes:
        """The head as JSON; ``{}`` before the first chunk."""
        return _EMPTY_HEAD if self._head is None else dumps(msgspec.to_builtins(self._head))

    def whole(self, choices: int) -> bool:
        """Whether all ``choices`` that were asked for, and any that came beside them, have ended."""
        ended = self.finish_reasons.keys()
        return len(ended) >= choices and self._seen_choices <= ended

    def encode(self, raw: bytes) -> bytes | None:
        """The item for one chunk as the provider sent it; None for what is no chunk but says how the stream goes
        (an ``error`` object). Raises BadChunk."""
        prefix = self._fast_prefix
        if prefix is not None and raw.startswith(prefix) and raw.endswith(self._fast_suffix):
            text = raw[len(prefix) : len(raw) - len(self._fast_suffix)]
            if _STRING.fullmatch(text) is not None:
                if not text.isascii():
                    try:
                        text.decode()
                    except UnicodeDecodeError:
                        return self._encode_slow(raw)
                self.text_bytes += len(text) - 2
                return text
        return self._encode_slow(raw)

    def _encode_slow(self, raw: bytes) -> bytes | None:
        chunk = self.parse(raw)
        if chunk is None:
            return None
        item = self.encode_chunk(chunk)
        if item.startswith(b'"'):
            self._learn(raw, item)
        return item

    def parse(self, raw: bytes) -> dict[str, Any] | None:
        """One chunk as the provider sent it, without its item; None as with ``encode``. Raises BadChunk."""
        chunk = loads(raw)
        if not isinstance(chunk, dict):
            raise BadChunk("a chunk must be a JSON object")
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(chunk) > MAX_DEPTH:
            raise BadChunk(f"it is nested more than {MAX_DEPTH} levels deep")
        chunk = cast("dict[str, Any]", chunk)
        if chunk.get("error") is not None and not chunk.get("choices"):
            self.error = chunk["error"]
            return None
        return chunk

    def observe(self, chunk: dict[str, Any]) -> None:
        """Take note of a parsed chunk that is not published. Raises BadChunk."""
        self._observe(_normal_choices(chunk.get("choices")), chunk)

    def encode_chunk(self, chunk: dict[str, Any], *, observe: bool = True) -> bytes:
        """The item for one parsed chunk; changes ``chunk``. Raises BadChunk."""
        for name in _OURS:
            chunk.pop(name, None)
        if chunk.get("usage", self) is None:
            del chunk["usage"]
        choices_value = chunk.pop("choices", None)
        choices = _normal_choices(choices_value)
        if observe:
            self._observe(choices, chunk)
        if self._head is None:
            extra = choices[0] if len(choices) == 1 else {}
            self._head = Head(
                top={k: v for k, v in chunk.items() if k not in ("usage", "timings")},
                choice={k: v for k, v in extra.items() if k not in ("index", "delta", "finish_reason")}
                if _is_constant(extra)
                else {},
                by=self._by,
            )
        head = self._head
        if chunk != head.top or not _same_types(chunk, head.top):
            return dumps(chunk | {"choices": choices})
        if len(choices) == 1:
            choice = choices[0]
            delta = choice["delta"]
            if (
                choice["index"] == 0
                and len(delta) == 1
                and choice["finish_reason"] is None
                and len(choice) == 3 + len(head.choice)
                and all(choice.get(k, self) == v for k, v in head.choice.items())
            ):
                name, value = next(iter(delta.items()))
                if isinstance(value, str):
                    if name == "content":
                        return dumps(value)
                    if name == "reasoning_content":
                        return b"~" + dumps(value)
        return dumps(choices)

    def _observe(self, choices: list[dict[str, Any]], chunk: dict[str, Any]) -> None:
        self.observed = True
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = cast("dict[str, Any]", usage)
        for choice in choices:
            index = choice["index"]
            self._seen_choices.add(index)
            if choice["finish_reason"] is not None:
                self.finish_reasons[index] = str(choice["finish_reason"])
            for value in choice["delta"].values():
                if isinstance(value, str):
                    self.text_bytes += len(value)
                elif isinstance(value, list):
                    self.text_bytes += len(repr(cast("list[Any]", value))) // 2

    def _learn(self, raw: bytes, item: bytes) -> None:
        """Find where the text stands in the provider's own bytes, so that the next chunk needs no parsing."""
        if len(item) < 3 or raw.count(item) != 1:
            return
        at = raw.index(item)
        prefix, suffix = raw[:at], raw[at + len(item) :]
        # Proof by substitution: another text between the two must give just that text.
        try:
            probe: Any = loads(prefix + b'"\\u0001tailrace"' + suffix)
            delta: Any = probe["choices"][0]["delta"]
        except (BadChunk, LookupError):
            return
        if delta == {"content": "\x01tailrace"}:
            self._fast_prefix, self._fast_suffix = prefix, suffix


def _depth(value: Any) -> int:
    """How many objects and lists are inside each other."""
    depth = 0
    level: list[Any] = [value]
    while containers := [cast("dict[Any, Any] | list[Any]", v) for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [child for c in containers for child in (c.values() if isinstance(c, dict) else c)]
    return depth


def _normal_choices(value: Any) -> list[dict[str, Any]]:
    """The choices with ``index``, ``delta`` and ``finish_reason`` in place. Raises BadChunk."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadChunk("'choices' must be a list")
    choices: list[dict[str, Any]] = []
    for position, choice in enumerate(cast("list[Any]", value)):
        if not isinstance(choice, dict):
            raise BadChunk("a choice must be an object")
        choice = cast("dict[str, Any]", choice)
        index = choice.get("index")
        if index is None:
            choice["index"] = position
        elif not isinstance(index, int) or isinstance(index, bool):
            raise BadChunk("a choice's 'index' must be an integer")
        if choice.get("delta") is None:
            choice["delta"] = {}
        elif not isinstance(choice["delta"], dict):
            raise BadChunk("a choice's 'delta' must be an object")
        choice.setdefault("finish_reason", None)
        choices.append(choice)
    return choices


def _is_constant(choice: dict[str, Any]) -> bool:
    """Fields beside a choice's delta are taken for shared only where they say nothing yet."""
    return bool(choice) and all(
        v is None for k, v in choice.items() if k not in ("index", "delta", "finish_reason")
    )


def _same_types(a: Any, b: Any) -> bool:
    """Equal values of equal types: 1, 1.0 and True are equal to Python and not to JSON."""
    return (not a and not b) or dumps(a) == dumps(b)


def decode_item(item: bytes, head: Head) -> dict[str, Any]:
    """The chunk of one item, without the completion's own fields."""
    kind = item[:1]
    if kind in (b'"', b"~"):
        name, text = ("content", item) if kind == b'"' else ("reasoning_content", item[1:])
        choice = {"index": 0, "delta": {name: loads(text)}, "finish_reason": None, **head.choice}
        return {**head.top, "choices": [choice]}
    if kind == b"[":
        return {**head.top, "choices": loads(item)}
    return cast("dict[str, Any]", loads(item))


def decode_head(data: bytes | str) -> Head:
    value: dict[str, Any] = loads(data) if data else {}
    by = value.get("by")
    return Head(top=value.get("top", {}), choice=value.get("choice", {}), by=tuple(by) if by else None)


def split_items(payload: bytes) -> list[bytes]:
    """The items of one entry. No item is empty and none holds a line feed."""
    return payload.split(b"\n")


class Renderer:
    """Turns items into the JSON of the chunks that one completion's readers see.

    ``flat_logprobs`` adds the seed's flat keys beside OpenAI's, as its endpoint promises.
    """

    __slots__ = ("_content", "_fields", "_flat", "_head", "_own", "_reason_a", "_reason_b", "_reason_c", "_tail",
                 "_top")  # fmt: skip

    def __init__(
        self,
        *,
        completion: str,
        created: int,
        model: str,
        resolved_model: str,
        resolved_provider: str,
        flat_logprobs: bool = False,
    ) -> None:
        self._fields = {
            "id": completion,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "resolved_model": resolved_model,
            "resolved_provider": resolved_provider,
        }
        self._flat = flat_logprobs
        self.set_head(_EMPTY_HEAD)

    def set_head(self, data: bytes) -> None:
        head = decode_head(data)
        self._head = head
        fields = self._fields
        if head.by is not None:
            fields = fields | {"resolved_provider": head.by[0], "resolved_model": head.by[1]}
        self._own = dumps(fields)[:-1] + b","
        extra = dumps(head.choice)[1:-1]
        top = dumps(head.top)[1:-1]
        start = self._own + (top + b"," if top else b"")
        self._top = start + b'"choices":'
        rest = b',"finish_reason":null' + (b"," + extra if extra else b"") + b"}]}"
        self._content = self._top + b'[{"index":0,"delta":{"content":'
        self._tail = b"}" + rest
        self._reason_a = self._top + b'[{"index":0,"delta":{"reasoning_content":'
        self._reason_b = b',"reasoning":'
        self._reason_c = b"}" + rest

    def render(self, item: bytes) -> bytes:
        """One chunk as JSON, on one line."""
        kind = item[0]
        if kind == 0x22:  # a string: the content
            return self._content + item + self._tail
        if kind == 0x7E:  # ~
            text = item[1:]
            return self._reason_a + text + self._reason_b + text + self._reason_c
        if b'"reasoning_content"' in item or (self._flat and b'"logprobs"' in item):
            item = dumps(self._adorn(loads(item)))
        if kind == 0x5B:  # [
            return self._top + item + b"}"
        return self._own + item[1:]

    def is_usage_only(self, item: bytes) -> bool:
        """Whether the chunk carries usage and no choice: OpenAI's clients see it only if they asked."""
        if item[0] != 0x7B or not item.endswith(b'"choices":[]}'):  # the encoder writes the choices last
            return False
        return loads(item).get("usage") is not None

    def _adorn(self, value: Any) -> Any:
        """The choices of an item, or the whole chunk, with what clients are promised beside what was sent."""
        choices: Any = cast("Any", value) if isinstance(value, list) else value["choices"]
        for choice in cast("list[dict[str, Any]]", choices):
            delta: dict[str, Any] = choice["delta"]
            if "reasoning_content" in delta:
                delta.setdefault("reasoning", delta["reasoning_content"])
            logprobs = choice.get("logprobs")
            if self._flat and isinstance(logprobs, dict):
                choice["logprobs"] = _flat_logprobs(cast("dict[str, Any]", logprobs))
        return cast("Any", value)


def _flat_logprobs(logprobs: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's ``content`` list, and beside it the legacy columns: one row a token, offsets in characters."""
    content = logprobs.get("content")
    if not isinstance(content, list):
        return logprobs
    rows = _dicts(cast("list[Any]", content))
    offsets: list[int] = []
    at = 0
    for row in rows:
        offsets.append(at)
        at += len(str(row.get("token", "")))
    return {
        "tokens": [row.get("token") for row in rows],
        "token_logprobs": [row.get("logprob") for row in rows],
        "top_logprobs": [
            {str(top.get("token")): top.get("logprob") for top in _dicts(row.get("top_logprobs"))}
            for row in rows
        ],
        "text_offset": offsets,
    } | logprobs


def _dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; nothing of what is no list."""
    if not isinstance(value, list):
        return []
    return [cast("dict[str, Any]", item) for item in cast("list[Any]", value) if isinstance(item, dict)]


def runs_of(items: bytes) -> list[bytes]:
    """The items of a log, of which those that follow each other and are nothing but text are one: they fold to the same
    answer. A string has neither a line feed nor a quote in it, so no other three bytes look like the seam of two.
    """
    if not items:
        return []
    # Reasoning looks the same from behind; to a list of parts each piece of text would be added as a part.
    if items.startswith(b"~") or b"\n~" in items or b'"content":[' in items:
        return split_items(items)
    return split_items(items.replace(b'"\n"', b""))


def chunks_of(items: Sequence[bytes], renderer: Renderer) -> Iterator[dict[str, Any]]:
    """Items as the Python values that clients see."""
    for item in items:
        yield loads(renderer.render(item))
