"""The ASGI app: which path is whose. Everything under ``/v1`` is also under ``/api/v1/llm``, and the other way round."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from gateway import completions, models, operations, stored
from gateway.context import open_context
from gateway.http import Call, Endpoint, error_reply
from schemas.errors import NotFound
from schemas.settings import Settings

PREFIXES = ("/v1", "/api/v1/llm")

#: What a browser's script may read of an answer.
EXPOSED = ["x-request-id", "x-completion-id", "x-cache", "age", "retry-after", "x-should-retry", "location"]


def make_app(settings: Settings) -> Starlette:
    """The app; it opens its connections when it starts and closes them when it stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.context = await open_context(settings)
        try:
            yield
        finally:
            await app.state.context.close()

    routes = [
        Route("/healthz", Endpoint(GET=operations.healthz)),
        Route("/readyz", Endpoint(GET=operations.readyz)),
        Route("/openapi.json", Endpoint(GET=operations.openapi)),
        Route("/docs", Endpoint(GET=operations.docs)),
        *(route for prefix in PREFIXES for route in _api(prefix)),
        Mount("/", _nothing_here),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, middleware=_cors(settings))
    app.router.redirect_slashes = False
    return app


def _api(prefix: str) -> list[Route]:
    chat = f"{prefix}/chat/completions"
    return [
        Route(f"{chat}/stream", Endpoint(POST=completions.stream)),
        Route(chat, Endpoint(POST=completions.create, GET=stored.listing)),
        Route(f"{chat}/{{id}}", Endpoint(GET=stored.retrieve, POST=stored.update, DELETE=stored.delete)),
        Route(f"{chat}/{{id}}/stream", Endpoint(GET=stored.stream)),
        Route(f"{chat}/{{id}}/cancel", Endpoint(POST=stored.cancel)),
        Route(f"{chat}/{{id}}/token", Endpoint(POST=stored.token)),
        Route(f"{prefix}/models", Endpoint(GET=models.listing)),
        Route(f"{prefix}/models/{{model:path}}", Endpoint(GET=models.retrieve)),
    ]


def _cors(settings: Settings) -> list[Middleware]:
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )
    ]


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    call = Call(scope["app"].state.context, scope, receive)
    path = call.request.url.path
    await error_reply(NotFound(f"There is nothing at {path[:200]}. GET /docs lists what is.")).send(
        call, receive, send
    )
