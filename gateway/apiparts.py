"""Parts of the API's description that its paths have in common: headers, parameters, answers."""

from __future__ import annotations

from typing import Any

JSON = "application/json"
EVENTS = "text/event-stream"


def header(name: str, text: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": kind}}


def query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


BEHALF = header("X-On-Behalf-Of", "The end user. A request with it sees only that user's completions.")
LAST = header(
    "x-last-chunk-index",
    "Resume: the index of the last chunk that you have, or -1 for all. Never starts new work.",
    "integer",
)
DISCONNECT = header(
    "x-on-disconnect",
    "`cancel`: the completion ends when this connection does. `continue`: it goes on, and can be resumed. Where it is "
    "not sent, the key's setting counts for a POST.",
)
POST_HEADERS = [
    BEHALF,
    LAST,
    header("Last-Event-ID", "The same as x-last-chunk-index, as an EventSource sends it.", "integer"),
    header("x-completion-id", "Which completion to resume."),
    header("Idempotency-Key", "A retry with the same key within 24 hours gets the same completion."),
    header(
        "Cache-Control",
        "As in HTTP: `no-cache` asks afresh, `no-store`, `max-age=S`; `only-if-cached` is 504 on a miss. Without it, "
        "`temperature: 0` and x-sample use the cache.",
    ),
    DISCONNECT,
    header("x-sample", "Which of several samples of the same request this is.", "integer"),
]
ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "chatcmpl-…",
}

ERRORS = {
    "400": "The request is not right; `param` names the field.",
    "401": "The key is missing, malformed, unknown or revoked.",
    "404": "No such thing, or somebody else's.",
    "503": "Not accepted, nothing was kept; `Retry-After` says when to try again.",
}


def answers_of(
    *, content: str = JSON, schema: dict[str, Any] | None = None, status: str = "200", **more: str
) -> Any:
    answers: dict[str, Any] = {
        status: {"description": "As asked.", "content": {content: {"schema": schema or {"type": "object"}}}}
    }
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    for code, text in {**ERRORS, **{k.removeprefix("s"): v for k, v in more.items()}}.items():
        answers[code] = {"description": text} | ({} if code.startswith("2") else {"content": error})
    return answers


def operation(summary: str, parameters: list[Any], answers: Any, body: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": answers}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    return found


def plain(**more: str) -> dict[str, Any]:
    return {code: {"description": text} for code, text in {"200": "Yes.", **more}.items()}
