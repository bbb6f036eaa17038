"""What is wrong with Redis, the database and the work that they hold, and what to do about it: for `tailrace doctor`.

Nothing here changes anything. A part that doesn't answer is a finding, no error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum
from typing import Any

import hiredis
import msgspec
from sqlalchemy.exc import SQLAlchemyError

from schemas.errors import ConfigurationError, Unavailable
from schemas.keys import Keys
from schemas.settings import Settings
from schemas.states import Queue, State
from stores.admission import MEMORY_SHARE, memory_share
from stores.ledger import ROLE
from stores.migration import check_schema, head_revision
from stores.redis import Node, Redis
from stores.sql import is_sqlite, make_engine, place

#: The oldest versions that we work with.
REDIS_LEAST, VALKEY_LEAST = 7, 8
#: The share of its memory from which on Redis should be given more.
MEMORY_HIGH = 0.65
#: From this age on a record of the ledger is late, in milliseconds.
LEDGER_LATE_MS = 60_000
#: From this age on work that waits is late, in milliseconds.
WORK_LATE_MS = 5 * 60_000
#: A worker's lease that ran out, and work that is due, should be seen to by now, in milliseconds.
OVERDUE_MS = 30_000
#: Work whose message was taken by nobody though later ones were should be queued again by now, in milliseconds.
LOST_MS = 60_000
#: Generations of one look, and how many are named in a finding.
PAGE, NAMED = 1000, 3
#: States in which a generation has a place where it is found.
_PLACED = frozenset(state.value.encode() for state in State if not state.ended)
#: How long a part may take to answer, in seconds.
PATIENCE = 5.0


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's. ``advice`` says what to do, where something is to be done."""

    check: str
    status: Status
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Status.OK, found)


def warn(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Status.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Status.FAIL, found, advice)


def ago(ms: int) -> str:
    """An age in words."""
    seconds = max(0, ms) // 1000
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# The database


def database(settings: Settings) -> list[Finding]:
    """It answers, and has the tables of this version. Blocks."""
    try:
        engine = make_engine(settings.database_url, statement_seconds=PATIENCE)
    except ConfigurationError as error:
        return [fail("database", error.message, "Start it, or set TAILRACE_DATABASE_URL.")]
    try:
        kind = "SQLite" if is_sqlite(engine) else "PostgreSQL"
        found = [ok("database", f"{kind}, {place(engine.url)}")]
        try:
            check_schema(engine)
        except ConfigurationError as error:
            return [
                *found,
                fail("migration", error.message, "Run `tailrace migrate`, or update this Tailrace."),
            ]
        return [*found, ok("migration", f"at {head_revision()}, the newest")]
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        return [fail("database", f"it does not answer: {reason}", "See to the database.")]
    finally:
        engine.dispose()


# Redis


async def redis_node(redis: Redis, node: Node, partitions: list[int]) -> list[Finding]:
    """Version, persistence, eviction and memory of one server."""
    where = f"{node.address.host}:{node.address.port}" if node.address.path is None else node.address.path
    suffix = f" {where}" if redis.cluster else ""
    text: bytes = await redis.command(partitions[0], "INFO", patience=PATIENCE)
    info = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return [
        _version(f"redis{suffix}", info, where),
        _persistence(f"persistence{suffix}", info),
        _eviction(f"eviction{suffix}", info),
        _memory(f"memory{suffix}", info, memory_share(text)),
    ]


def _version(check: str, info: dict[str, str], where: str) -> Finding:
    valkey = info.get("valkey_version")
    name, version, least = (
        ("Valkey", valkey, VALKEY_LEAST) if valkey else ("Redis", info["redis_version"], REDIS_LEAST)
    )
    found = f"{name} {version} at {where}"
    if int(version.split(".")[0]) < least:
        return fail(check, found, f"Use Valkey {VALKEY_LEAST} or Redis {REDIS_LEAST}, or later.")
    return ok(check, found)


def _persistence(check: str, info: dict[str, str]) -> Finding:
    if info.get("aof_enabled") != "1":
        return fail(
            check,
            "no append-only file: a restart of Redis loses all accepted work",
            "Set `appendonly yes` (CONFIG SET appendonly yes, and in its configuration file).",
        )
    if info.get("aof_last_write_status") != "ok":
        return fail(
            check, "the append-only file can't be written", "Look at the disk of Redis and at its log."
        )
    if info.get("aof_last_bgrewrite_status") != "ok":
        return warn(
            check, "the last rewrite of the append-only file failed", "Look at Redis's log and memory."
        )
    return ok(check, "append-only file")


def _eviction(check: str, info: dict[str, str]) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        return fail(
            check, f"{policy}: a full Redis would throw work away", "Set `maxmemory-policy noeviction`."
        )
    return ok(check, policy)


def _memory(check: str, info: dict[str, str], share: float) -> Finding:
    if not share:
        return warn(
            check,
            "no maxmemory: nothing stops new work before the machine is full",
            "Set `maxmemory`, to half of what the machine has.",
        )
    found = f"{share:.0%} of {int(info['maxmemory']) / 2**20:,.0f} MiB"
    if share >= MEMORY_SHARE:
        return fail(
            check, f"{found}: new work is refused", "Raise `maxmemory`, or wait for running work to end."
        )
    if share >= MEMORY_HIGH:
        return warn(check, f"{found}; new work is refused from {MEMORY_SHARE:.0%} on", "Raise `maxmemory`.")
    return ok(check, found)


# The ledger


async def ledger(redis: Redis, limit: int) -> list[Finding]:
    """Records that wait for SQL, those that can't be entered, and who enters them."""
    waiting = dead = 0
    oldest: int | None = None
    leaderless: list[int] = []
    for keys in redis.keyspace:
        now = await redis.now_ms(keys.partition)
        commands: list[tuple[Any, ...]] = [
            ("XLEN", keys.ledger),
            ("XLEN", keys.dead),
            ("XRANGE", keys.ledger, "-", "+", "COUNT", 1),
            ("EXISTS", keys.lock(ROLE)),
        ]
        length, buried, first, led = await redis.commands(keys.partition, commands, patience=PATIENCE)
        waiting, dead = waiting + length, dead + buried
        if first:
            age = now - int(first[0][0].split(b"-")[0])
            oldest = age if oldest is None else max(oldest, age)
        if not led:
            leaderless.append(keys.partition)
    return [_lag(waiting, oldest, limit), _dead(dead), _led(leaderless, redis.partitions)]


def _lag(waiting: int, oldest: int | None, limit: int) -> Finding:
    if oldest is None:
        return ok("ledger", "the books have everything")
    found = f"{waiting:,} records wait for the books, the oldest for {ago(oldest)}"
    advice = "Look at the database, and at the workers' logs."
    if waiting > limit:
        return fail("ledger", f"{found}: new work is refused", advice)
    return warn("ledger", found, advice) if oldest > LEDGER_LATE_MS else ok("ledger", found)


def _dead(dead: int) -> Finding:
    if not dead:
        return ok("dead letters", "none")
    return fail(
        "dead letters",
        f"{dead:,} records can't be entered into the books",
        "The reasons are in the workers' logs; mend them, then run `tailrace doctor --retry-dead`.",
    )


def _led(leaderless: list[int], partitions: int) -> Finding:
    if not leaderless:
        return ok("leaders", f"{partitions} of {partitions} partitions have one")
    return fail(
        "leaders",
        f"{len(leaderless)} of {partitions} partitions have none: nobody keeps the books or recovers work",
        "Start a worker; one that was stopped or killed is followed by another within some 10 s.",
    )


# Work


async def queues(redis: Redis) -> list[Finding]:
    """How much waits in each queue and for how long, and what waits for another attempt or for its time."""
    found = [await _queue(redis, queue.value) for queue in Queue]
    recovering, overdue = await _waiting(redis, "recovery")
    suspects, overdue_suspects = await _waiting(redis, "suspects")
    found.append(
        _due("recovery", recovering + suspects, overdue + overdue_suspects, "wait for another attempt")
    )
    found.append(_due("parked", *await _waiting(redis, "parked"), "are parked"))
    return found


async def _queue(redis: Redis, queue: str) -> Finding:
    depth, oldest = 0, None
    for keys in redis.keyspace:
        now = await redis.now_ms(keys.partition)
        name = keys.queued(queue)
        commands: list[tuple[Any, ...]] = [("ZCARD", name), ("ZRANGE", name, 0, 0)]
        number, first = await redis.commands(keys.partition, commands, patience=PATIENCE)
        depth += number
        created = (
            await redis.command(keys.partition, "HGET", keys.gen(first[0].decode()), "created_ms")
            if first
            else None
        )
        if created is not None:
            oldest = max(oldest or 0, now - int(created))
    check = f"queue {queue}"
    if oldest is None:
        return ok(check, "nothing waits")
    found = f"{depth:,} wait, the oldest for {ago(oldest)}"
    if oldest > WORK_LATE_MS:
        return warn(check, found, f"Start more workers for '{queue}', or find out what holds them up.")
    return ok(check, found)


async def _waiting(redis: Redis, kind: str) -> tuple[int, int]:
    """How many are in a partition's set of this kind, and how many of them for too long."""
    number = overdue = 0
    for keys in redis.keyspace:
        name: str = getattr(keys, kind)
        late = await redis.now_ms(keys.partition) - OVERDUE_MS
        commands: list[tuple[Any, ...]] = [("ZCARD", name), ("ZCOUNT", name, "-inf", late)]
        all_, old = await redis.commands(keys.partition, commands, patience=PATIENCE)
        number, overdue = number + all_, overdue + old
    return number, overdue


def _due(check: str, number: int, overdue: int, what: str) -> Finding:
    found = f"{number:,} {what}" if number else "none"
    if overdue:
        return warn(
            check,
            f"{found}, {overdue:,} of them for {OVERDUE_MS // 1000} s longer than they should",
            "Start more workers; where there are enough, look at their logs.",
        )
    return ok(check, found)


async def stuck(redis: Redis) -> Finding:
    """Generations that nobody will bring to an end, unless a leader still sees to them."""
    found: dict[str, list[str]] = {}
    for keys in redis.keyspace:
        now = await redis.now_ms(keys.partition)
        expired = await redis.command(
            keys.partition, "ZRANGE", keys.lease, "-inf", now - OVERDUE_MS, "BYSCORE", "LIMIT", 0, PAGE
        )
        _add(found, f"whose lease ran out {OVERDUE_MS // 1000} s ago", expired)
        for queue in Queue:
            _add(found, "whose message was lost", await _lost(redis, keys, queue.value, now))
    for node, partitions in redis.nodes().items():
        async for generation, why in _misplaced(redis, node, partitions):
            found.setdefault(why, []).append(generation)
    if not found:
        return ok("stuck", "no generation")
    told = "; ".join(f"{len(ids):,} {why} ({_some(ids)})" for why, ids in sorted(found.items()))
    return fail(
        "stuck",
        told,
        "A worker's control thread should have seen to them: look at the workers' logs, restart them, or cancel the "
        "completions (POST /v1/chat/completions/{id}/cancel).",
    )


def _add(found: dict[str, list[str]], why: str, members: Iterable[bytes]) -> None:
    names = [member.decode() for member in members]
    if names:
        found.setdefault(why, []).extend(names)


def _some(ids: list[str]) -> str:
    return ", ".join(sorted(ids)[:NAMED]) + (", …" if len(ids) > NAMED else "")


async def _lost(redis: Redis, keys: Keys, queue: str, now: int) -> list[bytes]:
    """Queued work although a later message of its queue has been taken."""
    mark = int(await redis.command(keys.partition, "GET", keys.mark(queue)) or 0)
    below: list[bytes] = await redis.command(
        keys.partition, "ZRANGE", keys.queued(queue), "-inf", mark, "BYSCORE", "LIMIT", 0, PAGE
    )
    if not below:
        return []
    made = await redis.commands(
        keys.partition, [("HGET", keys.gen(id.decode()), "created_ms") for id in below]
    )
    return [id for id, ms in zip(below, made, strict=True) if ms is not None and now - int(ms) > LOST_MS]


async def _misplaced(redis: Redis, node: Node, partitions: list[int]) -> AsyncIterator[tuple[str, str]]:
    """Generations of a node that are alive and in none of the places where somebody would find them."""
    cursor = b"0"
    wire = await node.wire()
    while True:
        cursor, names = await wire.call("SCAN", cursor, "MATCH", "tailrace:{p*}:gen:*", "COUNT", PAGE)
        ids = [name.decode().rsplit(":", 1)[1] for name in names]
        here = [id for id in ids if redis.partition(id) in partitions]
        if here:
            states = await redis.commands(
                partitions[0], [("HGET", redis.keys(id).gen(id), "state") for id in here], patience=PATIENCE
            )
            alive = [id for id, state in zip(here, states, strict=True) if state in _PLACED]
            for generation, why in zip(
                alive, await asyncio.gather(*(_place(redis, id) for id in alive)), strict=True
            ):
                # What was between two places a moment ago has come to one by now.
                if why is not None and await _still(redis, generation):
                    yield generation, why
        if cursor == b"0":
            return


async def _still(redis: Redis, generation: str) -> bool:
    await asyncio.sleep(0.05)
    return await _place(redis, generation) is not None


async def _place(redis: Redis, generation: str) -> str | None:
    """What is wrong with where a generation is; None where it is where it belongs, or has ended."""
    keys = redis.keys(generation)
    commands: list[tuple[Any, ...]] = [
        ("MULTI",),
        ("HGET", keys.gen(generation), "state"),
        ("ZSCORE", keys.lease, generation),
        ("ZSCORE", keys.parked, generation),
        *(("ZSCORE", name, generation) for name in (*map(keys.queued, Queue), keys.recovery, keys.suspects)),
        ("EXEC",),
    ]
    *_, (state, lease, parked, *queued) = await redis.commands(keys.partition, commands, patience=PATIENCE)
    if state == State.LEASED.value.encode() and lease is None:
        return "with a worker but no lease"
    if state == State.PARKED.value.encode() and parked is None:
        return "parked without a time"
    if state == State.QUEUED.value.encode() and all(score is None for score in queued):
        return "queued nowhere"
    return None


# All of it


async def redis_findings(redis: Redis, settings: Settings) -> list[Finding]:
    """Everything that Redis can be asked for; one finding where it stops answering."""
    try:
        found = await asyncio.gather(*(redis_node(redis, *each) for each in redis.nodes().items()))
        rest = await asyncio.gather(ledger(redis, settings.ledger_limit), queues(redis))
        return [*(f for each in (*found, *rest) for f in each), await stuck(redis)]
    except (Unavailable, hiredis.ReplyError, OSError) as error:
        return [fail("redis", f"it stopped answering: {error}", "Look at Redis and its log.")]
