"""What became of a request: a line of a batch's output as a sample without scores.

A line is OpenAI's, ``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``, with the
completion's usage ``record`` beside it, where the server is new enough to write one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec

from tailrace.evaluation.shapes import Arm, Failure, Item, Outcome, Record, Sample
from tailrace.evaluation.thoughts import split_thought

_SHARED = frozenset({"hit", "join"})


def sample_of(
    arm: Arm, item: Item, sample: int, line: dict[str, Any] | None, is_refusal: Callable[[str], bool]
) -> Sample:
    """``line`` is None where there is none yet. ``is_refusal`` says whether a text declines to answer.

    A provider's own refusal (``refusal``, or ``content_filter``) goes before a truncation, and that before a text that
    declines.
    """
    cell = Sample(
        arm=arm.key,
        model=arm.model.model,
        prompt=arm.prompt.name,
        item=item.id,
        sample=sample,
        category=item.category,
        outcome=Outcome.MISSING,
    )
    if line is None:
        return cell
    response = _object(line.get("response"))
    body = _object(response.get("body"))
    cell = msgspec.structs.replace(cell, completion_id=_id(line, body), record=_record(line, body))
    failure = _failure(line, response, body)
    if failure is not None:
        return msgspec.structs.replace(cell, outcome=Outcome.ERROR, error=failure)
    choice = _object(_first(body.get("choices")))
    message = _object(choice.get("message"))
    finish = choice.get("finish_reason")
    said = _said(message)
    text, reasoning = split_thought(said.text)
    declined = bool(said.refusal) or finish == "content_filter"
    if declined or (finish != "length" and text.strip() and is_refusal(text)):
        outcome = Outcome.REFUSED
    else:
        outcome = Outcome.TRUNCATED if finish == "length" else Outcome.ANSWERED
    return msgspec.structs.replace(
        cell,
        outcome=outcome,
        text=text or said.refusal,
        reasoning="\n\n".join(part for part in (said.reasoning, reasoning) if part) or None,
        finish_reason=finish if isinstance(finish, str) else None,
    )


def record_of(line: dict[str, Any]) -> Record:
    """What a line's completion used."""
    return _record(line, _object(_object(line.get("response")).get("body")))


def answer_of(line: dict[str, Any]) -> str | Failure:
    """The text of a line's answer, without its reasoning; or why there is none."""
    response = _object(line.get("response"))
    body = _object(response.get("body"))
    failure = _failure(line, response, body)
    if failure is not None:
        return failure
    return split_thought(_said(_object(_object(_first(body.get("choices"))).get("message"))).text)[0]


class _Said(msgspec.Struct):
    text: str = ""
    reasoning: str = ""
    refusal: str = ""


def _said(message: dict[str, Any]) -> _Said:
    """``content`` as one text, and what stands beside it. Where there are only tool calls, the text is JSON of them:
    ``[{"name", "arguments"}]`` without their ids, which are others each time."""
    said = _Said(refusal=_text(message.get("refusal")))
    said.reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    content = message.get("content")
    if isinstance(content, list):
        for part in map(_object, cast("list[Any]", content)):
            match part.get("type"):
                case "refusal":
                    said.refusal += _text(part.get("refusal"))
                case "thinking" | "reasoning":
                    said.reasoning += _parts(
                        part.get("thinking") or part.get("reasoning") or part.get("text")
                    )
                case _:
                    said.text += _text(part.get("text"))
    else:
        said.text = _text(content)
    calls = message.get("tool_calls")
    if not said.text and isinstance(calls, list) and calls:
        said.text = msgspec.json.encode([_call(_object(call)) for call in cast("list[Any]", calls)]).decode()
    return said


def _parts(value: Any) -> str:
    if isinstance(value, list):
        return "".join(_text(_object(part).get("text")) for part in cast("list[Any]", value))
    return _text(value)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = _object(call.get("function"))
    arguments = function.get("arguments")
    try:
        arguments = msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
    except (msgspec.MsgspecError, RecursionError):
        pass  # as the model wrote them
    return {"name": function.get("name"), "arguments": arguments}


def _failure(line: dict[str, Any], response: dict[str, Any], body: dict[str, Any]) -> Failure | None:
    error = _object(line.get("error"))
    status = response.get("status_code")
    if not error and status == 200 and _object(_first(body.get("choices"))):
        return None
    error = error or _object(body.get("error"))
    code = error.get("code") or error.get("type")
    if code is None:
        code = "invalid_answer" if status == 200 else f"http_{status}" if status else "no_answer"
    told = {200: "the answer has no choices", None: "the row has neither an answer nor an error"}
    message = error.get("message") or told.get(status, f"the server answered {status}")
    return Failure(str(code), str(message))


def _id(line: dict[str, Any], body: dict[str, Any]) -> str | None:
    """A failed row names its completion by the line's own id."""
    found = body.get("id")
    if isinstance(found, str) and found:
        return found
    own = line.get("id")
    if isinstance(own, str) and own.startswith("batch_req_"):
        return f"chatcmpl-{own.removeprefix('batch_req_')}"
    return None


def _record(line: dict[str, Any], body: dict[str, Any]) -> Record:
    """The line's own record; tokens of the answer's ``usage`` where there is none."""
    record = _object(line.get("record"))
    if not record:
        usage = _object(body.get("usage"))
        return Record(
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            reasoning_tokens=_count(_object(usage.get("completion_tokens_details")).get("reasoning_tokens")),
            cached_tokens=_count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
        )
    cache = _text(record.get("cache")) or "miss"
    cost = _whole(record.get("cost_nano"))
    return Record(
        cache=cache,
        cost_nano=0 if line.get("run") is not None else cost,  # of an earlier run, which paid for it
        answer_cost_nano=_whole(record.get("saved_nano")) if cache in _SHARED else cost,
        prompt_tokens=_count(record.get("prompt_tokens")),
        completion_tokens=_count(record.get("completion_tokens")),
        reasoning_tokens=_count(record.get("reasoning_tokens")),
        cached_tokens=_count(record.get("cached_tokens")),
        attempts=_count(record.get("attempts")),
        queue_ms=_whole(record.get("queue_ms")),
        first_chunk_ms=_whole(record.get("first_chunk_ms")),
        duration_ms=_whole(record.get("duration_ms")),
    )


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _first(value: Any) -> Any:
    return cast("list[Any]", value)[0] if isinstance(value, list) and value else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return _whole(value) or 0


def _whole(value: Any) -> int | None:
    """Numbers, and the strings that money is in."""
    try:
        return None if value is None or isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
