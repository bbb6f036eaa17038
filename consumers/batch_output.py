"""The rows of a batch that have ended, as the lines of its files: OpenAI's shape, beside it a row's fingerprint and
what its usage record says.

It blocks, and holds one page of rows. A row costs some tens of microseconds, so that cached ones by the hundred
thousand are written in seconds: text is folded in runs and not chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import Any, Literal

import msgspec

from consumers.follow import renderer_for
from consumers.lookup import Completion, from_books
from consumers.present import whole_body
from schemas.batches import RowError, Stopped
from schemas.codec import Head, chunks_of, decode_head, decode_item, dumps, loads, runs_of
from schemas.errors import DeadlineExceeded, Failure, GenerationFailed
from schemas.fold import STREAM_ONLY, Fold
from schemas.records import StoredLog
from schemas.states import State
from stores.batch_ends import PAGE, BatchEnds, RowOver
from stores.batches import BatchRow
from stores.rows import CompletionRow

Kind = Literal["output", "error"]

_MESSAGES = {
    RowError.EXPIRED: "The batch's completion window ended before this row had an answer.",
    RowError.CANCELLED: "The row was cancelled before it had an answer.",
    RowError.TIMEOUT: "The row's 'timeout' ran out before it had an answer.",
    RowError.STOPPED: "The batch was stopped before this row had an answer; its errors say why.",
    RowError.DELETED: "The row had an answer, which was deleted.",
}
_STOPPED = {
    Stopped.EXPIRED.value: RowError.EXPIRED,
    Stopped.CANCELLED.value: RowError.CANCELLED,
    Stopped.ERRORS.value: RowError.STOPPED,
}


#: What each completion says of itself; and a text that nobody says.
_OWN = ("id", "created", "model", "resolved_model", "resolved_provider")
_BLANK = "\x00tailrace\x00"


class Line(msgspec.Struct, frozen=True):
    """A line of a file, with its line feed."""

    kind: Kind
    text: bytes


class Page(msgspec.Struct, frozen=True):
    """Rows up to but not including ``beyond``. ``unstored``: some of them may have asked that nothing be kept."""

    lines: list[Line]
    beyond: int
    unstored: bool = False


def pages(ends: BatchEnds, batch: BatchRow, *, after: int = -1) -> Generator[Page]:
    """The rows after number ``after``, in the order of the input. Of a batch that is over each has a line."""
    over = batch.finalizing_ms is not None or batch.ended_ms is not None
    for first in range(after + 1, batch.total, PAGE):
        rows = ends.page(batch.id, first)
        lines = [
            line for line in (line_of(row, batch.stopped, over=over) for row in rows) if line is not None
        ]
        yield Page(lines, first + PAGE, any(row.unstored for row in rows))


def line_of(row: RowOver, stopped: str | None, *, over: bool) -> Line | None:
    """None for a row that has no end; once all is ``over``, it never was sent."""
    if row.completion is None or not row.completion.status.ended:
        if row.used:
            return _without(row, RowError.DELETED)
        return _without(row, code_of(stopped)) if over else None
    completion = from_books(row.completion)
    if completion.state is State.COMPLETED:
        if row.log is None and completion.next > completion.base:
            return _without(row, RowError.DELETED)
        return _answered(row, completion)
    if completion.state is State.CANCELLED:
        return _without(row, code_of(stopped))
    failure = completion.failure or Failure("failed", "The completion failed.")
    if failure.code == DeadlineExceeded.code:
        return _without(row, RowError.TIMEOUT)
    return Line("error", _line(row, status_of(failure), GenerationFailed(failure).body()))


def status_of(failure: Failure) -> int:
    """The provider's own, where it said one."""
    return failure.provider_status or failure.status


def message_of(code: RowError) -> str:
    return _MESSAGES[code]


def code_of(stopped: str | None) -> RowError:
    """Why a row has no answer that was cancelled, or never sent."""
    return _STOPPED.get(stopped or "", RowError.CANCELLED)


def answer_of(log: StoredLog | None, completion: Completion) -> dict[str, Any]:
    """A whole log folded, as it is by whoever reads it chunk by chunk."""
    if log is None or not log.items:
        return {}
    fold = Fold()
    items = runs_of(log.items)
    if b'"reasoning_content"' in log.items or b"~" in log.items:  # said under two names
        renderer = renderer_for(completion)
        renderer.set_head(log.head)
        for chunk in chunks_of(items, renderer):
            fold.add(chunk)
        return fold.completion()
    own = {
        "id": completion.id,
        "created": completion.created,
        "model": completion.model,
        "resolved_model": completion.resolved_model,
        "resolved_provider": completion.provider,
    }
    head = _head(log.head)
    if head.by is not None:
        own["resolved_provider"], own["resolved_model"] = head.by
    if len(items) <= FRAME_ITEMS:
        answer = _framed_text(log.head, items, own, head)
        if answer is not None:
            return answer
    fold = Fold()
    given = own
    for item in items:
        fold.add({**given, **decode_item(item, head)})
        given = {}  # the last value stands, and no item has another one
    return fold.completion()


@lru_cache(maxsize=1000)
def _head(data: bytes) -> Head:
    return decode_head(data)


#: Items of a log that says one text and little else; and the bytes of those.
FRAME_ITEMS, FRAME_BYTES = 5, 4096


def _framed_text(
    head: bytes, items: list[bytes], own: dict[str, Any], decoded: Head
) -> dict[str, Any] | None:
    """What a log folds to that is one text, with around it what stands in other logs, too: 5 µs where folding takes 25.
    None where it is not of the kind."""
    texts = [n for n, item in enumerate(items) if item[:1] == b'"']
    if len(texts) != 1:
        return None
    at = texts[0]
    before, after = items[:at], items[at + 1 :]
    last: dict[str, Any] = {}
    if after and after[-1][:1] == b"{":
        last = decode_item(after.pop(), decoded)
        if last.get("choices") != [] or not last.keys().isdisjoint(own):
            return None
    if sum(map(len, before)) + sum(map(len, after)) > FRAME_BYTES:
        return None
    frame = _frame(head, tuple(before), tuple(after))
    if frame is None:
        return None
    whole = {**frame, **own}
    choice = frame["choices"][0]
    whole["choices"] = [{**choice, "message": {**choice["message"], "content": loads(items[at])}}]
    for name, value in last.items():
        if name == "usage" or (name not in STREAM_ONLY and (value is not None or name not in whole)):
            whole[name] = value
    return whole


@lru_cache(maxsize=100)
def _frame(head: bytes, before: tuple[bytes, ...], after: tuple[bytes, ...]) -> dict[str, Any] | None:
    """What items fold to with a text between them, if they leave that and the completion's own fields alone."""
    decoded = _head(head)
    fold = Fold()
    given: dict[str, Any] = dict.fromkeys(_OWN, _BLANK)
    for item in (*before, dumps(_BLANK), *after):
        fold.add({**given, **decode_item(item, decoded)})
        given = {}
    whole = fold.completion()
    own = all(whole[name] == _BLANK for name in _OWN)
    said = len(whole["choices"]) == 1 and whole["choices"][0]["message"]["content"] == _BLANK
    return whole if own and said and "usage" not in whole else None


def _answered(row: RowOver, completion: Completion) -> Line:
    body = whole_body(completion, answer_of(row.log, completion), completion.usage)
    return Line("output", _line(row, 200, body))


def _line(row: RowOver, status: int, body: dict[str, Any]) -> bytes:
    digits = row.completion_id.removeprefix("chatcmpl-")
    response = {"status_code": status, "request_id": f"req_{digits}", "body": body}
    return _framed(row, digits, response, None)


def _without(row: RowOver, code: RowError) -> Line:
    digits = row.completion_id.removeprefix("chatcmpl-")
    return Line("error", _framed(row, digits, None, {"code": code.value, "message": _MESSAGES[code]}))


def _framed(row: RowOver, digits: str, response: Any, error: Any) -> bytes:
    line = {
        "id": f"batch_req_{digits}",
        "custom_id": row.custom_id,
        "response": response,
        "error": error,
        "fingerprint": row.fingerprint,
        "record": record_of(row.completion),
    }
    return dumps(line) + b"\n"


def record_of(completion: CompletionRow | None) -> dict[str, Any] | None:
    """What the row used: tokens, nano-dollars as text, times in milliseconds. None where it has no record."""
    if completion is None or completion.usage is None:
        return None
    used = completion.usage
    return {
        "cache": completion.cache,
        "prompt_tokens": used.tokens.prompt_tokens,
        "completion_tokens": used.tokens.completion_tokens,
        "reasoning_tokens": used.tokens.reasoning_tokens,
        "cached_tokens": used.tokens.cached_tokens,
        "estimated": used.tokens.estimated,
        "cost_nano": _nano(used.cost_nano),
        "saved_nano": _nano(used.saved_nano),
        "attempts": used.attempts,
        "queue_ms": used.queue_ms,
        "first_chunk_ms": used.first_chunk_ms,
        "duration_ms": used.duration_ms,
    }


def _nano(nano: int | None) -> str | None:
    """Larger ones than JavaScript's integers have their digits, too."""
    return None if nano is None else str(nano)
