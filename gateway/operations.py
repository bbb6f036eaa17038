"""For those who run it: liveness, readiness, the API's description."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from gateway.docspage import page
from gateway.http import Call, Reply
from gateway.openapi import document
from schemas.errors import TailraceError

#: How long a part may take to answer, in seconds.
PATIENCE = 2.0


async def healthz(call: Call) -> Reply:
    """GET /healthz: the process answers."""
    return Reply({"status": "ok"})


async def readyz(call: Call) -> Reply:
    """GET /readyz: 200 when Redis and the database answer, else 503 and which of them doesn't.

    ``admission`` says whether new work is let in. A gateway that lets none in is ready all the same, for readers.
    """
    context = call.context
    checks = {
        "redis": _check(context.redis.command(0, "PING", patience=PATIENCE)),
        "database": _check(asyncio.to_thread(context.books.ping)),
    }
    parts = dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
    ready = all(state == "ok" for state in parts.values())
    closed = context.admission.closed
    parts["admission"] = "open" if closed is None else f"closed: {closed}"
    return Reply({"status": "ok" if ready else "unavailable", "parts": parts}, 200 if ready else 503)


async def _check(probe: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(PATIENCE):
            await probe
    except (TailraceError, SQLAlchemyError, TimeoutError):
        return "unavailable"
    return "ok"


async def openapi(call: Call) -> Reply:
    """GET /openapi.json."""
    return Reply(document())


async def docs(call: Call) -> Reply:
    """GET /docs: the same for people; one page that loads nothing else."""
    return Reply(raw=page().encode(), content_type="text/html; charset=utf-8")
