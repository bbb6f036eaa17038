"""The chunk log's codec: whatever a provider sends comes back from the log as it was sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import (
    MAX_DEPTH,
    BadChunk,
    ChunkEncoder,
    Renderer,
    chunks_of,
    decode_head,
    decode_item,
    dumps,
    loads,
    split_items,
)
from tests.support.json_texts import (
    BY_NUMBER,
    array_text,
    json_texts,
    object_text,
    read,
    same,
    spaces,
    spell,
    spellings,
    string_texts,
    texts,
)
from tests.support.properties import examples

OWN = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 7,
    "model": "asked",
    "resolved_model": "m",
    "resolved_provider": "p",
}


def renderer(*, head: bytes = b"{}", flat_logprobs: bool = False) -> Renderer:
    made = Renderer(
        completion="chatcmpl-1",
        created=7,
        model="asked",
        resolved_model="m",
        resolved_provider="p",
        flat_logprobs=flat_logprobs,
    )
    made.set_head(head)
    return made


def meaning(raw: str | bytes) -> dict[str, Any]:
    """What has to survive of a chunk: all but the completion's own fields, and ``finish_reason`` always there."""
    chunk = read(raw)
    for name in OWN:
        chunk.pop(name, None)
    if chunk.get("usage", 0) is None:
        del chunk["usage"]
    chunk["choices"] = chunk.get("choices") or []
    for position, choice in enumerate(chunk["choices"]):
        if choice.get("index") is None:
            choice["index"] = position
        if choice.get("delta") is None:
            choice["delta"] = {}
        choice.setdefault("finish_reason", None)
    return chunk


def with_alias(chunk: dict[str, Any]) -> dict[str, Any]:
    """The chunk with ``reasoning`` beside ``reasoning_content``, as clients are promised."""
    for choice in chunk["choices"]:
        if "reasoning_content" in choice["delta"]:
            choice["delta"].setdefault("reasoning", choice["delta"]["reasoning_content"])
    return chunk


def check(stream: list[str]) -> None:
    """The whole contract for one attempt's chunks: items, head, decoding, rendering."""
    encoder = ChunkEncoder()
    items: list[bytes] = []
    heads: set[bytes] = set()
    for raw in stream:
        item = encoder.encode(raw.encode("utf-8", "surrogatepass"))
        assert item, "an item is never empty"
        assert b"\n" not in item
        items.append(item)
        heads.add(encoder.head)
    assert len(heads) == 1, "the head stands after the first chunk"
    assert split_items(b"\n".join(items)) == items
    head = heads.pop()
    assert b"\n" not in head
    rendered = list(chunks_of(items, renderer(head=head)))
    for raw, item, seen in zip(stream, items, rendered, strict=True):
        assert same(decode_item(item, decode_head(head)), meaning(raw)), raw
        assert same(seen, OWN | with_alias(meaning(raw))), raw


# -- Any JSON


@given(json_texts)
def test_loads_reads_any_json(text: str) -> None:
    """Every JSON value is read as json.loads reads it, and numbers that no double can hold are kept exactly."""
    value = loads(text.encode("utf-8", "surrogatepass"))
    assert same(value, read(text))
    again = dumps(value)
    assert b"\n" not in again
    assert same(loads(again), value)


@given(
    st.text(st.sampled_from('{}[]",:\\ \n0123456789.eE+-tfnulasrk\x00\ud800é'), max_size=12) | json_texts,
    st.data(),
)
def test_loads_refuses_what_is_not_json(text: str, data: st.DataObject) -> None:
    """Any damaged text is either JSON to the standard library too, or BadChunk."""
    if text:
        at = data.draw(st.integers(0, len(text) - 1))
        text = (
            text[:at] + data.draw(st.sampled_from(["", "x", '"', "]", "\\", "1", ",", "\n"])) + text[at + 1 :]
        )
    text = text.encode("utf-8", "replace").decode()
    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        with pytest.raises(BadChunk):
            loads(text.encode())
    else:
        assert same(loads(text.encode()), read(text))


def refuse(constant: str) -> Any:
    raise ValueError(constant)


@pytest.mark.parametrize(
    "text", ["1e5000", "-1E99999", "1e99999999999999999999999999", "1" * 5000, "NaN", "[Infinity]"]
)
def test_numbers_beyond_all_measure_are_refused(text: str) -> None:
    """A number that nobody's parser will print again is BadChunk, and so is what only JavaScript calls a number."""
    with pytest.raises(BadChunk):
        loads(text.encode())


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    """A string with a broken byte is kept readable, as an event-stream decoder would."""
    assert loads(b'{"a":"x\xffy"}') == {"a": "x\ufffdy"}
    encoder = ChunkEncoder()
    template = b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}'
    items = [
        encoder.encode(template % text) or b"" for text in (b"a", b"b", b"\xe4\xb8", b"\xed\xa0\x80", b"c")
    ]
    said = [
        decode_item(item or b"", decode_head(encoder.head))["choices"][0]["delta"]["content"]
        for item in items
    ]
    assert [said[0], said[1], said[-1]] == ["a", "b", "c"]
    assert all("\ufffd" in text for text in said[2:4])


@pytest.mark.parametrize("depth", [MAX_DEPTH - 4, MAX_DEPTH + 1, 100_000])
def test_nesting_has_a_limit_of_its_own(depth: int) -> None:
    """What a worker took in, any reader can read, however deep its own stack is; deeper chunks are refused."""
    raw = '{"choices":[{"index":0,"delta":{"content":"a"}}],"deep":' + "[" * depth + "]" * depth + "}"
    encoder = ChunkEncoder()
    if depth > MAX_DEPTH:
        with pytest.raises(BadChunk, match=r"nested"):
            encoder.encode(raw.encode())
    else:
        check([raw, raw])


# -- Any stream


@st.composite
def objects(draw: st.DrawFn, **fields: st.SearchStrategy[str]) -> str:
    """An object with some of the given fields, in any order and spelling, and perhaps some of any other name."""
    pairs: list[tuple[str, str]] = []
    for name, values in fields.items():
        if draw(st.integers(0, 9)) > 1:
            pairs.append((f'"{name}"', draw(values)))
    other = string_texts.filter(lambda text: json.loads(text) not in fields)
    pairs += draw(st.lists(st.tuples(other, json_texts), max_size=2))
    return object_text(draw(st.permutations(pairs)), draw(spaces))


def lists_of(inner: st.SearchStrategy[str], size: int = 3) -> st.SearchStrategy[str]:
    return st.builds(array_text, st.lists(inner, max_size=size))


null = st.just("null")
any_delta = objects(
    content=string_texts | json_texts, reasoning_content=string_texts | null, tool_calls=json_texts
)
any_choice = objects(
    index=st.integers(-1, 2**70).map(str) | st.just("0") | null,
    delta=any_delta | null,
    finish_reason=st.sampled_from(['"stop"', '"length"', "null"]),
    logprobs=json_texts,
)
any_chunk = objects(
    id=string_texts,
    object=st.just('"chat.completion.chunk"'),
    created=st.integers().map(str),
    model=string_texts,
    choices=lists_of(any_choice) | null,
    usage=json_texts,
)


@given(st.lists(any_chunk.filter(lambda raw: not is_error(raw)), min_size=1, max_size=4))
@examples(60)
def test_any_chunks_come_back(stream: list[str]) -> None:
    """Chunks of any shape and spelling, each unlike the last, come back as they were sent."""
    check(stream)


def is_error(raw: str) -> bool:
    chunk = read(raw)
    return chunk.get("error") is not None and not chunk.get("choices")


#: What stands before and after the text in the chunks of real providers, compact and spaced.
TEMPLATES = [
    (
        '{"id":"x","created":1,"model":"m","system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":',
        '},"logprobs":null,"finish_reason":null}]}',
    ),
    (
        '{"choices": [{"finish_reason": null, "index": 0, "delta": {"content": ',
        '}}], "created": 1, "id": "x", "model": "m", "object": "chat.completion.chunk", "usage": null}',
    ),
    ('{"choices":[{"delta":{"content":', "}}]}"),
    ('{"content":"no","choices":[{"index":0,"delta":{"role":"assistant","content":', "}}]}"),
]


@st.composite
def streams(draw: st.DrawFn) -> list[str]:
    """One provider's stream: mostly text between the same bytes, and now and then what would trick a shortcut."""
    before, after = draw(st.sampled_from(TEMPLATES))
    how = draw(spellings)
    hostile = st.sampled_from(
        [before, after, '"', ",", ":", '":"', "assistant", "choices", before + '"a"' + after, ""]
    )
    stream: list[str] = []
    for _ in range(draw(st.integers(1, 8))):
        said = spell(draw(texts | hostile), how)
        match draw(st.integers(0, 11)):
            case 0:
                before = before.replace('"created":1', f'"created":{draw(st.integers(1, 3))}')
            case 1:
                said += ',"content":' + draw(string_texts)
            case 2:
                said += draw(st.sampled_from([',"refusal":null', ',"role":"assistant"', ' ,"tool_calls":[]']))
            case 3:
                said += '},"delta":{"content":' + draw(string_texts)
            case 4:
                said += '},"logprobs":{"content":[' + draw(json_texts) + ']},"x":{"y":' + draw(string_texts)
            case 5:
                said += '}},{"index":1,"delta":{"content":' + draw(string_texts)
            case 6:
                said = draw(json_texts)
            case 7:
                stream.append(draw(any_chunk.filter(lambda raw: not is_error(raw))))
                continue
            case 8:
                inside = objects(reasoning_content=string_texts, content=null)
                stream.append('{"choices":[{"index":0,"delta":' + draw(inside) + "}]}")
                continue
            case _:
                pass
        stream.append(before + said + after)
    return stream


@given(streams())
@examples(150)
def test_streams_come_back(stream: list[str]) -> None:
    """The shortcut that an encoder learns from one chunk never changes what another one says."""
    check(stream)


@pytest.mark.parametrize(("before", "after"), TEMPLATES[:3])
@pytest.mark.parametrize(
    "text", ["plain", "é中😀", "a\u2028b", "\\ud83d\\ude00", "\\u4e2d", "\\ud800", '\\"\\n\\/', "\\u0000", ""]
)
def test_text_is_cut_out_without_parsing(
    before: str, after: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it knows a provider's chunks, an encoder takes their text as it is spelled, and parses nothing."""
    encoder = ChunkEncoder()
    encoder.encode(f'{before}"first"{after}'.encode())
    encoder.encode(f'{before}"twice: index"{after}'.encode())
    monkeypatch.setattr(ChunkEncoder, "encode_chunk", None)
    raw = f'{before}"{text}"{after}'
    item = encoder.encode(raw.encode()) or b""
    assert item == f'"{text}"'.encode()
    assert same(decode_item(item, decode_head(encoder.head)), meaning(raw))


@pytest.mark.parametrize("text", ["a\x00b", "a\tb", "\\x", "\\u12", "\\u12G4", "a\\"])
def test_the_shortcut_refuses_what_is_not_json(text: str) -> None:
    """Broken strings are BadChunk behind the known prefix too."""
    before, after = TEMPLATES[0]
    encoder = ChunkEncoder()
    encoder.encode(f'{before}"first"{after}'.encode())
    with pytest.raises(BadChunk):
        encoder.encode(f'{before}"{text}"{after}'.encode())


def test_a_text_that_is_no_token_of_its_own_is_no_place_to_learn() -> None:
    """A comma that the provider escapes is found between two other strings: nothing is learned, nothing breaks."""
    check(['{"choices":[{"delta":{"content":"\\u002c"}}],"x":["a","b"]}'] * 2)
    for name in ("choices", "delta", "content"):
        check([TEMPLATES[2][0] + spell(name, BY_NUMBER) + TEMPLATES[2][1]] * 2)


def test_a_long_text_takes_linear_time_and_no_stack() -> None:
    """A chunk of several megabytes goes through the shortcut and comes back."""
    before, after = TEMPLATES[0]
    check([f'{before}"{text}"{after}' for text in ("a", "x" * 3_000_000, "y\\n" * 1_000_000)])


def test_shared_fields_are_stored_once() -> None:
    """Text that differs alone costs its own bytes: fields that all chunks share are in the head."""
    before, after = TEMPLATES[0]
    encoder = ChunkEncoder()
    assert encoder.encode(f'{before}"a"{after}'.encode()) == b'"a"'
    assert encoder.encode(f'{before}"b"{after}'.replace('"created":1', '"created":2').encode()) == b'"b"'
    assert json.loads(encoder.head) == {"top": {"system_fingerprint": "fp"}, "choice": {"logprobs": None}}


def test_values_that_python_calls_equal_are_not() -> None:
    """1, 1.0 and true are equal to Python; in the log each stays what it was."""
    chunks = [
        f'{{"x":{value},"choices":[{{"index":0,"delta":{{"content":"a"}},"y":{value}}}]}}'
        for value in ("1", "1.0", "true", "1", "-0.0", "0.0", "0")
    ]
    check(chunks)
    check(chunks[::-1])


# -- What is refused, and what an encoder notes


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "[DONE",
        "[]",
        "null",
        '"text"',
        "7",
        '{"choices":{}}',
        '{"choices":"x"}',
        '{"choices":[null]}',
        '{"choices":[[]]}',
        '{"choices":[{"index":"0"}]}',
        '{"choices":[{"index":true}]}',
        '{"choices":[{"index":0.5}]}',
        '{"choices":[{"delta":"x"}]}',
        '{"choices":[{"delta":[]}]}',
        '{"choices":[{"index":0,"delta":{"content":"a"}}]} {}',
        '{"choices":[{"index":0,"delta":{"content":"a"}}]',
        '{"choices":[{"index":0,"delta":{"content":NaN}}]}',
    ],
)
def test_what_is_no_chunk_is_refused(raw: str) -> None:
    """Anything but an object with sound choices is BadChunk, before and after the encoder knows its provider."""
    encoder = ChunkEncoder()
    with pytest.raises(BadChunk):
        encoder.encode(raw.encode())
    encoder.encode(f'{TEMPLATES[0][0]}"a"{TEMPLATES[0][1]}'.encode())
    with pytest.raises(BadChunk):
        encoder.encode(raw.encode())


def test_an_error_in_place_of_a_chunk() -> None:
    """An error object is no chunk and is remembered; beside choices, or null, it is a field like any other."""
    encoder = ChunkEncoder()
    assert encoder.encode(b'{"error":{"message":"no"}}') is None
    assert encoder.error == {"message": "no"}
    encoder = ChunkEncoder()
    check(['{"error":null,"choices":[]}', '{"error":"x","choices":[{"delta":{}}]}'])
    assert encoder.error is None


def piece(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def encoded(*chunks: dict[str, Any]) -> ChunkEncoder:
    encoder = ChunkEncoder()
    for chunk in chunks:
        encoder.encode(json.dumps(chunk).encode())
    return encoder


def test_whole_counts_the_choices_that_ended() -> None:
    """An answer is whole when every choice that was asked for has its finish_reason, and any beside them too."""
    open_ = encoded({"choices": [piece(content="a")]}, {"choices": [piece(content="b")]})
    assert not open_.whole(1)
    one = encoded(
        {"choices": [piece(content="a")]}, {"choices": [piece(finish="stop")]}, {"choices": [], "usage": {}}
    )
    assert one.whole(1)
    assert not one.whole(2)
    assert not encoded().whole(1)
    beside = encoded(
        {"choices": [piece(content="a"), piece(1, content="b")]}, {"choices": [piece(0, "stop")]}
    )
    assert not beside.whole(1)
    both = encoded({"choices": [piece(0, "stop")]}, {"choices": [piece(1, "length")]})
    assert both.whole(2)
    assert both.finish_reasons == {0: "stop", 1: "length"}


def test_usage_is_the_last_one_that_came() -> None:
    """Usage may come with any chunk and grow; null and nonsense in its place say nothing."""
    encoder = encoded(
        {"choices": [piece(content="a")], "usage": {"total_tokens": 1}},
        {"choices": [piece(content="b")], "usage": {"total_tokens": 2}},
        {"choices": [piece(content="b")], "usage": None},
        {"choices": [piece(content="b")], "usage": 7},
    )
    assert encoder.usage == {"total_tokens": 2}


# -- Rendering


def shown(*chunks: dict[str, Any], flat_logprobs: bool = False) -> list[dict[str, Any]]:
    encoder = ChunkEncoder()
    items = [encoder.encode(json.dumps(chunk).encode()) or b"" for chunk in chunks]
    return list(chunks_of(items, renderer(head=encoder.head, flat_logprobs=flat_logprobs)))


def test_reasoning_appears_under_both_names() -> None:
    """reasoning_content is also shown as reasoning, in every kind of item; what a provider calls so itself stays."""
    said = shown(
        {"choices": [piece(reasoning_content="a")]},
        {"choices": [piece(reasoning_content="b", content="x")]},
        {"choices": [piece(reasoning_content="c", reasoning="own")], "more": 1},
        {"choices": [piece(content='"reasoning_content"')]},
        {"choices": [piece(reasoning="alone")]},
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in said]
    assert deltas == [
        {"reasoning_content": "a", "reasoning": "a"},
        {"reasoning_content": "b", "content": "x", "reasoning": "b"},
        {"reasoning_content": "c", "reasoning": "own"},
        {"content": '"reasoning_content"'},
        {"reasoning": "alone"},
    ]


def test_flat_logprobs_stand_beside_openais() -> None:
    """The seed's flat columns have one row a token; without the flag, and without logprobs, nothing is added."""
    rows = [
        {"token": "Hé", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Hé", "logprob": -0.5}]},
        {"token": "y", "logprob": -1.5, "bytes": [121], "top_logprobs": []},
    ]
    chunk = {"choices": [{**piece(content="Héy"), "logprobs": {"content": rows, "refusal": None}}]}
    flat = shown(chunk, flat_logprobs=True)[0]["choices"][0]["logprobs"]
    assert flat == {
        "content": rows,
        "refusal": None,
        "tokens": ["Hé", "y"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"Hé": -0.5}, {}],
        "text_offset": [0, 2],
    }
    assert shown(chunk)[0]["choices"][0]["logprobs"] == {"content": rows, "refusal": None}
    without = {"choices": [{**piece(content='"logprobs"'), "logprobs": None}]}
    assert shown(without, flat_logprobs=True)[0]["choices"][0]["logprobs"] is None


@given(st.lists(json_texts, max_size=3), json_texts)
@examples(50)
def test_flat_logprobs_survive_any_shape(rows: list[str], other: str) -> None:
    """Whatever a provider puts in place of logprobs breaks no reader, and none of it is lost."""
    for logprobs in (
        other,
        f'{{"content":[{",".join(rows)}]}}',
        f'{{"content":[{{"token":"a","top_logprobs":{other}}}]}}',
    ):
        encoder = ChunkEncoder()
        raw = f'{{"choices":[{{"index":0,"delta":{{"content":"a"}},"logprobs":{logprobs}}}]}}'
        item = encoder.encode(raw.encode("utf-8", "surrogatepass")) or b""
        seen = loads(renderer(head=encoder.head, flat_logprobs=True).render(item))
        said = seen["choices"][0]["logprobs"]
        sent = meaning(raw)["choices"][0]["logprobs"]
        kept = {name: said[name] for name in sent} if isinstance(sent, dict) else said
        assert same(kept, sent)


def test_usage_only_chunks_are_told_from_all_others() -> None:
    """A chunk with usage and no choice is one; text, nested fields and odd names that look like it are not."""

    def usage_only(chunk: dict[str, Any]) -> bool:
        encoder = encoded({"choices": [piece(content="a")]})
        item = encoder.encode(json.dumps(chunk).encode())
        assert item is not None
        return renderer(head=encoder.head).is_usage_only(item)

    usage = {"total_tokens": 3}
    assert usage_only({"choices": [], "usage": usage})
    assert usage_only({"usage": usage, "choices": [], "service_tier": "x"})
    assert usage_only({"usage": usage})
    assert not usage_only({"choices": [piece(finish="stop")], "usage": usage})
    assert not usage_only({"choices": []})
    assert not usage_only({"choices": [], "usage": None})
    assert not usage_only({"choices": [], "x": {"usage": usage}})
    assert not usage_only({"choices": [piece(content="a")], "x": {"choices": []}, "usage": usage})
    assert not usage_only({"choices": [piece(content="b")], 'x"choices': [], "usage": usage})
    assert not usage_only({"choices": [piece(content='"choices":[],"usage"')], "more": 1})
    text = json.dumps({"choices": [], "usage": usage}, separators=(",", ":"))
    assert not usage_only({"choices": [piece(content=text)], "more": text})


# -- Who answered


@given(text=st.text())
def test_a_head_says_who_answered_in_place_of_who_was_meant(text: str) -> None:
    """In chunks of every shape; a head that says nothing leaves what the completion says."""
    encoder, plain = ChunkEncoder(by=("second", "m2")), ChunkEncoder()
    for delta in ({"role": "assistant"}, {"content": text}, {"tool_calls": []}):
        chunk = {"choices": [{"index": 0, "delta": delta}], "x": len(delta)}
        for one, who in ((encoder, ("second", "m2")), (plain, ("p", "m"))):
            item = one.encode(dumps(chunk))
            assert item is not None
            shown = loads(renderer(head=one.head).render(item))
            assert (shown["resolved_provider"], shown["resolved_model"]) == who
    assert b"by" not in plain.head
    assert ChunkEncoder(encoder.head).head == encoder.head
