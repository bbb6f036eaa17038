"""``GET /metrics``: the pipeline's state in Prometheus's text format, looked up when it is asked for.

All of it is of the whole pipeline, the same from every gateway, but for ``process_…`` and ``python_…``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import hiredis
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.context import Context
from gateway.http import Call, Reply
from schemas.errors import Unavailable
from schemas.states import Queue
from stores.circuits import CircuitStore
from stores.permits import Permits
from stores.wire import Arg

#: How long Redis may take to answer, in seconds.
PATIENCE = 2.0
QUEUES = tuple(queue.value for queue in Queue)
#: Where generations are in a partition, by the name of the sorted set.
_PLACES = ("leased", "parked", "recovery", "suspects")


async def metrics(call: Call) -> Reply:
    """GET /metrics."""
    families = await _families(call.context)
    registry = CollectorRegistry()
    registry.register(_Found(families))
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    return Reply(raw=generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Found(Collector):
    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


async def _families(context: Context) -> list[GaugeMetricFamily]:
    up = GaugeMetricFamily("tailrace_redis_up", "Whether Redis answers.", 0)
    admission = GaugeMetricFamily(
        "tailrace_admission_open", "Whether new work is let in.", int(context.admission.closed is None)
    )
    try:
        async with asyncio.timeout(PATIENCE):
            found = [*await _places(context), *await _providers(context)]
    except (Unavailable, hiredis.ReplyError, TimeoutError):
        return [up, admission]
    up.samples.clear()
    up.add_metric([], 1)
    return [up, admission, *found]


async def _places(context: Context) -> list[GaugeMetricFamily]:
    """Where generations are, and what waits for SQL."""
    redis = context.redis
    queued = GaugeMetricFamily("tailrace_queued", "Generations that wait for a worker.", labels=["queue"])
    places = GaugeMetricFamily(
        "tailrace_generations",
        "Generations that run, wait for a time or a permit, or wait to be recovered.",
        labels=["place"],
    )
    totals = [0] * (len(QUEUES) + len(_PLACES) + 2)
    for keys in redis.keyspace:
        commands: list[tuple[Arg, ...]] = [("ZCARD", keys.queued(queue)) for queue in QUEUES]
        commands += [("ZCARD", key) for key in (keys.lease, keys.parked, keys.recovery, keys.suspects)]
        commands += [("XLEN", keys.ledger), ("XLEN", keys.dead)]
        counts = await redis.commands(keys.partition, commands, patience=PATIENCE)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
    for queue, count in zip(QUEUES, totals, strict=False):
        queued.add_metric([queue], count)
    for place, count in zip(_PLACES, totals[len(QUEUES) :], strict=False):
        places.add_metric([place], count)
    *_, ledger, dead = totals
    return [
        queued,
        places,
        GaugeMetricFamily("tailrace_ledger_records", "Records that SQL does not have yet.", ledger),
        GaugeMetricFamily("tailrace_dead_letters", "Records that SQL refused.", dead),
    ]


async def _providers(context: Context) -> list[GaugeMetricFamily]:
    providers = context.catalog.providers.providers
    window_ms = int(context.settings.limit_window_seconds * 1000)
    permits, by_queue = Permits(context.redis, window_ms=window_ms), ["provider", "queue"]
    held = GaugeMetricFamily("tailrace_provider_calls", "Calls under way.", labels=by_queue)
    waiting = GaugeMetricFamily("tailrace_provider_waiting", "Generations in line.", labels=by_queue)
    calls = GaugeMetricFamily("tailrace_provider_window_calls", "Calls in the minute.", labels=by_queue)
    tokens = GaugeMetricFamily("tailrace_provider_window_tokens", "Tokens in the minute.", labels=by_queue)
    factor = GaugeMetricFamily(
        "tailrace_provider_slowed_to",
        "The part of its limits that holds since it answered 429 or 503; 1 while it doesn't.",
        labels=["provider"],
    )
    pause = GaugeMetricFamily(
        "tailrace_provider_pause_seconds", "How long it is left alone.", labels=["provider"]
    )
    for provider in providers.values():
        if not provider.limited:
            continue
        state = await permits.look(provider)
        for at, queue in enumerate(QUEUES):
            for family, values in (
                (held, state.held),
                (waiting, state.waiting),
                (calls, state.calls),
                (tokens, state.tokens),
            ):
                family.add_metric([provider.name, queue], values[at])
        factor.add_metric([provider.name], state.factor)
        pause.add_metric([provider.name], state.pause_ms / 1000)
    circuits = GaugeMetricFamily("tailrace_circuit_open", "Whether it is not asked.", labels=["provider"])
    failures = GaugeMetricFamily(
        "tailrace_circuit_failures", "Calls in a row without an answer.", labels=["provider"]
    )
    known = await CircuitStore(context.redis).states(providers)
    for name in providers:
        with contextlib.suppress(KeyError):
            failures.add_metric([name], known[name].failures)
        circuits.add_metric([name], int(name in known and known[name].wait_ms is not None))
    return [held, waiting, calls, tokens, factor, pause, circuits, failures]
