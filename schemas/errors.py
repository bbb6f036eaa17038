"""Every error of Tailrace, on one page, with the HTTP status and the OpenAI ``type`` and ``code`` that it becomes.

Inside the project these are raised; at each border (HTTP, SSE, command line) exactly one place renders them.
The shape is OpenAI's: ``{"error": {"message", "type", "param", "code"}}``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as a value: how a generation's failure is kept in its end entry, in the ledger and in SQL."""

    code: str
    message: str
    type: str = "server_error"
    param: str | None = None
    status: int = 502
    provider_status: int | None = None  # what the model backend answered

    @property
    def full_message(self) -> str:
        """The message, with a model backend's own status, for where there is no HTTP status to say it."""
        if self.provider_status is None:
            return self.message
        return f"{self.message} (provider status {self.provider_status})"


class TailraceError(Exception):
    """The root of the family. ``message`` says what is wrong and what to do; ``param`` names the field."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code

    @property
    def http_status(self) -> int:
        return self.status

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def failure(self) -> Failure:
        return Failure(self.code, self.message, self.type, self.param, self.http_status)


class InvalidRequest(TailraceError):
    """A request that can't be right whatever the state of the server: 400."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class ConfigurationError(InvalidRequest):
    """A setting, providers.toml or a URL that the process can't start with. The command line prints one line."""

    code = "configuration_error"


class Unauthenticated(TailraceError):
    """No key, a malformed key, an unknown one or a revoked one: 401."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotFound(TailraceError):
    """No such thing, or somebody else's: 404."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(TailraceError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(TailraceError):
    """The request is fine but does not fit the present state: 409."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class Restarted(Conflict):
    """The chunks that a reader has were abandoned: the answer starts again at index ``base``."""

    code = "restarted"

    def __init__(self, base: int, *, param: str | None = None) -> None:
        super().__init__(
            f"The answer was started again at index {base}; the chunks before it don't belong to it. Start from -1.",
            param=param,
        )
        self.base = base


class TooLarge(TailraceError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class HeadTooLarge(TailraceError):
    """A request line and headers beyond any use: 431."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class Unprocessable(TailraceError):
    """An Idempotency-Key that was used with another request: 422."""

    status = 422
    type = "invalid_request_error"
    code = "idempotency_key_reused"


class LimitReached(TailraceError):
    """A limit of the key: 429. ``kind`` is OpenAI's type: requests, tokens or insufficient_quota."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, kind: str, code: str, retry_after: float, headers: dict[str, str]
    ) -> None:
        super().__init__(message, code=code, retry_after=retry_after)
        self.kind = kind
        self.headers = headers

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class Unavailable(TailraceError):
    """Not accepted, nothing was kept: try again. 503 with Retry-After."""

    status = 503
    type = "server_error"
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: int = 2, code: str | None = None) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class CacheMiss(TailraceError):
    """``Cache-Control: only-if-cached`` and nothing is cached: 504, as in RFC 9111 section 5.2.1.7."""

    status = 504
    type = "invalid_request_error"
    code = "cache_miss"


class DeadlineExceeded(TailraceError):
    """The request's own ``timeout`` ran out: 504."""

    status = 504
    code = "deadline_exceeded"


class ProviderError(TailraceError):
    """A model backend failed. ``provider_status`` is its HTTP status, None where there was no answer.

    ``retry_after`` is what it asked to wait, in seconds. ``final`` says that another call would end alike.
    """

    type = "provider_error"
    code = "provider_error"

    def __init__(
        self,
        message: str,
        *,
        code: str = "provider_error",
        type: str | None = None,
        param: str | None = None,
        provider_status: int | None = None,
        retry_after: float | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        self.provider_status = provider_status
        self.final = final
        if type is not None:
            self.error_type = type
        else:
            self.error_type = "provider_error"

    @property
    def http_status(self) -> int:
        """400, 404, 413, 422 and 429 stay; 401 and 403 are ours to mend: 502; timeouts are 504."""
        if self.provider_status in (400, 404, 413, 422, 429):
            return self.provider_status
        return 504 if self.code in ("provider_timeout", "provider_stalled") else 502

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.error_type,
                "param": self.param,
                "code": self.code,
            }
        }

    def failure(self) -> Failure:
        return Failure(
            self.code, self.message, self.error_type, self.param, self.http_status, self.provider_status
        )


class GenerationFailed(TailraceError):
    """A generation that ended as failed or cancelled, met by one who wanted its answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, param=failure.param, code=failure.code)
        self.cause = failure

    @property
    def http_status(self) -> int:
        return self.cause.status

    def body(self) -> dict[str, Any]:
        f = self.cause
        return {"error": {"message": f.message, "type": f.type, "param": f.param, "code": f.code}}

    def failure(self) -> Failure:
        return self.cause
