"""The description of files and batches."""

from __future__ import annotations

from typing import Any

from gateway.apiparts import BEHALF, ID, answers_of, header, operation, query
from schemas.files import LONGEST_LIFE, SHORTEST_LIFE, UPLOADABLE, Purpose


def file_paths() -> dict[str, Any]:
    id = {**ID, "description": "file-…"}
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
    upload = operation("Upload a file", [BEHALF], answers_of(s413="Larger than TAILRACE_MAX_FILE_BYTES."))
    upload["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    listing = [
        BEHALF,
        query("purpose", "", {"enum": [*Purpose]}),
        query("limit", "", {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 10_000}),
        query("order", "By time of creation.", {"enum": ["asc", "desc"], "default": "desc"}),
        query("after", "The id before this page's first.", {"type": "string"}),
    ]
    raw = {"type": "string", "format": "binary"}
    return {
        "/v1/files": {"post": upload, "get": operation("List files", listing, answers_of())},
        "/v1/files/{id}": {
            "get": operation("One file", [id, BEHALF], answers_of()),
            "delete": operation(
                "Delete a file", [id, BEHALF], answers_of(s409="A batch that has not ended reads it.")
            ),
        },
        "/v1/files/{id}/content": {
            "get": operation(
                "The bytes of a file",
                [id, BEHALF],
                answers_of(content="application/octet-stream", schema=raw),
            )
        },
    }


def batch_paths() -> dict[str, Any]:
    id = {**ID, "description": "batch_…"}
    key = header("Idempotency-Key", "A retry with the same key within 24 hours gets the same batch.")
    refused: dict[str, Any] = {
        "s404": "No such file or batch, or somebody else's.",
        "s422": "The Idempotency-Key was used otherwise.",
    }
    listing = [
        BEHALF,
        query("limit", "", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
        query("after", "The id before this page's first.", {"type": "string"}),
    ]

    kind = query("kind", "Which file's lines.", {"enum": ["output", "error", "all"], "default": "all"})
    after = query("after", "The number of a row, from 0: those after it.", {"type": "integer"})
    jsonl = answers_of(content="application/jsonl", schema={"type": "string"})

    def body(name: str) -> dict[str, Any]:
        return {"$ref": f"#/components/schemas/{name}"}

    return {
        "/v1/batches": {
            "post": operation(
                "Make a batch of an uploaded file; a worker validates it",
                [BEHALF, key],
                answers_of(**refused),
                body("BatchRequest"),
            ),
            "get": operation("List batches, newest first", listing, answers_of()),
        },
        "/v1/batches/estimate": {
            "post": operation(
                "What a batch of an uploaded file would come to: rows, tokens and cost; nothing is sent",
                [BEHALF],
                answers_of(),
                body("EstimateRequest"),
            )
        },
        "/v1/batches/{id}": {
            "get": operation("A batch: its status, counts, usage and cost so far", [id, BEHALF], answers_of())
        },
        "/v1/batches/{id}/results": {
            "get": operation("Rows that have ended", [id, BEHALF, kind, after], jsonl)
        },
        "/v1/batches/{id}/failures": {
            "get": operation("Why rows failed, in groups", [id, BEHALF], answers_of())
        },
        "/v1/batches/{id}/cancel": {
            "post": operation(
                "Cancel: nothing more is sent, what was answered is kept",
                [id, BEHALF],
                answers_of(s409="It has ended, or is about to."),
            )
        },
        "/v1/batches/{id}/retry": {
            "post": operation(
                "A new batch of the rows of an ended one that have no answer",
                [id, BEHALF, key],
                answers_of(s409="It has not ended, or no row of it failed so.", **refused),
                body("RetryRequest"),
            )
        },
    }
