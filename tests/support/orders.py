"""What a request can order from the fake model backend, and the bytes that the order comes to. No I/O.

A request orders with one extra field, which passes through Tailrace to the provider like any unknown parameter:
``{"model": "fake", "messages": […], "fake": {"chunks": 100, "interval_ms": 2, "cut_at_byte": 500}}``.
A list orders one after the other: the first time that this very list is seen it means its first entry, and so on; the
last entry repeats. So an attempt can fail and the next one succeed. A request with a second extra field, ``fake_id``,
has its tries counted by that instead, also for orders that are ``varied`` or ``sampled``.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any, Literal

import msgspec

from tests.support.tries import cut, interleaved, mark, sampled_word

#: In every chunk of every answer, so that an answer is a function of its request.
ID = "chatcmpl-fake"
CREATED = 1_700_000_000
PROMPT_TOKENS = 10


class Order(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Durations are milliseconds. ``_after`` counts content chunks, those of all choices as one."""

    # what is said
    chunks: int = 10  # content chunks: " tok0", " tok1", …
    text: str | None = None  # this text instead, a word a chunk
    pieces: list[str] | None = None  # this text in these chunks
    deltas: list[dict[str, Any]] | None = None  # these deltas of choice 0, word for word
    raw_chunks: list[Any] | None = None  # these chunk objects, word for word, and nothing else but [DONE]
    raw: str | None = None  # this body, word for word
    raw_base64: str | None = None
    big_chunk: int | None = None  # one content chunk of this many characters
    choices: int = 1  # `n` in the request counts too; choice 1 says " tok0'1"
    reasoning: bool | int = False  # `reasoning_content` first; a number says how many chunks, True is 5
    tool_calls: bool = (
        False  # two calls, arguments in pieces, after the content that `text` or `pieces` order
    )
    arguments: list[str] | None = None  # calls with these arguments instead of the two
    varied: bool = False  # each try cuts the same text into other chunks, a chunk for one choice at a time
    sampled: bool = (
        False  # each try says other words, as many: " t3.0", " t3.1", … in the third; cut as by `varied`
    )
    refusal: bool = False  # the pieces as `refusal` rather than as `content`
    logprobs: bool = False
    finish: str | None = None  # finish_reason; "stop" or "tool_calls" where it isn't given
    usage: dict[str, Any] | None = None  # this usage object
    usage_null: bool = False  # `"usage": null` in every chunk, as OpenAI does
    usage_in_finish: bool = False  # usage in the chunk with the finish reason, asked for or not
    extra: dict[str, Any] = {}  # more top-level fields of every chunk

    # when
    headers_delay_ms: float = 0  # before status and headers
    first_delay_ms: float = 0  # between headers and first chunk
    interval_ms: float = 0  # between chunks; 0 sends all at once

    # what goes wrong
    status: int = 200
    error: dict[str, Any] | str | None = (
        None  # body of a failure: the error object, or a body that is not JSON
    )
    headers: dict[str, str] = {}  # of the response
    drop: bool = False  # no answer: the connection is closed
    cut_at_byte: int | None = None  # the connection ends after this many bytes of the body
    cut: Literal["close", "reset", "end"] = "close"  # FIN, RST, or a proper end of the HTTP body
    stall_after: int | None = None  # after this many chunks nothing more comes, and the connection stays open
    error_event_after: int | None = None  # after this many chunks `data: {"error": …}`, and the end
    garbage: bool = False  # an event in the middle that is no JSON
    drip_bytes: int | None = None  # the body goes out in pieces of this size, `interval_ms` apart
    no_usage: bool = False
    no_done: bool = False
    no_finish: bool = False

    # how it is framed
    crlf: bool = False
    comments: bool = False  # a comment before every event
    multiline: bool = False  # each event on two `data:` lines
    unframed: bool = False  # the body ends with the connection, not by chunked coding


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes out. ``steps[k]`` is due at ``first_delay + k * interval`` (seconds) after the head."""

    head: bytes
    steps: tuple[bytes, ...]
    ending: Literal["complete", "close", "reset", "stall", "drop"]
    headers_delay: float = 0.0
    first_delay: float = 0.0
    interval: float = 0.0
    separate: bool = False  # each step in a write of its own, also where interval is 0
    keep_alive: bool = True


REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


def head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def json_answer(status: int, body: Any, headers: dict[str, str] | None = None) -> Plan:
    """A whole answer with Content-Length. A string is sent as it is."""
    data = body.encode() if isinstance(body, str) else dump(body)
    kind = "text/plain" if isinstance(body, str) else "application/json"
    fields = {"content-type": kind, "content-length": str(len(data)), **(headers or {})}
    return Plan(head(status, fields), (data,), "complete")


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@lru_cache(maxsize=4096)
def plan(order_json: bytes, model: str, n: int, stream: bool, include_usage: bool, attempt: int = 1) -> Plan:
    """The answer to a chat completion request. Raises msgspec.ValidationError for an order that is none.

    ``attempt`` counts the tries from 1, for what is ``varied`` or ``sampled``.
    """
    order = msgspec.json.decode(order_json, type=Order)
    delays = (order.headers_delay_ms / 1000, order.first_delay_ms / 1000)
    if order.drop:
        return Plan(b"", (), "drop", *delays)
    if order.status != 200:
        body = order.error if isinstance(order.error, str) else {"error": _error(order)}
        answer = json_answer(order.status, body, order.headers)
        return replace(answer, headers_delay=delays[0], first_delay=delays[1])
    if not stream:
        answer = json_answer(200, _whole(order, model, n, attempt), order.headers)
        return replace(answer, headers_delay=delays[0], first_delay=delays[1])

    steps, ending = _steps(order, model, n, include_usage, attempt)
    fields = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        **order.headers,
    }
    if order.unframed:
        fields["connection"] = "close"
        framed = [b"".join(step) for step in steps]
    else:
        fields["transfer-encoding"] = "chunked"
        framed = [
            b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in step if event) for step in steps
        ]
        if ending == "complete":
            framed.append((framed.pop() if framed else b"") + b"0\r\n\r\n")
    return Plan(
        head(200, fields),
        tuple(framed),
        ending,
        *delays,
        interval=order.interval_ms / 1000,
        separate=order.drip_bytes is not None,
        keep_alive=not order.unframed,
    )


def _error(order: Order) -> dict[str, Any]:
    given = order.error if isinstance(order.error, dict) else {}
    return {"message": "ordered failure", "type": "fake_error", "param": None, "code": "ordered", **given}


def contents(order: Order) -> list[str]:
    """The content chunks of choice 0, as ordered."""
    if order.pieces is not None:
        return order.pieces
    if order.big_chunk is not None:
        return ["x" * order.big_chunk]
    if order.text is not None:
        return re.findall(r"\s*\S+|\s+$", order.text)
    if _tool_calls(order):
        return []
    return [f" tok{i}" for i in range(order.chunks)]


TOOL_CALLS = (
    ("call_0", "get_weather", ('{"city"', ': "Pa', 'ris"}')),
    ("call_1", "get_time", ('{"zone": ', '"UTC"}')),
)


def _tool_calls(order: Order) -> list[tuple[str, str, tuple[str, ...]]]:
    if order.arguments is not None:
        return [(f"call_{i}", f"tool_{i}", (text,)) for i, text in enumerate(order.arguments)]
    return list(TOOL_CALLS) if order.tool_calls else []


def _tool_deltas(order: Order, random: Random | None = None) -> list[dict[str, Any]]:
    """``random``: in pieces of sizes that it says, of about a word each."""
    deltas: list[dict[str, Any]] = []
    for index, (call, name, arguments) in enumerate(_tool_calls(order)):
        if random is not None:
            text = "".join(arguments)
            arguments = cut(text, len(text.split()), random)
        function = {"name": name, "arguments": ""}
        deltas.append(
            {"tool_calls": [{"index": index, "id": call, "type": "function", "function": function}]}
        )
        deltas.extend({"tool_calls": [{"index": index, "function": {"arguments": a}}]} for a in arguments)
    return deltas


def _logprobs(token: str, i: int) -> dict[str, Any]:
    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "surrogatepass"))}

    top = [entry(token, -0.125 * (i % 8)), entry(" other", -3.5)]
    return {"content": [{**top[0], "top_logprobs": top}], "refusal": None}


def _varied(order: Order, choice: int, attempt: int) -> list[dict[str, Any]]:
    """The deltas of one choice in this try."""
    random = Random(f"{attempt}.{choice}")
    deltas: list[dict[str, Any]] = []
    fields = {
        "reasoning_content": [f" think{i}" for i in range(_thoughts(order))],
        "refusal" if order.refusal else "content": contents(order),
    }
    for field, words in fields.items():
        if order.sampled:
            words = [sampled_word(attempt, place, choice) for place in range(len(words))]
        else:
            words = [word + mark(choice) for word in words]
        deltas += ({field: piece} for piece in cut("".join(words), len(words), random))
    return deltas + _tool_deltas(order, random)


def _thoughts(order: Order) -> int:
    return (5 if order.reasoning is True else order.reasoning) or 0


def _choice_chunks(order: Order, choices: int, attempt: int) -> list[list[dict[str, Any]]]:
    """For each step the choices that its chunks carry, one chunk for each."""
    if order.varied or order.sampled:
        said = [_varied(order, choice, attempt) for choice in range(choices)]
        return [
            [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}]
            for choice, delta in interleaved(said, Random(attempt))
        ]
    reasoning = _thoughts(order)
    steps: list[list[dict[str, Any]]] = []

    def step(deltas: list[dict[str, Any]], logprobs: dict[str, Any] | None) -> None:
        steps.append(
            [
                {"index": c, "delta": delta, "logprobs": logprobs, "finish_reason": None}
                for c, delta in enumerate(deltas)
            ]
        )

    for i in range(reasoning):
        step([{"reasoning_content": f" think{i}{mark(c)}"} for c in range(choices)], None)
    field = "refusal" if order.refusal else "content"
    for i, piece in enumerate(contents(order) if order.deltas is None else []):
        deltas = [{field: piece + mark(c)} for c in range(choices)]
        step(deltas, _logprobs(piece, i) if order.logprobs else None)
    for delta in order.deltas or []:
        step([delta], None)
    for delta in _tool_deltas(order):
        step([delta] * choices, None)
    return steps


def _usage(order: Order, steps: int, choices: int) -> dict[str, Any]:
    if order.usage is not None:
        return order.usage
    reasoning = _thoughts(order) * choices
    if order.varied or order.sampled:  # however it is cut
        steps = reasoning // choices + len(contents(order)) + len(_tool_calls(order))
    tokens = steps * choices
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _steps(
    order: Order, model: str, n: int, include_usage: bool, attempt: int
) -> tuple[list[list[bytes]], Literal["complete", "close", "reset", "stall"]]:
    """The events of each step, and how the stream ends."""
    if order.raw is not None or order.raw_base64 is not None:
        body = base64.b64decode(order.raw_base64) if order.raw_base64 else (order.raw or "").encode()
        return _cut(order, [[body]], "complete")
    if order.raw_chunks is not None:
        steps = [[_event(order, dump(chunk))] for chunk in order.raw_chunks]
        if not order.no_done:
            steps.append([_event(order, b"[DONE]")])
        return _cut(order, steps, "complete")

    choices = max(order.choices, n)
    base = {"id": ID, "object": "chat.completion.chunk", "created": CREATED, "model": model}
    base |= {"system_fingerprint": "fp_fake"} | order.extra
    null = {"usage": None} if order.usage_null else {}

    def event(choice: dict[str, Any]) -> bytes:
        return _event(order, dump({**base, "choices": [choice], **null}))

    said = _choice_chunks(order, choices, attempt)
    steps = [[event(choice) for choice in step] for step in said]
    role = [
        event(
            {
                "index": c,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        )
        for c in range(choices)
    ]
    if order.error_event_after is not None:
        steps = steps[: order.error_event_after]
        steps.append([_event(order, dump({"error": _error(order)}))])
    elif order.stall_after is not None:
        steps = steps[: order.stall_after]
    else:
        if order.garbage:
            steps.insert(len(steps) // 2, [_event(order, b'{"id": "chatcmpl-fake", "choi')])
        steps.append(_closing(order, base, null, len(said), choices, include_usage))
    steps = [role + (steps[0] if steps else []), *steps[1:]]
    return _cut(order, steps, "stall" if order.stall_after is not None else "complete")


def _closing(
    order: Order, base: dict[str, Any], null: dict[str, Any], said: int, choices: int, include_usage: bool
) -> list[bytes]:
    events: list[bytes] = []
    usage = _usage(order, said, choices)
    if not order.no_finish:
        reason = order.finish or ("tool_calls" if _tool_calls(order) else "stop")
        for c in range(choices):
            choice = {"index": c, "delta": {}, "logprobs": None, "finish_reason": reason}
            with_usage = {"usage": usage} if order.usage_in_finish and c == choices - 1 else null
            events.append(_event(order, dump({**base, "choices": [choice], **with_usage})))
    if include_usage and not order.no_usage and not order.usage_in_finish:
        events.append(_event(order, dump({**base, "choices": [], "usage": usage})))
    if not order.no_done:
        events.append(_event(order, b"[DONE]"))
    return events


def _event(order: Order, data: bytes) -> bytes:
    if order.multiline and data.startswith(b"{"):
        data = b"{\ndata: " + data[1:]
    event = b"data: " + data + b"\n\n"
    if order.comments:
        event = b": comment\n\n" + event
    return event.replace(b"\n", b"\r\n") if order.crlf else event


def _cut(
    order: Order, steps: list[list[bytes]], ending: Literal["complete", "stall"]
) -> tuple[list[list[bytes]], Literal["complete", "close", "reset", "stall"]]:
    """Apply ``cut_at_byte`` and ``drip_bytes``, which count bytes rather than events."""
    result: Literal["complete", "close", "reset", "stall"] = ending
    if order.cut_at_byte is not None:
        left = order.cut_at_byte
        kept: list[list[bytes]] = []
        for step in steps:
            part: list[bytes] = []
            for event in step:
                if left > 0:
                    part.append(event[:left])
                    left -= len(event)
            if part:
                kept.append(part)
        steps = kept
        if left <= 0:
            result = "complete" if order.cut == "end" else order.cut
    if order.drip_bytes:
        body = b"".join(event for step in steps for event in step)
        steps = [[body[i : i + order.drip_bytes]] for i in range(0, len(body), order.drip_bytes)]
    return steps, result


def _whole(order: Order, model: str, n: int, attempt: int) -> dict[str, Any]:
    """The same answer to a request without ``stream``."""
    choices = max(order.choices, n)
    said = _choice_chunks(order, choices, attempt)
    answers: list[dict[str, Any]] = []
    for c in range(choices):
        message: dict[str, Any] = {"role": "assistant", "content": None}
        calls: dict[int, dict[str, Any]] = {}
        for step in said:
            delta = next((part["delta"] for part in step if part["index"] == c), {})
            for field in ("content", "refusal", "reasoning_content"):
                if field in delta:
                    message[field] = (message.get(field) or "") + delta[field]
            for call in delta.get("tool_calls", ()):
                known = calls.setdefault(call["index"], {"type": "function", "function": {"arguments": ""}})
                known["id"] = call.get("id", known.get("id"))
                function = known["function"]
                function["name"] = call["function"].get("name", function.get("name"))
                function["arguments"] += call["function"]["arguments"]
        if calls:
            message["tool_calls"] = list(calls.values())
        reason = order.finish or ("tool_calls" if calls else "stop")
        answers.append({"index": c, "message": message, "logprobs": None, "finish_reason": reason})
    top = {"id": ID, "object": "chat.completion", "created": CREATED, "model": model, **order.extra}
    return {**top, "choices": answers, "usage": _usage(order, len(said), choices)}
