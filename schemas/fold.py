"""Folding chunks into the ``chat.completion`` that the same call without streaming would have given.

Within a delta, strings are concatenated, lists extended, and of other values the last one stands; fragments
of tool calls are joined likewise. Of a choice and of the chunk itself the last value stands. A null never
takes the place of a value.
"""

from __future__ import annotations

from typing import Any, cast

#: Chunk fields that speak of the stream and mean nothing in a completion.
STREAM_ONLY = frozenset({"object", "choices", "usage", "obfuscation"})
#: Choice fields that ``Fold`` makes itself.
_MADE = frozenset({"index", "delta", "message", "logprobs", "finish_reason"})


class _Text(list[str]):
    """A string in pieces, joined once at the end: concatenating as they come takes quadratic time."""


class Fold:
    """Feed it every chunk with ``add``; ``completion`` may be asked for at any time."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Any = None

    def add(self, chunk: dict[str, Any]) -> None:
        """Take in one ``chat.completion.chunk``. The chunk is not changed, and no shape of it raises."""
        for name, value in chunk.items():
            if name not in STREAM_ONLY:
                _replace(self._fields, name, value)
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        for position, piece in enumerate(_dicts(chunk.get("choices"))):
            index = _index(piece, position)
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice(index)
            choice.add(piece)

    def completion(self) -> dict[str, Any]:
        fields = dict(self._fields)
        whole: dict[str, Any] = {
            "id": fields.pop("id", ""),
            "object": "chat.completion",
            "created": fields.pop("created", 0),
            "model": fields.pop("model", ""),
            "choices": [self._choices[index].whole() for index in sorted(self._choices)],
            **fields,
        }
        if self._usage is not None:
            whole["usage"] = self._usage
        return whole


class _Choice:
    def __init__(self, index: int) -> None:
        self.index = index
        self.fields: dict[str, Any] = {}
        self.role = "assistant"
        self.delta: dict[str, Any] = {}
        self.audio: dict[str, Any] | None = None
        self.function_call: _Call | None = None
        self.tool_calls = _ToolCalls()
        self.logprobs: dict[str, Any] | None = None
        self.finish_reason: Any = None

    def add(self, piece: dict[str, Any]) -> None:
        for name, value in piece.items():
            if name not in _MADE:
                _replace(self.fields, name, value)
        delta = _dict(piece.get("delta"))
        if delta:
            self._add_delta(delta)
        logprobs = _dict(piece.get("logprobs"))
        if logprobs is not None:
            if self.logprobs is None:
                self.logprobs = {}
            for name, value in logprobs.items():
                _gather(self.logprobs, name, value)
        if piece.get("finish_reason") is not None:
            self.finish_reason = piece["finish_reason"]

    def _add_delta(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if name == "role":
                self.role = _string(value) or self.role
            elif name == "tool_calls":
                self.tool_calls.add(_dicts(value))
            elif name == "function_call":
                call = _dict(value)
                if call is not None:
                    if self.function_call is None:
                        self.function_call = _Call()
                    self.function_call.add(call)
            elif name == "audio":
                audio = _dict(value)
                if audio is not None:
                    if self.audio is None:
                        self.audio = {}
                    for part, said in audio.items():
                        (_gather if part in ("data", "transcript") else _replace)(self.audio, part, said)
            else:
                _gather(self.delta, name, value)

    def whole(self) -> dict[str, Any]:
        said = _joined(self.delta)
        message: dict[str, Any] = {
            "role": self.role,
            "content": said.pop("content", None),
            "refusal": said.pop("refusal", None),
            **said,
        }
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls.whole()
        if self.function_call is not None:
            message["function_call"] = self.function_call.whole()
        if self.audio is not None:
            message["audio"] = _joined(self.audio)
        return {
            "index": self.index,
            "message": message,
            "logprobs": None if self.logprobs is None else _joined(self.logprobs),
            "finish_reason": self.finish_reason,
            **self.fields,
        }


class _Call:
    """The inside of a call: ``name`` with ``arguments`` (a function) or ``input`` (a custom tool)."""

    def __init__(self, said: str = "arguments") -> None:
        self.fields: dict[str, Any] = {"name": _Text(), said: _Text()}

    def add(self, fragment: dict[str, Any]) -> None:
        for name, value in fragment.items():
            if name == "name" and value and value == self.name:
                continue  # some providers repeat the name in every fragment
            _gather(self.fields, name, value)

    @property
    def name(self) -> str:
        name = self.fields["name"]
        return "".join(name) if isinstance(name, _Text) else ""

    def whole(self) -> dict[str, Any]:
        return _joined(self.fields)


class _ToolCall:
    def __init__(self) -> None:
        self.id: str = ""
        self.fields: dict[str, Any] = {}
        self.inside: dict[str, _Call] = {}

    def add(self, fragment: dict[str, Any]) -> None:
        for name, value in fragment.items():
            if name == "id":
                self.id = self.id or _string(value)
            elif name in ("function", "custom"):
                inside = _dict(value)
                if inside is not None:
                    if name not in self.inside:
                        self.inside[name] = _Call("input" if name == "custom" else "arguments")
                    self.inside[name].add(inside)
            elif name != "index":
                _replace(self.fields, name, value)

    @property
    def named(self) -> bool:
        return any(call.name for call in self.inside.values())

    def whole(self) -> dict[str, Any]:
        fields = dict(self.fields)
        kind = fields.pop("type", None) or ("custom" if "custom" in self.inside else "function")
        inside = {name: call.whole() for name, call in self.inside.items()}
        return {"id": self.id, "type": kind, **inside, **fields}


class _ToolCalls:
    """Joins fragments by ``index``; where there is none, by id; where there is neither, by position."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, _ToolCall]] = []  # as they came, each with its index
        self._by_index: dict[int, _ToolCall] = {}
        self._by_id: dict[str, _ToolCall] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, fragments: list[dict[str, Any]]) -> None:
        for position, fragment in enumerate(fragments):
            alone = len(fragments) == 1
            call = self._call_of(fragment, position, alone)
            call.add(fragment)
            if call.id:
                self._by_id.setdefault(call.id, call)

    def _call_of(self, fragment: dict[str, Any], position: int, alone: bool) -> _ToolCall:
        id = _string(fragment.get("id"))
        index = fragment.get("index")
        if isinstance(index, int):
            call = self._by_index.get(index)
            # Several whole calls under one index: some providers number all of them 0.
            if call is None or (_differ(id, call.id) and call.named and _names(fragment)):
                return self._new(index)
            return call
        if id:
            return self._by_id.get(id) or self._new(self._next_index())
        if _names(fragment) or not self._calls:
            return self._new(self._next_index())
        if alone or position >= len(self._calls):
            return self._calls[-1][1]
        return self._calls[position][1]

    def _next_index(self) -> int:
        return max(self._by_index, default=-1) + 1

    def _new(self, index: int) -> _ToolCall:
        call = self._by_index[index] = _ToolCall()
        self._calls.append((index, call))
        return call

    def whole(self) -> list[dict[str, Any]]:
        return [call.whole() for _, call in sorted(self._calls, key=lambda entry: entry[0])]


def _differ(id: str, other: str) -> bool:
    return bool(id and other and id != other)


def _names(fragment: dict[str, Any]) -> bool:
    """Whether a fragment carries the name of what is called, as the first one of a call does."""
    return any((_dict(fragment.get(kind)) or {}).get("name") for kind in ("function", "custom"))


def _replace(into: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        into[name] = value
    else:
        into.setdefault(name, None)


def _gather(into: dict[str, Any], name: str, value: Any) -> None:
    """Concatenate strings, extend lists, replace all else. ``content`` may go from a string to parts."""
    held: Any = into.get(name)
    if isinstance(value, str):
        if isinstance(held, _Text):
            held.append(value)
        elif name == "content" and isinstance(held, list):
            cast("list[Any]", held).append({"type": "text", "text": value})
        else:
            into[name] = _Text((value,))
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        if isinstance(held, _Text):
            before = "".join(held)
            into[name] = [{"type": "text", "text": before}] if name == "content" and before else []
            into[name].extend(items)
        elif isinstance(held, list):
            cast("list[Any]", held).extend(items)
        else:
            into[name] = [*items]
    else:
        _replace(into, name, value)


def _joined(gathered: dict[str, Any]) -> dict[str, Any]:
    """The gathered fields as plain values, safe from what is added later."""
    plain: dict[str, Any] = {}
    for name, value in gathered.items():
        if isinstance(value, _Text):
            plain[name] = "".join(value)
        else:
            plain[name] = cast("list[Any]", value)[:] if isinstance(value, list) else value
    return plain


def _dict(value: Any) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        return []
    return [cast("dict[str, Any]", item) for item in cast("list[Any]", value) if isinstance(item, dict)]


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _index(piece: dict[str, Any], position: int) -> int:
    index = piece.get("index")
    return index if isinstance(index, int) else position
