"""The client: where completions are submitted, found again and listed."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from tailrace import connection
from tailrace._http import Http
from tailrace.batches import Batches, Files
from tailrace.errors import NotConfigured
from tailrace.handles import Completion, Status

#: Completions asked for in one page of ``Client.list``.
PAGE = 100
#: How often a request is sent again: about 15 s of outage, as long as it takes to restart a part of the server.
RETRIES = 6


class Client:
    """A connection to one Tailrace server; used with ``async with``, or closed by ``aclose()``.

    ``url`` and ``api_key`` default to ``TAILRACE_URL`` and ``TAILRACE_API_KEY``, and those to the
    ``connection.json`` that ``tailrace up`` keeps in ``TAILRACE_HOME`` (``~/.tailrace``); a ``home`` that is
    given goes before the environment. ``end_user`` is sent as ``X-On-Behalf-Of``. ``timeout`` is in seconds
    and for one request; how long a completion may take is a parameter of that completion. ``retries`` is how
    often one request is sent again. Raises NotConfigured.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        end_user: str | None = None,
        timeout: float = 30.0,
        retries: int = RETRIES,
        home: Path | str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        url, api_key = find_server(url, api_key, home)
        self.url = url
        self._http = Http(
            url, api_key, end_user=end_user, timeout=timeout, retries=retries, transport=transport
        )
        self.files = Files(self._http)
        self.batches = Batches(self._http, self.files)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def submit(
        self,
        *,
        idempotency_key: str | None = None,
        sample: int | None = None,
        cache_control: str | None = None,
        **request: Any,
    ) -> Completion:
        """Queue a completion and return its handle as soon as the server has accepted it.

        ``request`` holds the parameters of a chat completion (``model``, ``messages``, ``temperature``, …);
        ``stream`` says nothing here, as every completion can be followed through its handle. A try that got
        lost on the way is sent again under the same Idempotency-Key and does no work twice; give
        ``idempotency_key`` to have that across processes too. ``sample`` and ``cache_control`` steer the
        cache. Raises APIError, ConnectionFailed.
        """
        headers = {"Prefer": "respond-async", "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        if sample is not None:
            headers["x-sample"] = str(sample)
        if cache_control is not None:
            headers["Cache-Control"] = cache_control
        body = {name: value for name, value in request.items() if name not in ("stream", "stream_options")}
        accepted = await self._http.request("POST", "/v1/chat/completions", body=body, headers=headers)
        return self.completion(accepted["id"])

    def completion(self, id: str) -> Completion:
        """A handle for a completion that exists already; asks nothing of the server."""
        return Completion(self._http, id)

    async def list(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Literal["asc", "desc"] | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        status: Status | None = None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Stored completions, fetched in pages as they are read: at most ``limit``, from behind ``after``."""
        filters = {"order": order, "model": model, "status": status}
        params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        params |= {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        left = limit
        while left is None or left > 0:
            params["limit"] = PAGE if left is None else min(PAGE, left)
            if after is not None:
                params["after"] = after
            page = await self._http.request("GET", "/v1/chat/completions", params=params)
            for completion in page["data"]:
                yield completion
                after = completion["id"]
            if left is not None:
                left -= len(page["data"])
            if not page.get("has_more") or not page["data"]:
                return

    async def models(self) -> Sequence[dict[str, Any]]:
        """The models and aliases that requests may name."""
        return (await self._http.request("GET", "/v1/models"))["data"]

    async def usage(
        self, *, start_time: int, end_time: int | None = None, group_by: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Requests, tokens, costs and what the cache saved, from ``start_time`` on and before ``end_time`` (seconds
        since the epoch; now), in ``data`` by ``model``, ``api_key_id``, ``external_user_id``, ``org_id`` or ``day``.

        Money is a string of integer nano units, 10⁹ to the dollar, and None where nobody knows.
        """
        params: dict[str, Any] = {"start_time": start_time, "group_by": [*group_by]}
        if end_time is not None:
            params["end_time"] = end_time
        return await self._http.request("GET", "/v1/usage/summary", params=params)

    async def cache(self) -> dict[str, Any]:
        """What is in the cache, and how requests fared: ``entries``, ``bytes``, ``hits``, ``joins``, ``misses``, …"""
        return await self._http.request("GET", "/v1/cache")

    async def purge_cache(self, *, model: str | None = None, older_than: int | None = None) -> dict[str, Any]:
        """Drop cached results, of one model or older than so many seconds; ``entries`` and ``bytes`` that went."""
        params = {"model": model, "older_than": older_than}
        sent = {name: value for name, value in params.items() if value is not None}
        return await self._http.request("DELETE", "/v1/cache", params=sent)


def find_server(url: str | None, api_key: str | None, home: Path | str | None = None) -> tuple[str, str]:
    """URL and key: arguments before environment before ``connection.json``. Raises NotConfigured.

    The key of ``connection.json`` goes to no other server than the one that the file names.
    """
    url = url or (None if home else os.environ.get("TAILRACE_URL"))
    api_key = api_key or (None if home else os.environ.get("TAILRACE_API_KEY"))
    if url and api_key:
        return url, api_key
    folder = connection.home_path(home)
    found = connection.read(folder)
    if url is None and found is not None:
        return found.url, api_key or found.api_key
    if url is not None and found is not None and found.url == url.rstrip("/"):
        return url, found.api_key
    if url is not None:
        raise NotConfigured(f"no API key for {url}: set TAILRACE_API_KEY")
    raise NotConfigured(
        f"no server is known (looked in {folder}): set TAILRACE_URL, or start one: tailrace up"
    )
