"""The rows of a batch that have ended, as the lines of its files: OpenAI's shape, and a row's fingerprint beside it.

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
from schemas.codec import Head, chunks_of, decode_head, decode_item, dumps, runs_of
from schemas.errors import DeadlineExceeded, Failure, GenerationFailed
from schemas.fold import Fold
from schemas.records import StoredLog
from schemas.states import State
from stores.batch_ends import PAGE, BatchEnds, RowOver
from stores.batches import BatchRow

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
    head = _head(log.head)
    provider, model = head.by or (completion.provider, completion.resolved_model)
    own = {
        "id": completion.id,
        "created": completion.created,
        "model": completion.model,
        "resolved_model": model,
        "resolved_provider": provider,
    }
    for item in items:
        fold.add({**own, **decode_item(item, head)})
        own = {}  # the last value stands, and no item has another one
    return fold.completion()


@lru_cache(maxsize=1000)
def _head(data: bytes) -> Head:
    return decode_head(data)


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
    }
    return dumps(line) + b"\n"
