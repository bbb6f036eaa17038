"""Whether the broker, the workers behind it and the providers are there: for `tailrace doctor`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import hiredis
import httpx
from celery import Celery

from producers.catalog import auth_headers
from schemas.errors import ConfigurationError, Unavailable
from schemas.messaging import celery_config
from schemas.providers import Provider
from schemas.settings import Settings
from schemas.states import Queue
from stores.circuits import CircuitStore
from stores.config import read_providers
from stores.health import Finding, ago, fail, ok, warn
from stores.redis import Redis

#: How long the broker and a provider may take to answer, in seconds.
PATIENCE = 5
#: How long workers may take to answer, in seconds: all of that is waited, for nobody knows how many there are. Where
#: none answers for a queue they are asked again, with more patience.
WORKERS_PATIENCE = (0.5, 4.0)


def broker(settings: Settings) -> list[Finding]:
    """It can be reached; and which queues the workers behind it take messages from. Blocks."""
    app: Any = Celery("tailrace-doctor", set_as_current=False)
    app.conf.update(celery_config(settings) | {"broker_connection_timeout": PATIENCE})
    try:
        with app.connection_for_write() as connection:
            shown: str = connection.as_uri()  # without the password
            try:
                connection.ensure_connection(max_retries=1, timeout=PATIENCE)
                return [ok("broker", shown), *_workers(app, connection)]
            except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
                reason = " ".join(str(error).split()) or type(error).__name__
                found = f"{shown} does not answer: {reason}"
                return [fail("broker", found, "Start it, or set TAILRACE_BROKER_URL.")]
    finally:
        app.close()


def _workers(app: Any, connection: Any) -> list[Finding]:
    """Whether somebody takes messages from each queue."""
    takers: dict[str, list[str]] = {}
    for patience in WORKERS_PATIENCE:
        asking = app.control.inspect(timeout=patience, connection=connection)
        answers: dict[str, list[dict[str, Any]]] = asking.active_queues() or {}
        for queue in Queue:
            takers[queue.value] = sorted(
                name for name, taken in answers.items() if queue.value in {each["name"] for each in taken}
            )
        if all(takers.values()):
            break
    found: list[Finding] = []
    for queue, names in takers.items():
        check = f"workers {queue}"
        if names:
            found.append(ok(check, f"{len(names)}: {', '.join(names)}"))
        else:
            command = f"celery --app=workers.app worker --pool=custom --queues={queue} …"
            found.append(fail(check, "none answers", f"Start one: {command} (docs/deploy.md)."))
    return found


async def circuits(settings: Settings, redis: Redis) -> list[Finding]:
    """Providers that workers don't ask, because they don't answer."""
    try:
        names = read_providers(settings).providers
    except ConfigurationError:
        return []  # `providers` says so
    try:
        states = await CircuitStore(redis).states(names)
    except (Unavailable, hiredis.ReplyError):
        return []  # what else is asked of Redis says so
    opened = {name: state for name, state in states.items() if state.wait_ms is not None}
    return [
        *(
            fail(
                f"circuit {name}",
                f"open for {ago(state.open_ms)}: {state.failures} calls in a row were not answered, the last one with "
                f"{state.reason}",
                "Work for it waits, or goes to the next target of its alias. Look at the provider.",
            )
            for name, state in opened.items()
        ),
        ok("circuits", f"{len(names) - len(opened)} of {len(names)} providers are asked"),
    ]


async def providers(settings: Settings) -> list[Finding]:
    """Each provider answers ``GET …/models``, or at least something, and takes our key; one that plays recordings has
    its file."""
    try:
        configured = read_providers(settings)
    except ConfigurationError as error:
        return [fail("providers", error.message, "Mend providers.toml, or set TAILRACE_PROVIDERS.")]
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        return [*await asyncio.gather(*(_provider(client, *each) for each in configured.providers.items()))]


async def _provider(client: httpx.AsyncClient, name: str, provider: Provider) -> Finding:
    check = f"provider {name}"
    if provider.kind == "replay":
        return await asyncio.to_thread(_recordings, check, Path(provider.file))
    try:
        answer = await client.get(f"{provider.base_url}/models", headers=auth_headers(provider))
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return fail(
            check, f"{provider.base_url} can't be reached: {reason}", "Start it, or mend its base_url."
        )
    found = f"{provider.base_url} answers {answer.status_code}"
    variable = provider.api_key_env
    if answer.status_code in (401, 403):
        if variable and not os.environ.get(variable):
            return warn(
                check, f"{found}: {variable} is not set here", f"Make sure that the workers have {variable}."
            )
        return fail(
            check, f"{found}: it refuses our key", f"Set {variable or 'api_key_env and that variable'}."
        )
    if answer.status_code >= 500:
        return warn(check, found, "Look at the provider.")
    return ok(check, found)


def _recordings(check: str, file: Path) -> Finding:
    if file.is_file():
        return ok(check, f"plays {file}")
    return fail(check, f"there is no file {file}", "Make recordings, or mend its 'file'.")
