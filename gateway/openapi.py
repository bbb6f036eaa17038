"""The API's description: an OpenAPI 3.1 document."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gateway.apibatches import batch_paths, file_paths
from gateway.apiparts import BEHALF, EVENTS, ID, POST_HEADERS, answers_of, header, operation, plain, query
from gateway.apiusage import usage_paths
from schemas.batchrequest import BatchRequest, EstimateRequest, RetryRequest
from schemas.request import ChatCompletionRequest
from schemas.states import PUBLIC_STATUSES


def _paths() -> dict[str, Any]:
    request = {"$ref": "#/components/schemas/ChatCompletionRequest"}
    chat = "/v1/chat/completions"
    sse = {"type": "string", "description": "Server-sent events: id, event and data of each chunk."}
    return {
        f"{chat}/stream": {
            "post": operation(
                "Stream a completion: SSE with id, event and data; resumable by index",
                POST_HEADERS,
                answers_of(
                    content=EVENTS, schema=sse, s409="The index or the request fits no single generation."
                ),
                request,
            )
        },
        chat: {
            "post": operation(
                "Ask for a completion, as OpenAI's API has it; `Prefer: respond-async` answers 202 at once",
                [
                    *POST_HEADERS,
                    header("Prefer", "`respond-async`: 202 and the completion with its status."),
                ],
                answers_of(
                    s202="Accepted; follow it by its id.", s422="The Idempotency-Key was used otherwise."
                ),
                request,
            ),
            "get": operation(
                "List stored completions",
                [
                    BEHALF,
                    query("after", "The id before this page's first.", {"type": "string"}),
                    query("limit", "", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
                    query("order", "By time of creation.", {"enum": ["asc", "desc"], "default": "asc"}),
                    query("model", "As asked.", {"type": "string"}),
                    query("status", "", {"enum": list(PUBLIC_STATUSES)}),
                    {
                        **query("metadata", "`metadata[key]=value`", {"type": "object"}),
                        "style": "deepObject",
                        "explode": True,
                    },
                ],
                answers_of(),
            ),
        },
        f"{chat}/{{id}}": {
            "get": operation("Read a completion; while it runs, its status", [ID, BEHALF], answers_of()),
            "post": operation(
                "Replace the metadata",
                [ID, BEHALF],
                answers_of(),
                {"type": "object", "required": ["metadata"], "properties": {"metadata": {"type": "object"}}},
            ),
            "delete": operation(
                "Delete the text; the usage record stays",
                [ID, BEHALF],
                answers_of(s409="It still runs: cancel it first."),
            ),
        },
        f"{chat}/{{id}}/stream": {
            "get": operation(
                "Follow a completion from any index, live or finished",
                [
                    ID,
                    query(
                        "after",
                        "The index of the last chunk that you have.",
                        {"type": "integer", "minimum": -1},
                    ),
                    header("Last-Event-ID", "Wins over `after`.", "integer"),
                    header("x-on-disconnect", "`cancel`: the completion ends when this connection does."),
                    query("token", "A stream token, in place of a key.", {"type": "string"}),
                ],
                answers_of(
                    content=EVENTS,
                    schema=sse,
                    s204="Past the end of a finished log; stops an EventSource.",
                    s409="Past the tail of an unfinished log.",
                ),
            )
        },
        f"{chat}/{{id}}/cancel": {"post": operation("Cancel", [ID, BEHALF], answers_of())},
        f"{chat}/{{id}}/token": {
            "post": operation(
                "A read-only token for this one stream, for 15 minutes", [ID, BEHALF], answers_of()
            )
        },
        "/v1/cache": {
            "get": operation("What is in the tenant's cache, and what it has saved", [], answers_of()),
            "delete": operation(
                "Drop cached results; stored completions stay",
                [
                    query("model", "Only this model's, as asked or resolved.", {"type": "string"}),
                    query("older_than", "Only what is older, in seconds.", {"type": "integer", "minimum": 0}),
                ],
                answers_of(),
            ),
        },
        **file_paths(),
        "/v1/models": {"get": operation("The models and aliases that can be asked for", [], answers_of())},
        "/v1/models/{model}": {
            "get": operation(
                "One model",
                [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                answers_of(),
            )
        },
        **batch_paths(),
        **usage_paths(),
        "/healthz": {"get": {**operation("The process answers", [], plain()), "security": []}},
        "/readyz": {
            "get": {
                **operation(
                    "Redis and the database answer; whether new work is let in",
                    [],
                    plain(**{"503": "One of them doesn't."}),
                ),
                "security": [],
            }
        },
        "/metrics": {
            "get": {
                **operation("The pipeline's state, in Prometheus's text format", [], plain()),
                "security": [],
            }
        },
    }


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
