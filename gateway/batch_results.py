"""What became of a batch's rows, while it runs and after: their lines as in its files, and why some failed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.types import Receive, Send

from consumers.batch_output import Page, code_of, message_of, pages, status_of
from gateway.batches import owned_batch
from gateway.caller import identify
from gateway.http import Call, Reply, raw_headers
from schemas.batches import RowError
from schemas.errors import DeadlineExceeded, Failure, InvalidRequest
from schemas.headers import integer
from schemas.states import State
from stores.batch_ends import BatchEnds, FailureGroup
from stores.batches import BatchRow

KINDS = ("output", "error", "all")
#: Groups of failures that are told; and different failures that they are made of at most.
GROUPS, FAILURES = 20, 5000

_VARIES = re.compile(r"(['\"`]).*?\1|\b[\w-]*\d[\w.:-]*")


async def results(call: Call) -> Any:
    """GET …/batches/{id}/results: the lines of all rows that have ended so far, in the order of the input."""
    batch = await owned_batch(call, await identify(call))
    query = call.request.query_params
    _known(query, "kind", "after")
    kind = query.get("kind", "all")
    if kind not in KINDS:
        raise InvalidRequest(f"'kind' must be one of {', '.join(KINDS)}.", param="kind")
    after = integer(query.get("after", "-1"), name="after", least=-1)
    found = pages(BatchEnds(call.context.engine), batch, after=after)
    first = await asyncio.to_thread(next, found, None)
    return Lines(found, first, kind)


async def failures(call: Call) -> Reply:
    """GET …/batches/{id}/failures: rows that failed alike are one group, with an example."""
    batch = await owned_batch(call, await identify(call))
    _known(call.request.query_params)
    return Reply(await asyncio.to_thread(_grouped, BatchEnds(call.context.engine), batch))


class Lines:
    """Lines as they are read, a page at a time."""

    def __init__(self, found: Iterator[Page], first: Page | None, kind: str) -> None:
        self._found = found
        self._first = first
        self._kind = kind

    async def send(self, call: Call, receive: Receive, send: Send) -> None:
        headers = raw_headers({"content-type": "application/jsonl", "x-request-id": call.request_id})
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        page = None if call.request.method == "HEAD" else self._first
        while page is not None:
            text = b"".join(line.text for line in page.lines if self._kind in (line.kind, "all"))
            if text:
                await send({"type": "http.response.body", "body": text, "more_body": True})
            page = await asyncio.to_thread(next, self._found, None)
        await send({"type": "http.response.body", "body": b""})


def _known(query: Any, *names: str) -> None:
    for name in query:
        if name not in names:
            raise InvalidRequest(f"There is no query parameter '{name[:40]}' here.", param=name[:40])


def _grouped(ends: BatchEnds, batch: BatchRow) -> dict[str, Any]:
    groups: dict[tuple[str, int | None, str], dict[str, Any]] = {}
    for failed in ends.failures(batch.id, FAILURES):
        code, status, message = _told(failed, batch.stopped)
        _add(groups, (code, status, shape_of(message)), failed.count, failed.n, message)
    if batch.finalizing_ms is not None or batch.ended_ms is not None:
        count, first = ends.never_sent(batch.id)
        if first is not None:
            code = code_of(batch.stopped)
            _add(groups, (code.value, None, message_of(code)), count, first, message_of(code))
    ordered = sorted(groups.values(), key=lambda group: (-group["count"], group["example"]["n"]))
    told = ordered[:GROUPS]
    return {
        "object": "list",
        "batch_id": batch.id,
        "failed": sum(group["count"] for group in ordered),
        "data": _with_names(ends, batch.id, told),
        "has_more": len(ordered) > GROUPS,
    }


def _told(failed: FailureGroup, stopped: str | None) -> tuple[str, int | None, str]:
    """Code, status and message, as in the error file."""
    failure = failed.failure or Failure("failed", "The completion failed.")
    if failed.status == State.CANCELLED:
        code = code_of(stopped)
        return code.value, None, message_of(code)
    if failed.early or failure.code == DeadlineExceeded.code:
        return RowError.TIMEOUT.value, None, message_of(RowError.TIMEOUT)
    return failure.code, status_of(failure), failure.message


def _add(
    groups: dict[tuple[str, int | None, str], dict[str, Any]],
    key: tuple[str, int | None, str],
    count: int,
    n: int,
    message: str,
) -> None:
    code, status, shape = key
    group = groups.get(key)
    if group is None:
        example = {"n": n, "message": message}
        groups[key] = {"code": code, "status": status, "message": shape, "count": count, "example": example}
        return
    group["count"] += count
    if n < group["example"]["n"]:
        group["example"] = {"n": n, "message": message}


def _with_names(ends: BatchEnds, batch: str, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    named = ends.named(batch, [group["example"]["n"] for group in groups])
    for group in groups:
        example = group["example"]
        row = named[example.pop("n")]
        group["example"] = {
            "custom_id": row.custom_id,
            "line": row.line,
            "completion_id": row.completion_id,
            **example,
        }
    return list(groups)


def shape_of(message: str) -> str:
    """A message without what differs from row to row: what is quoted, and words with a digit."""
    return _VARIES.sub("…", message)
