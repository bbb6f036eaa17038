"""Server-sent events: the parser on bytes that are cut anywhere, and frames that other people's parsers read."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.sse import (
    COMMENT,
    OPENAI_DONE,
    SSEParser,
    SSETooLarge,
    done_frame,
    error_frame,
    openai_error_frame,
)
from tests.support.properties import examples

BOM = b"\xef\xbb\xbf"


def reference(stream: bytes) -> list[bytes]:
    """The data of all events, read from the whole at once, a last event without its blank line included."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*re.split(rb"\r\n|\r|\n", stream.removeprefix(BOM)), b""]:
        if not line and data:
            events.append(b"\n".join(data))
            data = []
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return events


def parsed(pieces: list[bytes], limit: int = 1 << 20) -> list[bytes]:
    parser = SSEParser(limit)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close()


def cut(stream: bytes, places: set[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if place <= len(stream)), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


line_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
values = st.sampled_from(
    [b"", b" ", b"  x", b"{}", b"[DONE]", b"data: x", b": no", "é中😀\u2028\x85".encode(), b"\x00", BOM]
)
names = st.sampled_from(
    [b"data", b"data", b"data", b"event", b"id", b"retry", b"", b"Data", b"data ", b"x", BOM + b"data"]
)
lines = st.one_of(
    st.just(b""),
    st.just(b"data"),
    st.builds(lambda name, colon, value: name + colon + value, names, st.sampled_from([b":", b": "]), values),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=6).map(str.encode),
    st.binary(max_size=4).filter(lambda line: not {10, 13} & set(line)),
)
byte_streams = st.builds(
    lambda bom, body, last: bom + b"".join(map(b"".join, body)) + last,
    st.sampled_from([b"", b"", BOM, BOM[:2], BOM + BOM]),
    st.lists(st.tuples(lines, line_ends), max_size=10),
    lines,
)
places = st.sets(st.integers(0, 80), max_size=12)


@given(byte_streams, places)
@example(b"data: a\r", {7, 8})
@example(b"data: a\r\n\r\n", {8, 9, 10})
@example(b"\r\n\r\ndata: a\n\n", {1, 2, 3})
@example(BOM + b"data: a\n\n", {1, 2})
@example(BOM[:2], {1})
@examples(300)
def test_any_bytes_cut_anywhere(stream: bytes, places: set[int]) -> None:
    """However a stream is cut, and also byte by byte, the parser gives what the standard says of the whole."""
    expected = reference(stream)
    assert parsed([stream]) == expected
    assert parsed(cut(stream, places)) == expected
    assert parsed([stream[i : i + 1] for i in range(len(stream))]) == expected


@given(st.lists(st.lists(values, min_size=1, max_size=3), max_size=5), st.data())
def test_events_come_out_as_they_went_in(events: list[list[bytes]], data: st.DataObject) -> None:
    """Events of several data lines, among comments and other fields, come out whole, in order and once each."""
    stream = b""
    for event in events:
        end = data.draw(line_ends)
        others = data.draw(
            st.lists(st.sampled_from([b": comment", b"event: message", b"id: 7", b"retry: 1"]), max_size=2)
        )
        stream += end.join([*others, *(b"data: " + value for value in event), b"", b""])
    pieces = cut(stream, data.draw(places))
    assert parsed(pieces) == [b"\n".join(event) for event in events]


def test_events_are_given_at_once() -> None:
    """An event is there with the byte that ends it, also where its line ends in CR and more may come."""
    parser = SSEParser()
    assert parser.feed(b"data: a\n\ndata: b\r\rdata: c") == [b"a", b"b"]
    assert parser.feed(b"\r\n\r") == [b"c"]
    assert parser.feed(b"\ndata: d\n") == []
    assert parser.close() == [b"d"]
    assert parser.close() == []


@pytest.mark.parametrize("last", ["data: b", "data: b\n", "data: b\r", "data: b\r\n"])
def test_a_missing_last_line_end(last: str) -> None:
    """Some servers leave out the blank line after the last event, or its line end: the event counts all the same."""
    assert parsed([f"data: a\n\n{last}".encode()]) == [b"a", b"b"]


LIMIT = 1000


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("name", [b"data:", b"data: "])
def test_the_limit_is_one_events(size: int, step: int, name: bytes) -> None:
    """An event of the limit's size passes and one byte more is refused, however it is cut; many small ones pass."""
    stream = b"data: small\n\n" * 500 + name + b"x" * size + b"\n\n"
    pieces = [stream[i : i + step] for i in range(0, len(stream), step)]
    if size > LIMIT:
        with pytest.raises(SSETooLarge):
            parsed(pieces, LIMIT)
    else:
        assert parsed(pieces, LIMIT)[-1] == b"x" * size


@pytest.mark.parametrize("line", [b"data: xxxx\n", b"data\n", b"data:\n", b": comment", b"x"])
def test_nothing_grows_without_bound(line: bytes) -> None:
    """Many lines of one event, empty ones too, and a line that never ends are refused at the limit."""
    parser = SSEParser(LIMIT)
    with pytest.raises(SSETooLarge):
        for _ in range(LIMIT + 10):
            parser.feed(line)


def test_a_long_line_in_small_pieces_takes_linear_time() -> None:
    """An event of 32 MB in pieces of 4 KB costs no more than some copies of it."""
    piece, pieces = b"x" * 4096, 8192
    started = time.process_time()
    parser = SSEParser()
    parser.feed(b"data: ")
    for _ in range(pieces):
        parser.feed(piece)
    assert parser.feed(b"\n\n") == [piece * pieces]
    assert time.process_time() - started < 2.0


# -- Frames


def decoded(stream: bytes) -> list[ServerSentEvent]:
    """What httpx-sse reads in a stream."""
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    return list(EventSource(response).iter_sse())


def test_the_end_of_a_whole_answer() -> None:
    """The seed's last event is named done, carries the next index and null."""
    (event,) = decoded(COMMENT + done_frame(12))
    assert (event.event, event.id, event.data) == ("done", "12", "null")


@given(st.text(max_size=20), st.text(st.characters(exclude_categories=()), max_size=40))
@example("provider_error", "one\ntwo\rthree\u2028four\x00\ud800")
def test_an_error_in_the_seeds_framing(code: str, message: str) -> None:
    """Any message fits one data line as a JSON string, and half a surrogate pair does not keep it from its reader."""
    code = code.replace("\n", "")
    (event,) = decoded(error_frame(code, message))
    assert event.event == "error"
    assert said(json.loads(event.data)) == said(f"{code}: {message}")


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_an_error_in_openais_framing(message: str) -> None:
    """OpenAI's frames have data lines alone."""
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": "x"}}
    frame = openai_error_frame(body)
    assert re.fullmatch(rb"data: [^\r\n]+\n\n", frame)
    (event,) = decoded(frame)
    assert (event.event, event.id) == ("message", "")
    assert said(json.loads(event.data)["error"]["message"]) == said(message)


def said(text: str) -> str:
    """The text with what UTF-8 can't carry replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_openais_done() -> None:
    """The last frame is the word that OpenAI's clients wait for."""
    (event,) = decoded(OPENAI_DONE)
    assert event.data == "[DONE]"
