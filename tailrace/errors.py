"""What the client raises. All of it is a ``TailraceError``.

- ``NotConfigured``: no server is known.
- ``ConnectionFailed``: the server gave no answer, however often it was asked.
- ``APIError`` and its children: the server answered with an error.
- ``CompletionError`` and its children: the server is fine, the completion has no answer.
- ``Problems``: a file of the user's has several things wrong, told all at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast


class TailraceError(Exception):
    """The root of the family; ``str()`` of any of them is one line for a person."""


class Problems(TailraceError):
    """Several things are wrong; ``str()`` has a line for each."""


class NotConfigured(TailraceError):
    """Neither arguments nor environment nor ``connection.json`` say where the server is."""


class ConnectionFailed(TailraceError):
    """No answer after all tries. What was sent may have been accepted: the Idempotency-Key tells."""


class APIError(TailraceError):
    """The server refused. ``code``, ``type`` and ``param`` are those of OpenAI's error shape."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.request_id = request_id


class InvalidRequest(APIError):
    """The request can't be right: 400, 413, 422."""


class Unauthenticated(APIError):
    """No key, or one that is unknown or revoked: 401."""


class NotFound(APIError):
    """No such model or completion, or somebody else's: 404."""


class Conflict(APIError):
    """The request does not fit the present state: 409."""


class RateLimited(APIError):
    """A limit is used up: 429."""


class Unavailable(APIError):
    """Not accepting just now: 503."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    503: Unavailable,
}


class CompletionError(TailraceError):
    """A completion that gives no (further) answer."""

    def __init__(self, message: str, *, id: str) -> None:
        super().__init__(message)
        self.message = message
        self.id = id


class CompletionFailed(CompletionError):
    """It ended as failed; ``code``, ``type`` and ``param`` say why."""

    def __init__(
        self,
        message: str,
        *,
        id: str,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, id=id)
        self.code = code
        self.type = type
        self.param = param

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code else self.message


class CompletionCancelled(CompletionError):
    """It was cancelled before its end."""


class Restarted(CompletionError):
    """The chunks read so far were abandoned for a new attempt: read again from the start (``after=-1``).

    ``base`` is the index of the new attempt's first chunk; None where the server doesn't say.
    """

    def __init__(self, message: str, *, id: str, base: int | None = None) -> None:
        super().__init__(message, id=id)
        self.base = base


def error_shape(body: bytes) -> dict[str, Any] | None:
    """The ``error`` object of a response body, or None where the body isn't in OpenAI's error shape."""
    try:
        parsed: Any = json.loads(body)
    except ValueError:
        return None
    if not isinstance(parsed, dict):
        return None
    error = cast("dict[str, Any]", parsed).get("error")
    return cast("dict[str, Any]", error) if isinstance(error, dict) else None


def api_error(status: int, headers: Mapping[str, str], body: bytes) -> APIError:
    """The exception for a response with an error status."""
    error = error_shape(body)
    if error is None:
        text = " ".join(body[:200].decode("utf-8", "replace").split())
        error = {"message": f"the server answered {status}" + (f": {text}" if text else "")}
    return _BY_STATUS.get(status, APIError)(
        str(error.get("message") or f"the server answered {status}"),
        status=status,
        code=error.get("code"),
        type=error.get("type"),
        param=error.get("param"),
        request_id=headers.get("x-request-id"),
    )
