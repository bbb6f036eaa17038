"""The API's description: an OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from schemas.batchrequest import BatchRequest, EstimateRequest, RetryRequest
from schemas.files import LONGEST_LIFE, SHORTEST_LIFE, UPLOADABLE, Purpose
from schemas.request import ChatCompletionRequest
from schemas.states import PUBLIC_STATUSES

_JSON = "application/json"
_EVENTS = "text/event-stream"


def _header(name: str, text: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": kind}}


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


_BEHALF = _header("X-On-Behalf-Of", "The end user. A request with it sees only that user's completions.")
_LAST = _header(
    "x-last-chunk-index",
    "Resume: the index of the last chunk that you have, or -1 for all. Never starts new work.",
    "integer",
)
_DISCONNECT = _header(
    "x-on-disconnect",
    "`cancel`: the completion ends when this connection does. `continue`: it goes on, and can be resumed. Where it is "
    "not sent, the key's setting counts for a POST.",
)
_POST_HEADERS = [
    _BEHALF,
    _LAST,
    _header("Last-Event-ID", "The same as x-last-chunk-index, as an EventSource sends it.", "integer"),
    _header("x-completion-id", "Which completion to resume."),
    _header("Idempotency-Key", "A retry with the same key within 24 hours gets the same completion."),
    _header(
        "Cache-Control",
        "As in HTTP: `no-cache` asks afresh, `no-store`, `max-age=S`; `only-if-cached` is 504 on a miss. Without it, "
        "`temperature: 0` and x-sample use the cache.",
    ),
    _DISCONNECT,
    _header("x-sample", "Which of several samples of the same request this is.", "integer"),
]
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "chatcmpl-…",
}

_ERRORS = {
    "400": "The request is not right; `param` names the field.",
    "401": "The key is missing, malformed, unknown or revoked.",
    "404": "No such thing, or somebody else's.",
    "503": "Not accepted, nothing was kept; `Retry-After` says when to try again.",
}


def _answers(
    *, content: str = _JSON, schema: dict[str, Any] | None = None, status: str = "200", **more: str
) -> Any:
    answers: dict[str, Any] = {
        status: {"description": "As asked.", "content": {content: {"schema": schema or {"type": "object"}}}}
    }
    error = {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    for code, text in {**_ERRORS, **{k.removeprefix("s"): v for k, v in more.items()}}.items():
        answers[code] = {"description": text} | ({} if code.startswith("2") else {"content": error})
    return answers


def _operation(summary: str, parameters: list[Any], answers: Any, body: Any = None) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": answers}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    return operation


def _paths() -> dict[str, Any]:
    request = {"$ref": "#/components/schemas/ChatCompletionRequest"}
    chat = "/v1/chat/completions"
    sse = {"type": "string", "description": "Server-sent events: id, event and data of each chunk."}
    return {
        f"{chat}/stream": {
            "post": _operation(
                "Stream a completion: SSE with id, event and data; resumable by index",
                _POST_HEADERS,
                _answers(
                    content=_EVENTS, schema=sse, s409="The index or the request fits no single generation."
                ),
                request,
            )
        },
        chat: {
            "post": _operation(
                "Ask for a completion, as OpenAI's API has it; `Prefer: respond-async` answers 202 at once",
                [
                    *_POST_HEADERS,
                    _header("Prefer", "`respond-async`: 202 and the completion with its status."),
                ],
                _answers(
                    s202="Accepted; follow it by its id.", s422="The Idempotency-Key was used otherwise."
                ),
                request,
            ),
            "get": _operation(
                "List stored completions",
                [
                    _BEHALF,
                    _query("after", "The id before this page's first.", {"type": "string"}),
                    _query("limit", "", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
                    _query("order", "By time of creation.", {"enum": ["asc", "desc"], "default": "asc"}),
                    _query("model", "As asked.", {"type": "string"}),
                    _query("status", "", {"enum": list(PUBLIC_STATUSES)}),
                    {
                        **_query("metadata", "`metadata[key]=value`", {"type": "object"}),
                        "style": "deepObject",
                        "explode": True,
                    },
                ],
                _answers(),
            ),
        },
        f"{chat}/{{id}}": {
            "get": _operation("Read a completion; while it runs, its status", [_ID, _BEHALF], _answers()),
            "post": _operation(
                "Replace the metadata",
                [_ID, _BEHALF],
                _answers(),
                {"type": "object", "required": ["metadata"], "properties": {"metadata": {"type": "object"}}},
            ),
            "delete": _operation(
                "Delete the text; the usage record stays",
                [_ID, _BEHALF],
                _answers(s409="It still runs: cancel it first."),
            ),
        },
        f"{chat}/{{id}}/stream": {
            "get": _operation(
                "Follow a completion from any index, live or finished",
                [
                    _ID,
                    _query(
                        "after",
                        "The index of the last chunk that you have.",
                        {"type": "integer", "minimum": -1},
                    ),
                    _header("Last-Event-ID", "Wins over `after`.", "integer"),
                    _header("x-on-disconnect", "`cancel`: the completion ends when this connection does."),
                    _query("token", "A stream token, in place of a key.", {"type": "string"}),
                ],
                _answers(
                    content=_EVENTS,
                    schema=sse,
                    s204="Past the end of a finished log; stops an EventSource.",
                    s409="Past the tail of an unfinished log.",
                ),
            )
        },
        f"{chat}/{{id}}/cancel": {"post": _operation("Cancel", [_ID, _BEHALF], _answers())},
        f"{chat}/{{id}}/token": {
            "post": _operation(
                "A read-only token for this one stream, for 15 minutes", [_ID, _BEHALF], _answers()
            )
        },
        "/v1/cache": {
            "get": _operation("What is in the tenant's cache, and what it has saved", [], _answers()),
            "delete": _operation(
                "Drop cached results; stored completions stay",
                [
                    _query("model", "Only this model's, as asked or resolved.", {"type": "string"}),
                    _query(
                        "older_than", "Only what is older, in seconds.", {"type": "integer", "minimum": 0}
                    ),
                ],
                _answers(),
            ),
        },
        **_file_paths(),
        "/v1/models": {"get": _operation("The models and aliases that can be asked for", [], _answers())},
        "/v1/models/{model}": {
            "get": _operation(
                "One model",
                [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                _answers(),
            )
        },
        **_batch_paths(),
        **_usage_paths(),
        "/healthz": {"get": {**_operation("The process answers", [], _plain()), "security": []}},
        "/readyz": {
            "get": {
                **_operation(
                    "Redis and the database answer; whether new work is let in",
                    [],
                    _plain(**{"503": "One of them doesn't."}),
                ),
                "security": [],
            }
        },
        "/metrics": {
            "get": {
                **_operation("The pipeline's state, in Prometheus's text format", [], _plain()),
                "security": [],
            }
        },
    }


def _file_paths() -> dict[str, Any]:
    id = {**_ID, "description": "file-…"}
    form = {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"enum": [*UPLOADABLE]},
            "expires_after[anchor]": {"enum": ["created_at"]},
            "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST_LIFE, "maximum": LONGEST_LIFE},
        },
        "additionalProperties": False,
    }
    upload = _operation("Upload a file", [_BEHALF], _answers(s413="Larger than TAILRACE_MAX_FILE_BYTES."))
    upload["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    listing = [
        _BEHALF,
        _query("purpose", "", {"enum": [*Purpose]}),
        _query("limit", "", {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 10_000}),
        _query("order", "By time of creation.", {"enum": ["asc", "desc"], "default": "desc"}),
        _query("after", "The id before this page's first.", {"type": "string"}),
    ]
    raw = {"type": "string", "format": "binary"}
    return {
        "/v1/files": {"post": upload, "get": _operation("List files", listing, _answers())},
        "/v1/files/{id}": {
            "get": _operation("One file", [id, _BEHALF], _answers()),
            "delete": _operation(
                "Delete a file", [id, _BEHALF], _answers(s409="A batch that has not ended reads it.")
            ),
        },
        "/v1/files/{id}/content": {
            "get": _operation(
                "The bytes of a file",
                [id, _BEHALF],
                _answers(content="application/octet-stream", schema=raw),
            )
        },
    }


def _batch_paths() -> dict[str, Any]:
    id = {**_ID, "description": "batch_…"}
    key = _header("Idempotency-Key", "A retry with the same key within 24 hours gets the same batch.")
    refused: Any = {
        "s404": "No such file or batch, or somebody else's.",
        "s422": "The Idempotency-Key was used otherwise.",
    }
    listing = [
        _BEHALF,
        _query("limit", "", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
        _query("after", "The id before this page's first.", {"type": "string"}),
    ]

    kind = _query("kind", "Which file's lines.", {"enum": ["output", "error", "all"], "default": "all"})
    after = _query("after", "The number of a row, from 0: those after it.", {"type": "integer"})
    jsonl = _answers(content="application/jsonl", schema={"type": "string"})

    def body(name: str) -> dict[str, Any]:
        return {"$ref": f"#/components/schemas/{name}"}

    return {
        "/v1/batches": {
            "post": _operation(
                "Make a batch of an uploaded file; a worker validates it",
                [_BEHALF, key],
                _answers(**refused),
                body("BatchRequest"),
            ),
            "get": _operation("List batches, newest first", listing, _answers()),
        },
        "/v1/batches/estimate": {
            "post": _operation(
                "What a batch of an uploaded file would come to: rows, tokens and cost; nothing is sent",
                [_BEHALF],
                _answers(),
                body("EstimateRequest"),
            )
        },
        "/v1/batches/{id}": {
            "get": _operation("A batch: its status, counts, usage and cost so far", [id, _BEHALF], _answers())
        },
        "/v1/batches/{id}/results": {
            "get": _operation("Rows that have ended", [id, _BEHALF, kind, after], jsonl)
        },
        "/v1/batches/{id}/failures": {
            "get": _operation("Why rows failed, in groups", [id, _BEHALF], _answers())
        },
        "/v1/batches/{id}/cancel": {
            "post": _operation(
                "Cancel: nothing more is sent, what was answered is kept",
                [id, _BEHALF],
                _answers(s409="It has ended, or is about to."),
            )
        },
        "/v1/batches/{id}/retry": {
            "post": _operation(
                "A new batch of the rows of an ended one that have no answer",
                [id, _BEHALF, key],
                _answers(s409="It has not ended, or no row of it failed so.", **refused),
                body("RetryRequest"),
            )
        },
    }


def _usage_paths() -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}}
    answers = _answers(s403="Another tenant's records, and the key is no admin's.")

    def parameters(*groups: str, widths: Sequence[str] = (), batch: bool = False) -> list[Any]:
        found = [
            {
                **_query("start_time", "Seconds since the epoch, inclusive.", {"type": "integer"}),
                "required": True,
            },
            _query("end_time", "Seconds since the epoch, exclusive; now.", {"type": "integer"}),
            _query("group_by", "", {"type": "array", "items": {"enum": list(groups)}}),
            *(
                _query(name, "Any of these; `name=a&name=b` or `name[]=a`.", texts)
                for name in ("models", "user_ids", "external_user_ids", "api_key_ids", "org_ids")
            ),
            _query("all_orgs", "An admin key sees all tenants; `false`: its own.", {"type": "boolean"}),
        ]
        if batch:
            found.append(_query("batch", "Those of batches alone, or those of none.", {"type": "boolean"}))
        if widths:
            most = "1440, 168 or 31" if len(widths) > 1 else "180"
            found += [
                _query(
                    "bucket_width",
                    "Buckets begin at whole ones in UTC.",
                    {"enum": [*widths], "default": "1d"},
                ),
                _query("limit", f"Buckets of a page; at most {most}.", {"type": "integer", "minimum": 1}),
                _query("page", "`next_page` of the page before.", {"type": "string"}),
            ]
        return [*found, _BEHALF]

    usage = _operation(
        "Tokens and requests, by bucket of time",
        parameters(
            *("model", "user_id", "api_key_id", "external_user_id", "org_id", "batch", "project_id"),
            widths=("1m", "1h", "1d"),
            batch=True,
        ),
        answers,
    )
    return {
        "/v1/usage/completions": {"get": usage},
        "/v1/organization/usage/completions": {"get": usage},
        "/v1/usage/costs": {
            "get": _operation(
                "What it cost; nano values are strings, 10⁹ to the dollar, and null where nobody knows",
                parameters("model", "api_key_id", "team_id", "external_user_id", "org_id"),
                answers,
            )
        },
        "/v1/organization/costs": {
            "get": _operation(
                "What it cost by day; a line item is a model",
                parameters(
                    *("line_item", "project_id", "user_id", "api_key_id", "external_user_id", "org_id"),
                    widths=("1d",),
                ),
                answers,
            )
        },
        "/v1/usage/summary": {
            "get": _operation(
                "Requests, tokens, cost and what the cache saved",
                parameters("model", "api_key_id", "external_user_id", "org_id", "day", batch=True),
                answers,
            )
        },
    }


def _plain(**more: str) -> dict[str, Any]:
    return {code: {"description": text} for code, text in {"200": "Yes.", **more}.items()}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document. Every path under ``/v1`` is also served under ``/api/v1/llm``."""
    schema = ChatCompletionRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    components = schema.pop("$defs", {})
    components["ChatCompletionRequest"] = schema
    for model in (BatchRequest, RetryRequest, EstimateRequest):
        own = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= own.pop("$defs", {})
        components[model.__name__] = own
    components["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    }
    try:
        number = version("tailrace")
    except PackageNotFoundError:
        number = "0"
    paths = _paths()
    paths |= {
        path.replace("/v1/", "/api/v1/llm/", 1): item
        for path, item in paths.items()
        if path.startswith("/v1/")
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tailrace",
            "version": number,
            "description": "Chat completions that are queued, streamed by workers, and readable from any index.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
