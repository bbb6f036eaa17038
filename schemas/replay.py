"""Going on with an answer that was interrupted: a new attempt regenerates it, and readers see no seam.

``Replay`` compares what a new attempt says with what is published, whatever the chunks it comes in, and lets through
what goes beyond. ``published_text`` and ``without_role`` serve providers that continue a text they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.codec import decode_head, decode_item, loads
from schemas.published import Diverged, PublishedChoice, dict_of, dicts_of

__all__ = ["Diverged", "Replay", "published_text", "without_role"]

#: Fields of a chunk that no reader misses where a chunk as a whole is dropped.
_VOLATILE = frozenset(
    {"id", "object", "created", "model", "resolved_model", "resolved_provider", "choices", "obfuscation"}
    | {"system_fingerprint", "service_tier", "timings"}
)

#: Items that are a text alone, by their first byte: nearly all of a log.
_TEXT_ITEMS = {b'"': "content", b"~": "reasoning_content"}


class Replay:
    """Holds the new attempt's chunks against the published ``items`` of the log, all under one ``head``.

    Nothing is let through before everything that was published has been regenerated: what comes earlier and goes
    beyond (of one choice while another is behind) is held until then. So where the attempts diverge, no reader has
    seen a word of the new one. The next step is then the caller's.

    ``caught_up`` tells when chunks need not be fed any more: from then on they may go to the log as they come. It
    stays false where a call to a tool is published under another id than the new attempt's and its choice goes on,
    since a provider may repeat the id in any chunk; and until the new attempt's usage has come where usage after a
    whole answer is published. ``feed`` lets the rest through at little cost.
    """

    def __init__(self, head: bytes, items: Sequence[bytes]) -> None:
        shared = decode_head(head)
        self._choices: dict[int, PublishedChoice] = {}
        self._top = {name for name, value in shared.top.items() if value is not None}
        self._recorded = False
        usage_last = False
        for item in items:
            name = _TEXT_ITEMS.get(item[:1])
            if name is not None:
                self._choice(0).record_text(name, loads(item.removeprefix(b"~")))
                usage_last = False
                continue
            chunk = decode_item(item, shared)
            self._top.update(name for name, value in chunk.items() if value is not None)
            pieces = _pieces(chunk)
            usage_last = not pieces and (usage_last or chunk.get("usage") is not None)
            for index, piece in pieces:
                self._choice(index).record(piece)
        for choice in self._choices.values():
            choice.seal()
        self._recorded = True
        self._usage_due = usage_last and all(choice.finished for choice in self._choices.values())
        self._regenerated = self._behind == 0
        self._held: list[dict[str, Any]] = []
        self._late: dict[str, Any] = {}

    @property
    def caught_up(self) -> bool:
        return (
            self._regenerated and not self._usage_due and not any(c.renames for c in self._choices.values())
        )

    def feed(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks to publish now that ``chunk`` has come; it is not changed. Raises Diverged.

        A chunk that is published in part comes back with the rest: strings from where the published ones end, list
        items that are not published. A logprobs item counts as one, even where the end of what is published cuts its
        token's text: it is published once, with the chunk that brought the token's first character or with the next.
        """
        if self._regenerated:
            return self._passed(chunk)
        choices: list[dict[str, Any]] = []
        for index, piece in _pieces(chunk):
            news = self._choice(index).take(piece)
            if news is not None:
                choices.append({"index": index, **news})
        fields = {name: value for name, value in chunk.items() if name != "choices"}
        if fields.get("usage") is not None:
            self._usage_due = False
        if choices:
            self._held.append({**fields, "choices": choices})
            for name, value in fields.items():
                if value is not None:
                    self._late.pop(name, None)
        else:
            for name, value in fields.items():
                if value is not None and name not in _VOLATILE and name not in self._top:
                    self._late[name] = value
        if self._behind:
            return []
        self._regenerated = True
        late = [{"index": i, **news} for i, c in self._choices.items() if (news := c.late()) is not None]
        if late or self._late:
            self._held.append({**self._late, "choices": late})
        released, self._held = self._held, []
        return released

    def finish(self) -> None:
        """The new attempt has ended. Raises Diverged where some of what is published never came."""
        if not self._regenerated:
            raise Diverged("The new attempt ended before it had said what is published.")

    @property
    def _behind(self) -> int:
        return sum(choice.behind for choice in self._choices.values())

    def _choice(self, index: int) -> PublishedChoice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = PublishedChoice()
            if self._recorded:
                choice.seal()
        return choice

    def _passed(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        if self._usage_due and chunk.get("usage") is not None:
            self._usage_due = False
            chunk = {name: value for name, value in chunk.items() if name != "usage"}
            if not chunk.get("choices"):
                return []
        if any(choice.renames for choice in self._choices.values()):
            pieces = [{**piece, "index": i, **self._choice(i).renamed(piece)} for i, piece in _pieces(chunk)]
            chunk = {**chunk, "choices": pieces}
        return [chunk]


def published_text(head: bytes, items: Sequence[bytes]) -> str | None:
    """The assistant's text so far, for a provider to continue; None where there is more than that to go on from:
    other choices, tool calls, reasoning, a refusal, logprobs, an end."""
    shared = decode_head(head)
    text: list[str] = []
    for item in items:
        for index, piece in _pieces(decode_item(item, shared)):
            delta = dict_of(piece.get("delta")) or {}
            if index != 0 or piece.get("finish_reason") is not None or piece.get("logprobs"):
                return None
            if any(value for name, value in delta.items() if name not in ("role", "content")):
                return None
            content = delta.get("content")
            if not isinstance(content, str | None):
                return None
            text.append(content or "")
    return "".join(text)


def without_role(chunk: dict[str, Any]) -> dict[str, Any] | None:
    """A chunk of an attempt that continues a published text, without choice 0's role and empty content; None where
    nothing is left. The chunk is not changed."""
    choices: list[dict[str, Any]] = []
    for index, piece in _pieces(chunk):
        delta = dict_of(piece.get("delta")) or {}
        if index == 0:
            delta = {k: v for k, v in delta.items() if k != "role" and not (k == "content" and not v)}
            said = any(value for name, value in piece.items() if name not in ("index", "delta"))
            if not said and all(value is None for value in delta.values()):
                continue
        choices.append({**piece, "delta": delta})
    if chunk.get("choices") and not choices and chunk.get("usage") is None:
        return None
    return {**chunk, "choices": choices}


def _pieces(chunk: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """A chunk's choices, each with its index."""
    pieces: list[tuple[int, dict[str, Any]]] = []
    for position, piece in enumerate(dicts_of(chunk.get("choices"))):
        index = piece.get("index")
        pieces.append((index if isinstance(index, int) else position, piece))
    return pieces
