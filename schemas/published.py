"""What is published of one choice, and how far a new attempt has said it again.

Compared are the values that a fold concatenates (``schemas/fold.py``): strings of a delta, fragments of tool calls,
lists, and also the role and ``finish_reason``. Ids, the numbers of logprobs and fields of which the last value stands
may differ between two runs.
"""

from __future__ import annotations

from typing import Any, cast

from schemas.codec import dumps

#: Fields of a choice that are looked into.
_MADE = frozenset({"index", "delta", "logprobs", "finish_reason"})

#: Where a value stands in a choice.
_Path = tuple[Any, ...]
#: A tool call's index, and how many calls came under it before: some providers number all of them 0.
_Key = tuple[int, int]


class Diverged(Exception):
    """The new attempt says something else than what is published: only a restart can publish it."""


class PublishedChoice:
    """What is published of one choice, and how far the new attempt has come in it."""

    def __init__(self) -> None:
        self.behind = 0  # published texts, lists and facts that the new attempt hasn't said in full
        self.finished = False
        self._sealed = False
        self._ended = False  # the new attempt's finish_reason has come
        self._texts: dict[_Path, _Text] = {}
        self._lists: dict[_Path, _List] = {}
        self._facts: dict[_Path, _Fact] = {}
        self._names: dict[_Path, str] = {}
        self._calls = _Calls()
        self._call_ids: dict[_Key, str] = {}
        self._new_ids: dict[str, str] = {}
        self._seen: dict[_Path, set[bytes]] = {}  # values published of fields of which the last one stands
        self._shown: dict[_Path, bytes] = {}
        self._latest: dict[_Path, Any] = {}

    def record(self, piece: dict[str, Any]) -> None:
        self.take(piece)
        for path, value in _values(piece).items():
            shown = self._shown[path] = dumps(value)
            self._seen.setdefault(path, set()).add(shown)

    def record_text(self, name: str, text: str) -> None:
        """Record a chunk that only has a text of the delta."""
        self._gathered(("delta", name), text)

    def seal(self) -> None:
        """All that is published is recorded."""
        self._sealed = True
        self._calls, self._names = _Calls(), {}
        self.finished = ("finish_reason",) in self._facts
        for field in (*self._texts.values(), *self._lists.values()):
            self.behind += field.seal()
        self.behind += sum(fact.due for fact in self._facts.values())

    @property
    def renames(self) -> bool:
        return bool(self._new_ids) and not self._ended

    def take(self, piece: dict[str, Any]) -> dict[str, Any] | None:
        """What of the piece is not published; None where there is nothing. Raises Diverged."""
        news = self._delta(dict_of(piece.get("delta")) or {})
        logprobs: dict[str, Any] = {}
        for name, value in (dict_of(piece.get("logprobs")) or {}).items():
            _put(logprobs, name, self._gathered(("logprobs", name), value))
        reason = piece.get("finish_reason")
        if reason is not None:
            if self._sealed and self.behind > self._due(("finish_reason",)):
                raise Diverged("A choice ended before it had said what is published.")
            self._ended = self._sealed
            if not self._fact(("finish_reason",), reason, due=True):
                reason = None
        if not self._sealed:
            return None
        values = _values(piece)
        self._latest |= values
        if not (news or logprobs or reason is not None):
            return None
        for path, value in values.items():
            self._shown[path] = dumps(value)
            if path[0] == "delta":
                news[path[1]] = value
        rest = {name: value for name, value in piece.items() if name not in _MADE}
        return {"delta": news, "logprobs": logprobs or None, "finish_reason": reason, **rest}

    def late(self) -> dict[str, Any] | None:
        """Values of which the last one stands that came in chunks otherwise published, and never were."""
        news: dict[str, dict[str, Any]] = {"delta": {}, "choice": {}}
        for path, value in self._latest.items():
            said = dumps(value)
            if said != self._shown.get(path) and said not in self._seen.get(path, ()):
                news[path[0]][path[1]] = value
        if not any(news.values()):
            return None
        return {"delta": news["delta"], "finish_reason": None, **news["choice"]}

    def renamed(self, piece: dict[str, Any]) -> dict[str, Any]:
        """The piece's delta, with the published ids of its tool calls in place of the new ones."""
        if piece.get("finish_reason") is not None:
            self._ended = True
        delta = dict_of(piece.get("delta")) or {}
        calls = delta.get("tool_calls")
        if not isinstance(calls, list):
            return {}
        calls = [
            {**call, "id": self._new_ids.get(str(call["id"]), call["id"])} if call.get("id") else call
            for call in dicts_of(cast("list[Any]", calls))
        ]
        return {"delta": {**delta, "tool_calls": calls}}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        news: dict[str, Any] = {}
        for name, value in delta.items():
            if name == "role":
                if value and self._fact(("role",), value, due=True):
                    news[name] = value
            elif name == "tool_calls":
                fragments = dicts_of(value)
                calls = [self._fragment(at, one, len(fragments) == 1) for at, one in enumerate(fragments)]
                _put(news, name, [call for call in calls if call is not None] or None)
            elif name in ("function_call", "audio"):
                _put(news, name, self._inside((name,), dict_of(value) or {}) or None)
            else:
                _put(news, name, self._gathered(("delta", name), value))
        return news

    def _fragment(self, position: int, fragment: dict[str, Any], alone: bool) -> dict[str, Any] | None:
        """The rest of a tool call's fragment. A call whose id is published keeps it."""
        key = self._calls.key(fragment, position, alone)
        path = ("tool_calls", key)
        if path not in self._facts and self._sealed:
            self._grown()
            return fragment
        self._fact(path, True, due=True)
        rest: dict[str, Any] = {}
        for name, value in fragment.items():
            if name == "id":
                if not isinstance(value, str) or not value:
                    continue
                published = self._call_ids.setdefault(key, value)
                if published is not value and published != value:
                    self._new_ids[value] = published
                elif self._fact((*path, "id"), True):
                    rest[name] = value
            elif name in ("function", "custom"):
                _put(rest, name, self._inside((*path, name), dict_of(value) or {}) or None)
            elif name == "type":
                if value and self._fact((*path, name), value):
                    rest[name] = value
            elif name != "index" and value is not None and self._first((*path, name)):
                rest[name] = value
        return {"index": key[0], **rest} if rest else None

    def _inside(self, path: _Path, inside: dict[str, Any]) -> dict[str, Any]:
        rest: dict[str, Any] = {}
        for name, value in inside.items():
            where = (*path, name)
            if name == "name" and isinstance(value, str):
                said = self._names.get(where, "")
                if value and value == said:
                    continue  # some providers repeat the name in every fragment
                self._names[where] = said + value
            if path == ("audio",) and name not in ("data", "transcript"):
                if value is not None and self._first(where):
                    rest[name] = value
            elif isinstance(value, str | list):
                _put(rest, name, self._gathered(where, value))
            elif value is not None and self._first(where):
                rest[name] = value
        return rest

    def _gathered(self, path: _Path, value: Any) -> Any:
        """The rest of a string or a list; None where there is none, and for other values."""
        if isinstance(value, str):
            field, fields = self._texts.get(path), self._texts
            if field is None:
                field = fields[path] = _Text()
                if self._sealed:  # an empty string where there was none is news: a fold tells it from null
                    field.seal()
                    self._grown(value)
                    return value
            if not self._sealed:
                field.record(value)
                return None
            rest = field.take(value)
        elif isinstance(value, list):
            values = cast("list[Any]", value)
            field = self._lists.get(path)
            if field is None:
                field = self._lists[path] = _List(tokens=path[0] == "logprobs")
                if self._sealed:
                    field.seal()
                    self._grown(values)
                    return values
            if not self._sealed:
                field.record(values)
                return None
            rest = field.take(values)
        else:
            return None
        if field.just_done:
            field.just_done = False
            self.behind -= 1
        self._grown(rest)
        return rest or None

    def _grown(self, rest: Any = True) -> None:
        """Called for what is beyond the published; a published choice that has ended has no more."""
        if rest and self.finished:
            raise Diverged("A choice goes on where the published one has ended.")

    def _fact(self, path: _Path, value: Any, *, due: bool = False) -> bool:
        """Whether the value is news; a published one must be the same. ``due`` ones must come again."""
        fact = self._facts.get(path)
        if fact is None:
            self._facts[path] = _Fact(value, due and not self._sealed)
            return True
        if not self._sealed:
            fact.value = value
        elif fact.value != value:
            raise Diverged(f"The new attempt has another {path[-1]}.")
        elif fact.due:
            fact.due = False
            self.behind -= 1
        return False

    def _due(self, path: _Path) -> bool:
        fact = self._facts.get(path)
        return fact is not None and fact.due

    def _first(self, path: _Path) -> bool:
        """Whether no value stands there yet; of such a field the published one stays."""
        if path in self._facts:
            return False
        self._facts[path] = _Fact(None, due=False)
        return True


class _Text:
    """A published string and how far it has been said again."""

    __slots__ = ("_at", "_pieces", "_text", "just_done")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._text = ""
        self._at = 0
        self.just_done = False

    def record(self, value: str) -> None:
        self._pieces.append(value)

    def seal(self) -> bool:
        """Whether there is anything to say again."""
        self._text = "".join(self._pieces)
        self._pieces.clear()
        return bool(self._text)

    def take(self, value: str) -> str:
        left = len(self._text) - self._at
        if left == 0:
            return value
        if not self._text.startswith(value[:left] if len(value) > left else value, self._at):
            raise Diverged("The new attempt says something else than what is published.")
        self._at += min(len(value), left)
        self.just_done = len(value) >= left
        return value[left:]


class _List:
    """A published list and how many of its items have been said again; of logprobs the tokens count alone."""

    __slots__ = ("_at", "_items", "_tokens", "just_done")

    def __init__(self, *, tokens: bool) -> None:
        self._items: list[Any] = []
        self._tokens = tokens
        self._at = 0
        self.just_done = False

    def record(self, values: list[Any]) -> None:
        self._items += map(_token, values) if self._tokens else values

    def seal(self) -> bool:
        return bool(self._items)

    def take(self, values: list[Any]) -> list[Any]:
        left = len(self._items) - self._at
        if left == 0:
            return values
        again = values[:left]
        said = [_token(value) for value in again] if self._tokens else again
        if said != self._items[self._at : self._at + len(again)]:
            raise Diverged("The new attempt has other list items than what is published.")
        self._at += len(again)
        self.just_done = len(again) == left
        return values[left:]


class _Fact:
    __slots__ = ("due", "value")

    def __init__(self, value: Any, due: bool) -> None:
        self.value = value
        self.due = due


class _Calls:
    """Tells which call a fragment belongs to, as the fold does: by index, else by id, else by position."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def key(self, fragment: dict[str, Any], position: int, alone: bool) -> _Key:
        id = fragment.get("id")
        id = id if isinstance(id, str) else ""
        named = any((dict_of(fragment.get(kind)) or {}).get("name") for kind in ("function", "custom"))
        call = self._find(fragment.get("index"), id, named, position, alone)
        call.id = call.id or id
        call.named = call.named or named
        if call.id:
            self._by_id.setdefault(call.id, call)
        return call.key

    def _find(self, index: Any, id: str, named: bool, position: int, alone: bool) -> _Call:
        if isinstance(index, int):
            call = self._by_index.get(index)
            if call is None or (id and call.id and id != call.id and call.named and named):
                return self._new(index)
            return call
        after = max(self._by_index, default=-1) + 1
        if id:
            return self._by_id.get(id) or self._new(after)
        if named or not self._calls:
            return self._new(after)
        return self._calls[-1 if alone or position >= len(self._calls) else position]

    def _new(self, index: int) -> _Call:
        before = self._by_index.get(index)
        call = self._by_index[index] = _Call((index, 0 if before is None else before.key[1] + 1))
        self._calls.append(call)
        return call


class _Call:
    __slots__ = ("id", "key", "named")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.id = ""
        self.named = False


def _values(piece: dict[str, Any]) -> dict[_Path, Any]:
    """The fields of which the last value stands, by where they are."""
    values: dict[_Path, Any] = {}
    for name, value in piece.items():
        if name not in _MADE and value is not None:
            values["choice", name] = value
    for name, value in (dict_of(piece.get("delta")) or {}).items():
        if value is not None and not isinstance(value, str | list) and name not in ("function_call", "audio"):
            values["delta", name] = value
    return values


def _token(value: Any) -> Any:
    """What of a logprobs item is the same in two equal runs."""
    token: Any = cast("dict[str, Any]", value).get("token") if isinstance(value, dict) else value
    return token if isinstance(token, str) else None


def _put(into: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        into[name] = value


def dict_of(value: Any) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def dicts_of(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        return []
    return [cast("dict[str, Any]", item) for item in cast("list[Any]", value) if isinstance(item, dict)]
