"""The count of a chaos run notices what it is there for: each test tells it of one thing that must not be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.checks import Stored, Tracked, problems_of, problems_of_stray, said
from tests.chaos.faults import KILL_WORKER, Injected, counted
from tests.chaos.reading import Reading, canonical, digest
from tests.chaos.shapes import Ask, Shapes
from tests.support.api import anybody, parse_frames
from tests.support.backend import Backend
from tests.support.tries import sampled_word

WORDS = [" to", " be", " or", " not"]


def chunk(content: str | None, **delta: Any) -> bytes:
    parts = {"content": content} if content is not None else delta
    return json.dumps({"choices": [{"index": 0, "delta": parts}]}).encode()


def ask(*, says: Any = None, **fields: Any) -> Ask:
    body = {"model": "fake", "fake_id": "1", **fields.pop("body", {})}
    return Ask(1, "test", "seed", body, says or {(0, "content"): "".join(WORDS)}, **fields)


def sampled_chunks(*words: tuple[int, int]) -> list[bytes]:
    return [chunk(sampled_word(attempt, place, 0)) for attempt, place in words]


def stored(chunks: list[bytes] | None = None, **fields: Any) -> Stored:
    chunks = [chunk(word) for word in WORDS] if chunks is None else chunks
    base: int = fields.pop("base", 0)
    status: str = fields.pop("status", "completed")
    usual: dict[str, Any] = {
        "ended": True,
        "base": base,
        "next": base + len(chunks),
        "attempt": 1,
        "usage": [status],
        "attempts": [1],
        "chunks": chunks,
    }
    return Stored("chatcmpl-1", 1, status, **{**usual, **fields})


def read(chunks: list[bytes], *, first: int = 0, end: str = "done", whole: bool = True) -> Reading:
    reading = Reading("reader 0", whole=whole)
    for index, data in enumerate(chunks, first):
        reading.take(index, digest(data), data, expected=index)
    reading.finish(end, next=first + len(chunks))
    return reading


def tracked(*readings: Reading, of: Ask | None = None, **fields: Any) -> Tracked:
    return Tracked(of or ask(), ids=["chatcmpl-1"], readings=list(readings), **fields)


CHUNKS = [chunk(word) for word in WORDS]


class TestWhatIsAsItShouldBe:
    def test_a_whole_answer(self) -> None:
        assert problems_of(tracked(read(CHUNKS)), stored()) == []

    def test_readers_from_the_middle_and_at_the_end(self) -> None:
        middle = read(CHUNKS[2:], first=2, whole=False)
        nothing = Reading("reader 1", whole=False)
        nothing.finish("stopped")
        assert problems_of(tracked(middle, nothing), stored()) == []

    def test_a_reader_that_sees_no_bytes(self) -> None:
        reading = Reading("client", parsed=True)
        for index, data in enumerate(CHUNKS):
            reading.take(index, canonical(json.loads(data)), expected=index)
        reading.finish("done")
        assert problems_of(tracked(reading), stored()) == []

    def test_a_part_of_what_failed(self) -> None:
        part = stored(CHUNKS[:2], status="failed", code="worker_lost")
        assert problems_of(tracked(read(CHUNKS[:2], end="failed")), part) == []

    def test_a_final_attempt_behind_an_abandoned_one(self) -> None:
        reading = Reading("reader 0")
        for index, data in enumerate(sampled_chunks((1, 0), (1, 1))):
            reading.take(index, digest(data), expected=index)
        reading.start_again()
        final = sampled_chunks((2, 0), (2, 1))
        for index, data in enumerate(final, 2):
            reading.take(index, digest(data), expected=None if index == 2 else index)
        reading.finish("done", next=4)
        books = stored(final, base=2, attempt=2, attempts=[1, 2])
        assert problems_of(tracked(reading, of=ask(says={(0, "content"): 2})), books) == []

    def test_a_text_that_is_not_kept_is_taken_from_a_reader(self) -> None:
        reading = Reading("reader 0", keep=True)
        for index, data in enumerate(CHUNKS[:3]):
            reading.take(index, digest(data), data, expected=index)
        reading.finish("done", next=3)
        books = stored(CHUNKS[:3])
        books.chunks = None
        found = problems_of(tracked(reading, of=ask(body={"store": False})), books)
        assert found == ["reader 0: choice 0, content: 9 characters of 13"]


class TestWhatIsLost:
    def test_an_accepted_completion_that_nobody_knows(self) -> None:
        assert problems_of(tracked(), None) == ["accepted, and not in the books"]

    def test_one_that_never_ends(self) -> None:
        (found,) = problems_of(tracked(), stored(status="queued", ended=False))
        assert "not finished" in found
        (found,) = problems_of_stray(stored(status="queued", ended=False))
        assert "not finished" in found

    @pytest.mark.parametrize("records", [[], ["completed", "completed"]])
    def test_usage_that_is_not_recorded_once(self, records: list[str]) -> None:
        assert problems_of(tracked(), stored(usage=records)) == [f"{len(records)} usage records"]
        assert problems_of_stray(stored(usage=records)) == [f"{len(records)} usage records"]

    def test_usage_of_another_end(self) -> None:
        (found,) = problems_of(tracked(), stored(usage=["failed"]))
        assert "usage record says failed" in found

    @pytest.mark.parametrize("attempts", [[2], [1, 2, 2], [1, 2, 3]])
    def test_attempts_that_are_not_all_there(self, attempts: list[int]) -> None:
        (found,) = problems_of(tracked(), stored(attempt=2, attempts=attempts))
        assert found.startswith("attempts [")

    def test_a_reader_without_an_end(self) -> None:
        reading = read(CHUNKS)
        reading.end = None
        assert problems_of(tracked(reading), stored()) == ["reader 0: never got an end; it was at 3"]

    def test_one_key_that_led_to_two_completions(self) -> None:
        twice = tracked()
        twice.ids.append("chatcmpl-2")
        (found,) = problems_of(twice, stored())
        assert "several completions" in found


class TestIndexes:
    def test_a_hole(self) -> None:
        reading = Reading("reader 0")
        for index in (0, 1, 3):
            reading.take(index, digest(CHUNKS[index]), expected=reading.last + 1)
        reading.finish("done", next=4)
        found = problems_of(tracked(reading), stored())
        assert found[0] == "reader 0: a hole: index 3 where 2 had to come"

    def test_an_index_that_comes_twice(self) -> None:
        reading = read(CHUNKS)
        reading.take(2, digest(CHUNKS[2]), expected=4)
        assert problems_of(tracked(reading), stored()) == [
            "reader 0: out of order: index 2 where 4 had to come"
        ]

    def test_an_index_that_holds_another_chunk_when_read_again(self) -> None:
        reading = read(CHUNKS)
        reading.take(2, digest(b"other"), expected=2)
        assert problems_of(tracked(reading), stored()) == ["reader 0: index 2 came twice, and differs"]

    def test_a_log_that_ends_before_its_end(self) -> None:
        (found,) = problems_of(tracked(read(CHUNKS[:3])), stored())
        assert found == "reader 0: ended behind 2, and the log ends at 4"

    def test_an_end_that_names_another_index(self) -> None:
        reading = read(CHUNKS)
        reading.finish("done", next=5)
        assert problems_of(tracked(reading), stored()) == [
            "reader 0: the end says 5 chunks, and the last one was 3"
        ]

    def test_a_start_after_the_start(self) -> None:
        (found,) = problems_of(tracked(read(CHUNKS[1:], first=1)), stored())
        assert found == "reader 0: began at 1, and the final attempt begins at 0"

    def test_books_that_keep_less_than_the_log_had(self) -> None:
        found = problems_of(tracked(), stored(next=5))
        assert found == ["the books keep 4 chunks from 0, and the end is 5"]

    def test_a_reader_that_differs_from_the_books(self) -> None:
        other = [*CHUNKS[:1], chunk(" see"), *CHUNKS[2:]]
        (found,) = problems_of(tracked(read(other)), stored())
        assert found == "reader 0: index 1 differs from what the others have"

    def test_a_reader_that_was_not_told_of_a_restart(self) -> None:
        (found,) = problems_of(tracked(read(CHUNKS)), stored(base=2))
        assert found == "reader 0: has index 0, and the final attempt begins at 2"


class TestWhatIsSaid:
    def test_a_deterministic_splice(self) -> None:
        """The second attempt goes on one word too early."""
        spliced = [*CHUNKS[:2], *CHUNKS[1:]]
        (found,) = problems_of(tracked(read(spliced)), stored(spliced))
        assert "' to be be or not' where ' to be or not'" in found

    def test_a_deterministic_answer_that_lacks_its_end(self) -> None:
        found = problems_of(tracked(), stored(CHUNKS[:3]))
        assert found == ["the books: choice 0, content: 9 characters of 13"]

    def test_a_sampled_splice(self) -> None:
        """In order and complete, and of two tries."""
        spliced = sampled_chunks((1, 0), (1, 1), (2, 2))
        found = problems_of(tracked(of=ask(says={(0, "content"): 3})), stored(spliced))
        assert found == ["the books: spliced: words of the tries [1, 2] in one answer"]

    def test_a_sampled_splice_of_what_failed(self) -> None:
        spliced = stored(sampled_chunks((1, 0), (2, 1), (2, 2)), status="failed", code="worker_lost")
        found = problems_of(tracked(of=ask(says={(0, "content"): 3})), spliced)
        assert found == ["the books: spliced: words of the tries [1, 2] in one answer"]

    def test_a_sampled_answer_with_a_hole_or_without_its_end(self) -> None:
        sampled = ask(says={(0, "content"): 3})
        (hole,) = problems_of(tracked(of=sampled), stored(sampled_chunks((1, 0), (1, 2), (1, 3))))
        assert "not in order" in hole
        (short,) = problems_of(tracked(of=sampled), stored(sampled_chunks((1, 0), (1, 1))))
        assert short == "the books: choice 0, content: 2 words of 3"

    def test_tool_calls_are_compared_call_by_call(self) -> None:
        call = {"index": 1, "function": {"arguments": '{"a": 1}'}}
        books = stored([chunk(None, tool_calls=[call])])
        assert problems_of(tracked(of=ask(says={(0, "tool_calls[1]"): '{"a": 1}'})), books) == []
        found = problems_of(tracked(of=ask(says={(0, "tool_calls[0]"): '{"a": 1}'})), books)
        assert found == [
            "the books: choice 0 says tool_calls[1], and nothing of that was to come",
            "the books: choice 0, tool_calls[0]: 0 characters of 8",
        ]


class TestEnds:
    @pytest.mark.parametrize("code", ["internal_error", "interrupted", "deadline_exceeded", None])
    def test_a_failure_that_must_not_be(self, code: str | None) -> None:
        (found,) = problems_of(tracked(), stored(status="failed", code=code))
        assert found == f"failed with the code {code or 'none'}"

    def test_a_deadline_that_was_asked_for(self) -> None:
        late = stored(status="failed", code="deadline_exceeded")
        assert problems_of(tracked(of=ask(body={"timeout": 2})), late) == []

    def test_a_cancel_that_nobody_asked_for(self) -> None:
        assert problems_of(tracked(), stored(status="cancelled")) == ["cancelled, and nobody asked for it"]
        assert problems_of(tracked(of=ask(cancel_at=3)), stored(status="cancelled")) == []

    def test_a_cancel_that_was_answered_and_did_not_last(self) -> None:
        found = problems_of(tracked(of=ask(cancel_at=3), cancelled="cancelled"), stored())
        assert found == ["the answer to its cancel said cancelled, and it completed"]

    def test_a_reader_that_was_told_another_end(self) -> None:
        (found,) = problems_of(tracked(read(CHUNKS, end="failed")), stored())
        assert found == "reader 0: its end was failed (None), and the books say completed"


def test_kills_count_only_where_they_hit_enough() -> None:
    injected = [Injected(KILL_WORKER, "interactive0", 1.0, hit=hit) for hit in (0, 19, 20, 50)]
    counts, hits = counted(injected, 20)
    assert (counts[KILL_WORKER], hits) == (4, 2)


def test_the_backend_says_what_the_shapes_expect(backend: Backend) -> None:
    """Each try at a deterministic request says the same in other chunks; a sampled one says its try."""

    shapes = Shapes(7, "run")
    with anybody(backend.url) as client:
        for _ in range(60):
            made = shapes.next()
            order = made.body["fake"][-1] if isinstance(made.body["fake"], list) else made.body["fake"]
            if made.refused:
                continue
            order = {**order, "interval_ms": 0, "first_delay_ms": 0}
            cuts: set[int] = set()
            for attempt in (1, 2, 3):
                body = {**made.body, "fake": order, "stream": True}
                answer = client.post("chat/completions", json=body)
                chunks = [
                    json.dumps(frame.data).encode()
                    for frame in parse_frames([answer.content])
                    if frame.data != "[DONE]"
                ]
                books = stored(chunks)
                assert problems_of(tracked(of=made), books) == []
                cuts.add(len(chunks))
                if made.sampled:
                    assert f" t{attempt}.0" in "".join(said(chunks).values())
            assert len(cuts) > 1 or len(chunks) < 20
