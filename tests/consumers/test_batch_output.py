"""Lines of a batch's files: a log folded in runs says what it says chunk by chunk."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch_output import answer_of, line_of
from consumers.follow import renderer_for
from consumers.lookup import from_books
from schemas.codec import BadChunk, ChunkEncoder, chunks_of, dumps, split_items
from schemas.errors import Failure
from schemas.fold import Fold
from schemas.records import StoredLog, Usage
from schemas.states import State
from stores.batch_ends import RowOver
from stores.rows import CompletionRow, GenerationRow, UsageRow
from tests.support.completions import Cut, cuts, strange_chunk

GENERATION = GenerationRow(
    "chatcmpl-1", "fake", "model-1", State.COMPLETED, 1, 0, 3, None, ["stop"], 1_000, 1_001, 1_002, 2_000
)
USED = UsageRow(Usage(7, 3), 10, 0, 1, 1, 2, 1_000)
COMPLETION = CompletionRow(
    "chatcmpl-1", "chatcmpl-1", "acme", "key_1", None, "fast", "fake", "model-1", "bulk", "f" * 64,
    State.COMPLETED, True, None, "bypass", 1_000, None, 2_000, None, GENERATION, USED,
)  # fmt: skip


def stored(chunks: list[dict[str, Any]]) -> StoredLog:
    encoder = ChunkEncoder()
    items = [item for item in (encoder.encode(dumps(chunk)) for chunk in chunks) if item is not None]
    return StoredLog(encoder.head, b"\n".join(items), 0, len(items))


def chunk_by_chunk(log: StoredLog) -> dict[str, Any]:
    renderer, fold = renderer_for(from_books(COMPLETION)), Fold()
    renderer.set_head(log.head)
    for chunk in chunks_of(split_items(log.items), renderer):
        fold.add(chunk)
    return fold.completion()


@given(cuts())
def test_a_log_folds_in_runs_as_it_does_chunk_by_chunk(cut: Cut) -> None:
    log = stored(cut[1])
    assert json.dumps(answer_of(log, from_books(COMPLETION))) == json.dumps(chunk_by_chunk(log))


@given(st.lists(strange_chunk, min_size=1, max_size=6))
def test_so_do_strange_chunks(chunks: list[dict[str, Any]]) -> None:
    try:
        log = stored(chunks)
    except BadChunk:
        return
    if log.items:
        whole = answer_of(log, from_books(COMPLETION))
        assert msgspec.json.encode(whole) == msgspec.json.encode(chunk_by_chunk(log))


def row(completion: CompletionRow | None, *, used: bool = False, log: StoredLog | None = None) -> RowOver:
    return RowOver(4, 5, "mine", "chatcmpl-1", "f" * 64, False, used, completion, log)


def failed(failure: Failure | None, state: State = State.FAILED) -> CompletionRow:
    generation = msgspec.structs.replace(GENERATION, state=state, failure=failure, next=0)
    return msgspec.structs.replace(COMPLETION, status=state, generation=generation)


@pytest.mark.parametrize(
    ("over", "stopped", "code"),
    [
        (row(None), "expired", "batch_expired"),
        (row(None), "cancelled", "batch_cancelled"),
        (row(None), "errors", "batch_stopped"),
        (row(failed(None, State.CANCELLED)), "expired", "batch_expired"),
        (row(failed(None, State.CANCELLED)), None, "batch_cancelled"),
        (row(failed(Failure("deadline_exceeded", "late"))), None, "request_timeout"),
        (row(None, used=True), None, "answer_deleted"),
        (row(COMPLETION), None, "answer_deleted"),
    ],
)
def test_a_row_without_an_answer_says_why(over: RowOver, stopped: str | None, code: str) -> None:
    line = line_of(over, stopped, over=True)
    assert line is not None
    assert line.kind == "error"
    told = json.loads(line.text)
    assert (told["custom_id"], told["response"], told["error"]["code"]) == ("mine", None, code)
    assert told["error"]["message"]


def test_what_the_provider_refused_has_its_status() -> None:
    line = line_of(row(failed(Failure("too_long", "No.", status=400, provider_status=413))), None, over=True)
    assert line is not None
    response = json.loads(line.text)["response"]
    assert response["status_code"] == 413
    assert response["body"]["error"] == {
        "message": "No.",
        "type": "server_error",
        "param": None,
        "code": "too_long",
    }


def test_a_line_says_what_the_row_used() -> None:
    """Cost and times are those of the usage record, whether the row was answered or not; money is text."""
    used = msgspec.structs.replace(USED, cost_nano=2**60, saved_nano=None, attempts=2)
    told = {
        "cache": "bypass",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "reasoning_tokens": 0,
        "cached_tokens": 0,
        "estimated": False,
        "cost_nano": "1152921504606846976",
        "saved_nano": None,
        "attempts": 2,
        "queue_ms": 1,
        "first_chunk_ms": 2,
        "duration_ms": 1_000,
    }
    answered = msgspec.structs.replace(COMPLETION, usage=used)
    refused = msgspec.structs.replace(failed(Failure("too_long", "No.")), usage=used)
    log = stored([{"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]}])
    log = StoredLog(log.head, log.items, 0, 3)
    for over in (row(answered, log=log), row(refused)):
        line = line_of(over, None, over=True)
        assert line is not None
        assert json.loads(line.text)["record"] == told
    never_sent = line_of(row(None), "cancelled", over=True)
    assert never_sent is not None
    assert json.loads(never_sent.text)["record"] is None


def test_a_row_that_has_no_end_has_no_line_while_the_batch_runs() -> None:
    queued = msgspec.structs.replace(COMPLETION, status=State.QUEUED, generation=None, usage=None)
    assert line_of(row(queued), None, over=False) is None
    assert line_of(row(None), None, over=False) is None
