"""A completion as its owner is shown it: over HTTP, and in the output of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumers.lookup import Completion
from schemas.errors import GenerationFailed
from schemas.records import Usage
from stores.rows import UsageRow


def status_body(completion: Completion) -> dict[str, Any]:
    """A completion without its answer: while it runs, and where there is none."""
    body: dict[str, Any] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": completion.model,
        "resolved_model": completion.resolved_model,
        "resolved_provider": completion.provider,
        "status": completion.state.public,
        "choices": [],
        "metadata": completion.metadata,
    }
    if completion.failure is not None:
        body |= GenerationFailed(completion.failure).body()
    return body


def whole_body(
    completion: Completion, answer: Mapping[str, Any], usage: UsageRow | None = None
) -> dict[str, Any]:
    """One that has ended, with what there is of its ``answer``; ``usage`` is for a provider that sent none."""
    status = status_body(completion)
    del status["choices"]
    merged: dict[str, Any] = {"choices": [], **answer, **status}
    if "usage" not in merged and usage is not None:
        merged["usage"] = _counted(usage.tokens)
    return merged


def _counted(tokens: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.total_tokens,
        "estimated": tokens.estimated,
    }
