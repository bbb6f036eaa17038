"""Whatever a provider does, its reader gets exactly what it said, then a whole end or an error. Never a hang."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from tests.support.api import Api, asking, dump, error_of, ordered, text_of
from tests.support.orders import plan
from tests.support.stack import Stack

#: Offsets at which a stream is cut, of all there are.
CUTS = 60


def raw(*chunks: Any, done: bool = True) -> str:
    """An event stream of these chunks."""
    events = [f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join(events) + ("data: [DONE]\n\n" if done else "")


def chunk(content: str | None = None, finish: str | None = None) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


class TestCuts:
    def test_a_stream_that_is_cut_anywhere_is_a_failure_with_what_there_was(self, api: Api) -> None:
        """At any byte, closed, reset or ended in form: no chunk is lost, made up, or passed off as the whole."""
        text = "größer 水 👩 ende"
        body = plan(dump({"text": text, "unframed": True}), "fake", 1, stream=True, include_usage=True)
        size = sum(len(step) for step in body.steps)
        offsets = sorted({0, 1, size - 1, *random.Random(7).sample(range(size), CUTS)})
        complete = 0
        for number, offset in enumerate(offsets):
            how = ("close", "reset", "end")[number % 3]
            whole = api.seed(
                fake={"text": text, "cut_at_byte": offset, "cut": how, "unframed": number % 2 == 0}
            )
            assert text.startswith(whole.text), (offset, how)
            assert [f.id for f in whole.frames] == list(range(len(whole.frames)))
            if whole.last.event == "done":
                # All that was cut off came after the finish reason.
                complete += 1
                assert whole.text == text
                last = whole.frames[-2].data
                assert last.get("usage") or last["choices"][0]["finish_reason"] == "stop"
            else:
                assert whole.error.startswith("provider_truncated: "), (offset, how)
        assert complete < len(offsets) / 2

    def test_cuts_between_writes_change_nothing(self, api: Api) -> None:
        """The same bytes in pieces of any size, also inside a character, an escape or a line end."""
        text = "größer 水 👩‍👩‍👧 \\u00e9 ende"
        for drip in (1, 2, 3, 7, 64, 1000):
            for crlf in (False, True):
                order = {"text": text, "drip_bytes": drip, "crlf": crlf, "comments": True, "multiline": True}
                whole = api.seed(fake=order)
                assert (whole.text, whole.last.event) == (text, "done"), (drip, crlf)

    def test_a_connection_that_is_dropped_without_an_answer_is_502(self, api: Api) -> None:
        """Not a retry in silence: the request may have been paid for."""
        answer = api.plain(api.tenant, fake={"drop": True})
        assert answer.status_code == 502
        assert error_of(answer)["code"] in ("provider_unreachable", "provider_truncated")
        assert len(api.provider_requests(api.tenant)) == 1


class TestTimeouts:
    def test_no_first_chunk_in_time(self, api: Api) -> None:
        """504, whether headers or the first chunk are late; the provider's connection is closed."""
        for order in ({"headers_delay_ms": 20_000}, {"first_delay_ms": 20_000}):
            answer = api.plain(api.tenant, model="slow-to-begin:fake", fake=order)
            assert answer.status_code == 504
            error = error_of(answer)
            assert error["code"] == "provider_timeout"
            assert "0.4 s" in error["message"]
        for received in api.provider_requests(api.tenant):
            api.backend.wait_until(lambda r=received: r.ended == "closed")

    def test_silence_between_chunks(self, api: Api) -> None:
        """What came is kept, and the error says how long nothing came."""
        whole = api.seed(api.tenant, model="stalls:fake", fake={"stall_after": 3})
        assert whole.text == ordered(3)
        assert whole.error.startswith("provider_stalled: ")
        assert " 1 s" in whole.error
        (received,) = api.provider_requests(api.tenant)
        api.backend.wait_until(lambda: received.ended == "closed")

    def test_comments_are_no_chunks(self, api: Api) -> None:
        """A provider that only keeps its connection awake has stalled all the same."""
        order = {"raw": ": still here\n\n" * 200, "drip_bytes": 14, "interval_ms": 50}
        for model, code in (("slow-to-begin:fake", "provider_timeout"),):
            assert api.seed(model=model, fake=order).error.startswith(code)

    def test_too_long_in_all(self, api: Api) -> None:
        """However steadily it comes."""
        whole = api.seed(model="endless:fake", fake={"chunks": 1000, "interval_ms": 50})
        assert whole.error.startswith("provider_timeout: ")
        assert 5 < len(whole.frames) < 60

    def test_a_slow_stream_within_its_limits_is_fine(self, api: Api) -> None:
        """Each chunk starts the wait anew."""
        whole = api.seed(model="stalls:fake", fake={"chunks": 12, "interval_ms": 120})
        assert (whole.text, whole.last.event) == (ordered(12), "done")

    def test_nobody_there(self, api: Api) -> None:
        """A refused connection is 502 that names the provider."""
        answer = api.plain(model="nowhere:any")
        assert answer.status_code == 502
        error = error_of(answer)
        assert error["code"] == "provider_unreachable"
        assert "nowhere" in error["message"]

    def test_the_requests_own_deadline(self, api: Api) -> None:
        """``timeout`` ends it where the provider's limits would not yet."""
        whole = api.seed(timeout=2, fake={"chunks": 1000, "interval_ms": 50})
        assert whole.last.event == "error"
        assert 2 < len(whole.frames) < 60


class TestGarbage:
    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (raw(chunk("a"), "no json"), "a"),
            (raw(chunk("a"), "[1]"), "a"),
            (raw(chunk("a"), '"text"'), "a"),
            (raw(chunk("a"), "NaN"), "a"),
            (raw(chunk("a"), {"choices": 5}), "a"),
            (raw(chunk("a"), {"choices": [5]}), "a"),
            (raw(chunk("a"), {"choices": [{"delta": 5}]}), "a"),
            (raw(chunk("a"), {"choices": [{"index": "x", "delta": {}}]}), "a"),
            (raw(chunk("a"), "[" * 20_000), "a"),
            (raw(chunk("a"), '{"choices": [{"delta": {"content": 1e999999999}}]}'), "a"),
            (raw(chunk("a"), '{"choices": [{"delta": {"content": "b"}'), "a"),
            ("data: \n\n" * 10, ""),
            ("<html>not what you asked for</html>", ""),
            ("", ""),
            ("\n" * 1000, ""),
            (": only comments\n\n", ""),
            ("data: [DONE]\n\n", ""),
            ("event: ping\nid: 1\nretry: 5\n\n", ""),
        ],
    )
    def test_what_is_no_chunk_ends_the_stream_as_failed(self, api: Api, body: str, said: str) -> None:
        """Up to it the text is there."""
        whole = api.seed(fake={"raw": body})
        assert whole.text == said
        assert whole.error.startswith("provider_"), whole.error

    def test_bytes_that_are_no_utf8(self, api: Api) -> None:
        """In a string they become U+FFFD; around it they are garbage. Neither is a hang."""
        good = raw(chunk("a"), done=False).encode()
        broken = good.replace(b'"a"', b'"\xff\xfe"') + raw(chunk(None, "stop")).encode()
        whole = api.seed(fake={"raw_base64": base64.b64encode(broken).decode()})
        assert whole.last.event in ("done", "error")
        noise = random.Random(3).randbytes(5000)
        whole = api.seed(fake={"raw_base64": base64.b64encode(noise).decode()})
        assert whole.error.startswith("provider_")

    def test_garbage_in_the_middle(self, api: Api) -> None:
        """What comes after it is not taken for an answer."""
        whole = api.seed(fake={"garbage": True})
        assert whole.error.startswith("provider_bad_chunk: ")
        assert ordered().startswith(whole.text)

    @pytest.mark.parametrize(
        "body",
        [
            {"choices": 5},
            {"choices": [5]},
            {"choices": [{"message": 5}]},
            {"choices": []},
            {},
            [],
            5,
            None,
            "text",
        ],
    )
    def test_json_that_is_no_completion_is_a_failure(self, api: Api, body: Any) -> None:
        """Whatever stands in the place of its parts."""
        order = {"raw": json.dumps(body), "headers": {"content-type": "application/json"}}
        assert api.seed(fake=order).error.startswith("provider_")

    @pytest.mark.parametrize(
        "error", [{"message": "m", "code": "c"}, "plain text", {"code": 429, "message": "m"}, 5]
    )
    def test_an_error_in_the_place_of_a_chunk(self, api: Api, error: Any) -> None:
        """Whatever its shape, it is the end, with its words where it has some."""
        whole = api.seed(fake={"raw": raw(chunk("a"), {"error": error})})
        assert whole.text == "a"
        assert whole.last.event == "error"
        if error == "plain text":
            assert "plain text" in whole.error

    def test_an_error_event_with_a_status_keeps_it(self, api: Api) -> None:
        """Some providers send their refusal as an event after 200."""
        answer = api.plain(fake={"raw": raw({"error": {"message": "m", "code": 429}})})
        assert answer.status_code == 429

    @pytest.mark.parametrize("coding", ["gzip", "br", "nonsense"])
    def test_a_coding_that_was_not_asked_for(self, api: Api, coding: str) -> None:
        """A body that can't be read is a failure."""
        order = {"headers": {"content-encoding": coding}}
        assert api.seed(fake=order).last.event in ("error", "done")


class TestShapes:
    @pytest.mark.parametrize(
        "order",
        [
            {"crlf": True},
            {"comments": True},
            {"multiline": True},
            {"crlf": True, "comments": True, "multiline": True, "drip_bytes": 5},
            {"no_done": True},
            {"no_usage": True},
            {"usage_null": True},
            {"usage_in_finish": True},
            {"unframed": True},
            {"unframed": True, "no_done": True},
        ],
    )
    def test_every_way_to_frame_a_whole_answer_is_whole(self, api: Api, order: dict[str, Any]) -> None:
        """CRLF, comments, several data lines, no [DONE], no usage, the end of the body as the end."""
        whole = api.seed(fake=order)
        assert (whole.text, whole.last.event) == (ordered(), "done")

    def test_without_a_finish_reason_it_is_not_whole_unless_the_provider_says_done(self, api: Api) -> None:
        """A stream that just ends was cut; one that ends with [DONE] was not."""
        assert api.seed(fake={"no_finish": True, "no_done": True}).error.startswith("provider_truncated: ")
        assert api.seed(fake={"no_finish": True}).last.event == "done"

    def test_some_of_several_choices_ended(self, api: Api) -> None:
        """All that were asked for must end."""
        ends = raw(
            {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
            {"choices": [{"index": 1, "delta": {"content": "b"}}]},
            done=False,
        )
        whole = api.seed(n=2, fake={"raw": ends})
        assert whole.error.startswith("provider_truncated: ")
        assert text_of([f.data for f in whole.frames], 1) == "b"

    def test_a_provider_that_does_not_stream_is_one_chunk(self, api: Api) -> None:
        """A whole ``chat.completion`` in answer to a streaming request, tool calls and usage included."""
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "all at once"},
                    "finish_reason": "stop",
                },
                {
                    "index": 1,
                    "message": {"role": "assistant", "tool_calls": [call]},
                    "finish_reason": "tool_calls",
                },
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
        order = {"raw": json.dumps(answer), "headers": {"content-type": "application/json"}}
        whole = api.seed(n=2, fake=order)
        assert whole.last.event == "done"
        assert whole.text == "all at once"
        stored = api.stored(whole.id)
        assert stored["usage"]["total_tokens"] == 3
        assert stored["choices"][1]["message"]["tool_calls"] == [call]

    @pytest.mark.parametrize("size", [70_000, 1_000_000, 8_000_000])
    def test_a_big_chunk_passes(self, api: Api, stack: Stack, size: int) -> None:
        """Megabytes in one event, live and from the books."""
        whole = api.seed(fake={"big_chunk": size})
        assert whole.text == "x" * size
        stack.forget(whole.id)
        assert api.follow(whole.id).text == "x" * size

    def test_many_chunks_pass(self, api: Api, stack: Stack) -> None:
        """Ten thousand, all at once: each has its index."""
        whole = api.seed(fake={"chunks": 10_000})
        assert list(whole.chunks) == list(range(10_003))
        assert whole.text == ordered(10_000)
        stack.forget(whole.id)
        assert api.follow(whole.id, 9_990).frames == whole.frames[9_991:]

    def test_an_empty_answer_is_an_answer(self, api: Api) -> None:
        """A finish reason and no text."""
        whole = api.seed(fake={"pieces": []})
        assert (whole.text, whole.last.event) == ("", "done")

    def test_a_reader_that_reads_slowly_gets_all_of_it(self, api: Api) -> None:
        """What it can't take yet waits in the log, not in the gateway's memory."""
        with api.events(asking(fake={"chunks": 30_000})) as stream:
            stream.next(1)
            other = api.follow(stream.id)
            assert text_of(frame.data for frame in stream.rest()) == other.text == ordered(30_000)
