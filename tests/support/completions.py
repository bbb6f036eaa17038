"""Any completion, and any way to stream it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from schemas.fold import Fold

HEAD: dict[str, Any] = {"id": "chatcmpl-1", "created": 7, "model": "m"}


def chunk(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**HEAD, "object": "chat.completion.chunk", "choices": list(choices), **fields}


def piece(
    index: int = 0, finish_reason: str | None = None, logprobs: Any = None, **delta: Any
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def fold(*chunks: dict[str, Any]) -> dict[str, Any]:
    folded = Fold()
    for one in chunks:
        folded.add(one)
    return folded.completion()


texts = st.text(min_size=1, max_size=30)
tokens = st.lists(
    st.fixed_dictionaries(
        {
            "token": st.text(max_size=3),
            "logprob": st.floats(-20, 0),
            "bytes": st.none() | st.lists(st.integers(0, 255), max_size=3),
            "top_logprobs": st.just([]),
        }
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    said: dict[str, Any] = {
        "role": "assistant",
        "content": draw(st.none() | texts),
        "refusal": draw(st.none() | texts),
    }
    if draw(st.booleans()):
        said["reasoning_content"] = draw(texts)
    names = draw(st.lists(texts, max_size=3))
    if names:
        said["tool_calls"] = [
            {
                "id": f"call_{at}",
                "type": "function",
                "function": {"name": name, "arguments": draw(st.text(max_size=20))},
            }
            for at, name in enumerate(names)
        ]
    return said


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    whole: dict[str, Any] = {**HEAD, "object": "chat.completion"}
    whole["choices"] = [
        {
            "index": index,
            "message": draw(messages()),
            "logprobs": draw(
                st.none() | st.fixed_dictionaries({"content": tokens, "refusal": st.none() | tokens})
            ),
            "finish_reason": draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"])),
        }
        for index in range(draw(st.integers(1, 3)))
    ]
    whole["system_fingerprint"] = "fp"
    whole["service_tier"] = "default"
    whole["usage"] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return whole


def cut(draw: st.DrawFn, text: str) -> list[str]:
    """The text in one to four pieces, some of which may be empty."""
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def woven(draw: st.DrawFn, lines: list[list[dict[str, Any]]], in_turn: bool) -> list[dict[str, Any]]:
    """The lines interleaved, each in its own order; with ``in_turn`` each also begins after the one before it."""
    weave = [line.pop(0) for line in lines] if in_turn else []
    while lines := [line for line in lines if line]:
        weave.append(draw(st.sampled_from(lines)).pop(0))
    return weave


def pieces_of(draw: st.DrawFn, choice: dict[str, Any], in_turn: bool) -> list[dict[str, Any]]:
    """The choice as the pieces that a provider would stream."""
    index, said = choice["index"], choice["message"]
    strings = [name for name, value in said.items() if name != "role" and isinstance(value, str)]
    lines = [[piece(index, **{name: part}) for part in cut(draw, said[name])] for name in strings]
    for at, call in enumerate(said.get("tool_calls", ())):
        first, *rest = cut(draw, call["function"]["arguments"])
        opening = {**call, "index": at, "function": {"name": call["function"]["name"], "arguments": first}}
        fragments = [opening, *({"index": at, "function": {"arguments": part}} for part in rest)]
        lines.append([piece(index, tool_calls=[one]) for one in fragments])
    if choice["logprobs"]:
        for name, entries in choice["logprobs"].items():
            parts = [None] if entries is None else [[entry] for entry in entries]
            lines.append([piece(index, logprobs={name: part}) for part in parts])
    return [
        piece(index, role="assistant"),
        *woven(draw, lines, in_turn),
        piece(index, choice["finish_reason"]),
    ]


Cut = tuple[dict[str, Any], list[dict[str, Any]]]


@st.composite
def cuts(draw: st.DrawFn, in_turn: bool = False) -> Cut:
    """A completion and the chunks of one way to stream it, the choices interleaved."""
    whole = draw(completions())
    lines = [pieces_of(draw, choice, in_turn) for choice in whole["choices"]]
    pieces = woven(draw, lines, in_turn)
    chunks = [chunk(one, system_fingerprint="fp", service_tier="default", usage=None) for one in pieces]
    return whole, [*chunks, chunk(usage=whole["usage"])]


# -- And what is no proper chunk

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def strange(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object where each field may be what it should be, anything else, or missing; or no object at all."""
    return anything | st.fixed_dictionaries(
        {}, optional={name: anything | good for name, good in fields.items()}
    )


strange_inside = strange(name=st.just("f"), arguments=st.just("{"), input=st.just("x"))
strange_call = strange(
    index=st.integers(-1, 2),
    id=st.sampled_from(["", "a", "b"]),
    function=strange_inside,
    custom=strange_inside,
)
strange_delta = strange(
    role=st.just("assistant"),
    content=st.just("x"),
    tool_calls=st.lists(strange_call, max_size=3),
    function_call=strange_inside,
    audio=strange(data=st.just("AA")),
    other=anything,
)
strange_choice = strange(
    index=st.integers(-1, 2), delta=strange_delta, logprobs=strange(content=anything), message=anything
)
strange_chunk = st.fixed_dictionaries(
    {"choices": anything | st.lists(strange_choice, max_size=3)},
    optional={"usage": anything, "object": anything},
)
