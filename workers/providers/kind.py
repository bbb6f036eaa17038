"""What a kind of provider is to the rest: a class with one streaming method, in a file of its own beside this one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from schemas.codec import BadChunk, loads
from schemas.errors import ProviderError
from stores.rows import storable

#: The data of the event that says all was sent.
DONE = b"[DONE]"
#: Bytes of an error answer that are read, and characters of its code, type and param that are kept.
ERROR_BODY, ERROR_WORD = 64 * 1024, 200


@dataclass(frozen=True, slots=True)
class Call:
    """What one attempt asks. ``params`` is what ``ChatCompletionRequest.params()`` gives; ``end_user`` is
    X-On-Behalf-Of."""

    params: dict[str, Any]
    model: str
    end_user: str | None = None


class Backend(Protocol):
    """One configured provider, for all calls of a process; made from its ``Provider`` and the process's connections."""

    def stream(self, call: Call) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
        """An iterator over what comes: each list holds the data of one or more events, ``chat.completion.chunk``
        objects as JSON, as soon as they are there. ``DONE`` after the last one says that the answer is whole.

        Raises ProviderError, then or while iterating. Timeouts are the caller's, who cancels; so are retries.
        """
        ...


def refusal(name: str, status: int, body: bytes, *, wait: float | None = None) -> ProviderError:
    """An answer that is not 200, as an error. ``wait`` is what its headers ask for, in seconds."""
    try:
        parsed = loads(body)
    except BadChunk:
        parsed = None
    detail: Any = cast("dict[str, Any]", parsed).get("error", parsed) if isinstance(parsed, dict) else None
    if status in (401, 403):
        return ProviderError(
            f"The provider '{name}' refused its key: {_message(detail, body)}",
            code="provider_auth",
            provider_status=status,
        )
    return provider_error(name, detail, status=status, body=body, wait=wait)


def provider_error(
    name: str, detail: Any, *, status: int | None = None, body: bytes = b"", wait: float | None = None
) -> ProviderError:
    """From an ``error`` object in OpenAI's shape, or whatever stands in its place."""
    fields = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
    code = fields.get("code")
    if status is None and isinstance(code, int):
        status = code
    return ProviderError(
        _message(detail, body) or f"The provider '{name}' answered {status}.",
        code=_word(code) or "provider_error",
        type=_word(fields.get("type")),
        param=_word(fields.get("param")),
        provider_status=status,
        retry_after=wait,
    )


def _message(detail: Any, body: bytes) -> str:
    if isinstance(detail, dict):
        detail = cast("dict[str, Any]", detail).get("message")
    if isinstance(detail, str) and detail:
        return storable(detail[:ERROR_BODY])
    return storable(body[:500].decode("utf-8", "replace").strip())


def _word(value: Any) -> str | None:
    return storable(value[:ERROR_WORD]) if isinstance(value, str) and value else None
