"""The cache in SQL: what the ledger enters, how long it is found, and what goes first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from schemas.records import StoredLog
from stores.books import Books
from stores.cache import Cache
from stores.migration import migrate
from stores.rows import CacheRow
from stores.sql import make_engine
from tests.support.generations import accepted, ended

T0 = 1_800_000_000_000
HOUR = 3_600_000


class Clock:
    now = T0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    migrate(database_url)
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(engine: Engine, clock: Clock) -> Cache:
    return Cache(engine, clock=clock)


def enter(
    engine: Engine,
    fingerprint: str,
    *,
    at: int = T0,
    tenant: str = "acme",
    size: int = 100,
    store: bool = True,
) -> str:
    """A result that was made at a time, and is kept for an hour; its generation."""
    record = accepted(tenant=tenant, fingerprint=fingerprint, cache="miss", created_ms=at, store=store)
    log = StoredLog(b"{}", b'"%b"' % bytes(97 + i * 7 % 26 for i in range(size)), 0, 1)
    end = ended(record.id, next=1, ended_ms=at, created_ms=at, finish_reasons=["stop"])
    logs = {record.id: log} if store else {}
    Books(engine).apply([record, end], logs, [CacheRow(record, at, at + HOUR)])
    return record.id


def test_found_until_it_expires(engine: Engine, cache: Cache, clock: Clock) -> None:
    generation = enter(engine, "f1")
    clock.now = T0 + 5000
    found = cache.find("acme", "f1")
    assert found is not None
    assert (found[0].generation, found[1]) == (generation, 5000)
    assert found[0].log is not None
    assert cache.find("acme", "f1", max_age_ms=5000) is not None
    assert cache.find("acme", "f1", max_age_ms=4999) is None
    assert cache.find("other", "f1") is cache.find("acme", "f2") is None
    clock.now = T0 + HOUR
    assert cache.find("acme", "f1") is None
    assert cache.trim(10**9) == ["f1"]
    assert cache.statistics("acme").entries == 0


def test_a_newer_result_takes_an_older_ones_place(engine: Engine, cache: Cache) -> None:
    """In whatever order they are entered."""
    newer = enter(engine, "f1", at=T0 + 10)
    enter(engine, "f1", at=T0)
    found = cache.find("acme", "f1")
    assert found is not None
    assert found[0].generation == newer
    newest = enter(engine, "f1", at=T0 + 20)
    found = cache.find("acme", "f1")
    assert found is not None
    assert found[0].generation == newest
    assert cache.statistics("acme").entries == 1


def test_the_oldest_go_beyond_a_tenants_share(engine: Engine, cache: Cache) -> None:
    for number in range(6):
        enter(engine, f"f{number}", at=T0 + number)
        enter(engine, f"g{number}", at=T0 + number, tenant="small", size=1)
    share = cache.statistics("acme").bytes // 2
    assert sorted(cache.trim(share)) == ["f0", "f1", "f2"]
    assert cache.trim(share) == []
    left = cache.statistics("acme")
    assert (left.entries, left.oldest_ms) == (3, T0 + 3)
    assert left.bytes <= share
    assert cache.statistics("small").entries == 6


def test_what_is_not_stored_is_not_cached(engine: Engine, cache: Cache) -> None:
    enter(engine, "f1", store=False)
    assert cache.find("acme", "f1") is None


def test_an_entry_goes_with_its_text(engine: Engine, cache: Cache) -> None:
    generation = enter(engine, "f1")
    assert cache.of_generation(generation) == ["f1"]
    assert Books(engine).delete(generation)
    assert cache.of_generation(generation) == []


def test_purging_leaves_the_text_where_it_is(engine: Engine, cache: Cache, clock: Clock) -> None:
    generations = [enter(engine, f"f{number}", at=T0 + number) for number in range(3)]
    clock.now = T0 + 10
    assert cache.purge("acme", model="nothing") == ([], 0)
    assert cache.purge("other") == ([], 0)
    assert cache.purge("acme", older_than_ms=10)[0] == ["f0"]
    gone, size = cache.purge("acme", model="m")
    assert (sorted(gone), size > 0) == (["f1", "f2"], True)
    assert all(Books(engine).stored_log(generation) for generation in generations)
