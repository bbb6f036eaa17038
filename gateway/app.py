"""The ASGI app: which path is whose.

Everything under ``/v1`` is also under ``/api/v1/llm``, and the other way round.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import (
    batch_results,
    batches,
    cached,
    completions,
    files,
    metrics,
    models,
    operations,
    stored,
    usage,
)
from gateway.context import open_context
from gateway.http import Call, Endpoint, error_reply
from schemas.codec import dumps
from schemas.errors import InvalidRequest, NotFound
from schemas.settings import Settings

PREFIXES = ("/v1", "/api/v1/llm")

#: What a browser's script may read of an answer.
EXPOSED = [
    "x-request-id",
    "x-completion-id",
    "x-cache",
    "age",
    "retry-after",
    "x-should-retry",
    "x-base-index",
    "location",
]


def make_app(settings: Settings) -> ASGIApp:
    """The app; it opens its connections when it starts and closes them when it stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        app.state.context = await open_context(settings)
        try:
            yield
        finally:
            await app.state.context.close()

    api = [route for prefix in PREFIXES for route in _api(prefix)]
    routes = [
        Route("/healthz", Endpoint(GET=operations.healthz)),
        Route("/readyz", Endpoint(GET=operations.readyz)),
        Route("/metrics", Endpoint(GET=metrics.metrics)),
        Route("/openapi.json", Endpoint(GET=operations.openapi)),
        Route("/docs", Endpoint(GET=operations.docs)),
        *api,
    ]
    routed = Starlette(routes=routes, lifespan=lifespan)
    routed.router.default = _nothing_here
    routed.router.redirect_slashes = False
    plain = {route.path: route.app for route in api if "{" not in route.path}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Paths without parameters need no router, and our endpoints render their own errors.
        endpoint = plain.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await routed(scope, receive, send)
        else:
            scope["app"] = routed
            await endpoint(scope, receive, send)

    return _with_cors(app, settings)


def _api(prefix: str) -> list[Route]:
    chat = f"{prefix}/chat/completions"
    return [
        Route(f"{chat}/stream", Endpoint(POST=completions.stream)),
        Route(chat, Endpoint(POST=completions.create, GET=stored.listing)),
        Route(f"{chat}/{{id}}", Endpoint(GET=stored.retrieve, POST=stored.update, DELETE=stored.delete)),
        Route(f"{chat}/{{id}}/stream", Endpoint(GET=stored.stream)),
        Route(f"{chat}/{{id}}/cancel", Endpoint(POST=stored.cancel)),
        Route(f"{chat}/{{id}}/token", Endpoint(POST=stored.token)),
        Route(f"{prefix}/usage/completions", Endpoint(GET=usage.completions)),
        Route(f"{prefix}/usage/costs", Endpoint(GET=usage.costs)),
        Route(f"{prefix}/usage/summary", Endpoint(GET=usage.summary)),
        Route(f"{prefix}/organization/usage/completions", Endpoint(GET=usage.completions)),
        Route(f"{prefix}/organization/costs", Endpoint(GET=usage.organization_costs)),
        Route(f"{prefix}/cache", Endpoint(GET=cached.statistics, DELETE=cached.purge)),
        Route(f"{prefix}/files", Endpoint(POST=files.create, GET=files.listing)),
        Route(f"{prefix}/files/{{id}}", Endpoint(GET=files.retrieve, DELETE=files.delete)),
        Route(f"{prefix}/files/{{id}}/content", Endpoint(GET=files.content)),
        Route(f"{prefix}/batches", Endpoint(POST=batches.create, GET=batches.listing)),
        Route(f"{prefix}/batches/estimate", Endpoint(POST=batches.estimate)),
        Route(f"{prefix}/batches/{{id}}", Endpoint(GET=batches.retrieve)),
        Route(f"{prefix}/batches/{{id}}/results", Endpoint(GET=batch_results.results)),
        Route(f"{prefix}/batches/{{id}}/failures", Endpoint(GET=batch_results.failures)),
        Route(f"{prefix}/batches/{{id}}/cancel", Endpoint(POST=batches.cancel)),
        Route(f"{prefix}/batches/{{id}}/retry", Endpoint(POST=batches.retry)),
        Route(f"{prefix}/models", Endpoint(GET=models.listing)),
        Route(f"{prefix}/models/{{model:path}}", Endpoint(GET=models.retrieve)),
    ]


def _with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if not origins:
        return app
    return _Cors(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=600,
    )


class _Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """A refusal has the shape of every other error."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        error = InvalidRequest(f"{bytes(answer.body).decode()}.", code="cors_refused")
        headers = {k: v for k, v in answer.headers.items() if k not in ("content-type", "content-length")}
        return Response(dumps(error.body()), error.status, headers, "application/json")


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    call = Call(scope["app"].state.context, scope, receive)
    path: str = scope["path"]
    await error_reply(NotFound(f"There is nothing at {path[:200]}. GET /docs lists what is.")).send(
        call, receive, send
    )
