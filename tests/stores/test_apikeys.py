"""API keys: made, checked without SQL while they are fresh, revoked within seconds; stream tokens."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select, text

from schemas.errors import InvalidRequest, TailraceError, Unauthenticated, Unavailable
from schemas.tables import api_keys
from stores import apikeys
from stores.apikeys import ApiKey, ApiKeys, KeyRing, check_stream_token, make_stream_token
from stores.migration import migrate
from stores.sql import make_engine, reading, writing
from tests.support.postgres import PostgresServer

TTL = 2.0
NEVER_MADE = f"tr-{'0' * 12}-{'A' * 43}"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counter:
    """SELECTs that an engine was asked."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        self.count += statement.lstrip().startswith("SELECT")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def keys(engine: Engine) -> ApiKeys:
    return ApiKeys(engine)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(engine: Engine, clock: Clock) -> KeyRing:
    return KeyRing(engine, TTL, clock=clock)


# ---------------------------------------------------------------------------------------------------- making


def test_a_key_has_its_form_and_only_its_hash_is_stored(keys: ApiKeys, engine: Engine) -> None:
    key, plaintext = keys.create("laptop", "acme", admin=True)
    assert re.fullmatch(r"tr-[0-9a-f]{12}-[A-Za-z0-9_-]{43}", plaintext)
    assert key.id == f"key_{plaintext[3:15]}"
    assert (key.name, key.tenant, key.admin, key.revoked_ms) == ("laptop", "acme", True, None)
    with reading(engine) as connection:
        stored = repr(connection.execute(select(api_keys)).all())
    assert key.id in stored
    assert plaintext[16:] not in stored


def test_keys_are_listed_with_the_revoked_ones(engine: Engine) -> None:
    ticks = iter(range(100))
    keys = ApiKeys(engine, clock=lambda: next(ticks))
    first, _ = keys.create("first", "acme")
    second, _ = keys.create("second", "acme")
    assert keys.revoke(first.id)
    assert not keys.revoke(first.id)
    assert not keys.revoke("key_nothing")
    assert [(key.id, key.revoked_ms is None) for key in keys.list()] == [(first.id, False), (second.id, True)]


@pytest.mark.parametrize(
    ("name", "tenant"), [("", "acme"), ("laptop", " "), ("a\x00b", "acme"), ("a", "b\n")]
)
def test_a_name_must_be_printable(keys: ApiKeys, name: str, tenant: str) -> None:
    with pytest.raises(InvalidRequest):
        keys.create(name, tenant)
    assert keys.list() == []


# -------------------------------------------------------------------------------------------------- checking


def test_a_key_opens_its_tenant(ring: KeyRing, keys: ApiKeys) -> None:
    key, plaintext = keys.create("laptop", "acme")
    assert ring.verify(plaintext) == key


def test_a_wrong_secret_is_refused_whether_or_not_the_key_is_in_memory(ring: KeyRing, keys: ApiKeys) -> None:
    _, plaintext = keys.create("laptop", "acme")
    wrong = plaintext[:16] + "A" * 43
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            ring.verify(wrong)
    ring.verify(plaintext)
    with pytest.raises(Unauthenticated):
        ring.verify(wrong)
    with pytest.raises(Unauthenticated):
        ring.verify_cached(wrong)


@given(
    junk=st.text(max_size=80) | st.from_regex(r"tr-[0-9a-f]{10,13}-[A-Za-z0-9_\-\n]{40,45}", fullmatch=True)
)
def test_what_is_not_a_key_is_refused_quietly(ring: KeyRing, junk: str) -> None:
    with pytest.raises(Unauthenticated):
        ring.verify(junk)


def test_a_fresh_key_costs_no_sql(ring: KeyRing, keys: ApiKeys, engine: Engine, clock: Clock) -> None:
    key, plaintext = keys.create("laptop", "acme")
    counter = Counter(engine)
    assert ring.verify_cached(plaintext) is None
    assert counter.count == 0
    for _ in range(3):
        assert ring.verify(plaintext) == key
        assert ring.verify_cached(plaintext) == key
    assert counter.count == 1
    clock.now += TTL + 0.1
    assert ring.verify_cached(plaintext) is None
    assert ring.verify(plaintext) == key
    assert counter.count == 2


def test_a_revoked_key_is_refused_after_its_time_in_memory(
    ring: KeyRing, keys: ApiKeys, clock: Clock
) -> None:
    key, plaintext = keys.create("laptop", "acme")
    ring.verify(plaintext)
    keys.revoke(key.id)
    clock.now += TTL + 0.1
    with pytest.raises(Unauthenticated):
        ring.verify(plaintext)
    with pytest.raises(Unauthenticated):
        ring.verify_cached(plaintext)


def test_an_unknown_key_is_asked_for_once(
    ring: KeyRing, engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apikeys, "UNKNOWN_KEYS", 10)
    counter = Counter(engine)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            ring.verify(NEVER_MADE)
    with pytest.raises(Unauthenticated):
        ring.verify_cached(NEVER_MADE)
    assert counter.count == 1
    for number in range(1, 31):
        with pytest.raises(Unauthenticated):
            ring.verify(f"tr-{number:012x}-{'A' * 43}")
    assert len(ring._unknown) == 10
    clock.now += apikeys.UNKNOWN_SECONDS + 1
    with pytest.raises(Unauthenticated):
        ring.verify(f"tr-{30:012x}-{'A' * 43}")
    assert counter.count == 32


def test_threads_that_want_one_key_share_one_query(
    postgres_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do all that come while the database keeps the first one waiting."""
    monkeypatch.setattr(apikeys, "LOAD_SECONDS", 60.0)
    engine = make_engine(postgres_url)
    migrate(engine)
    key, plaintext = ApiKeys(engine).create("laptop", "acme")
    ring = KeyRing(engine, TTL, clock=clock)
    counter = Counter(engine)
    with ThreadPoolExecutor(8) as pool:
        with writing(engine) as connection:
            connection.execute(text("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"))
            asked = [pool.submit(ring.verify, plaintext) for _ in range(8)]
            while not ring._loads:
                time.sleep(0.001)
        assert [each.result() for each in asked] == [key] * 8
    assert counter.count == 1
    engine.dispose()


# ---------------------------------------------------------------------------------- when the database is away


def test_a_key_in_use_outlives_the_database_for_a_while(
    clock: Clock, postgres_server: PostgresServer
) -> None:
    with PostgresServer() as server:
        engine = make_engine(server.create_database())
        migrate(engine)
        key, plaintext = ApiKeys(engine).create("laptop", "acme")
        ring = KeyRing(engine, TTL, grace_seconds=60, clock=clock)
        ring.verify(plaintext)
        server.stop()

        clock.now += TTL + 1
        assert ring.verify(plaintext) == key
        assert ring.verify_cached(plaintext) == key, "while the database is known to be away, memory answers"
        with pytest.raises(Unauthenticated):
            ring.verify(plaintext[:16] + "A" * 43)
        with pytest.raises(Unavailable):
            ring.verify(NEVER_MADE)
        clock.now += 60
        with pytest.raises(Unavailable):
            ring.verify(plaintext)

        server.start()
        clock.now += apikeys.RETRY_SECONDS + 0.1
        assert ring.verify(plaintext) == key
        with pytest.raises(Unauthenticated):
            ring.verify(NEVER_MADE)
        engine.dispose()


def test_a_database_that_hangs_keeps_nobody_waiting_for_long(
    postgres_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(postgres_url)
    migrate(engine)
    known, in_memory = ApiKeys(engine).create("laptop", "acme")
    _, not_yet = ApiKeys(engine).create("phone", "acme")
    ring = KeyRing(engine, TTL, clock=clock)
    ring.verify(in_memory)
    monkeypatch.setattr(apikeys, "LOAD_SECONDS", 0.2)
    clock.now += TTL + 1
    counter = Counter(engine)
    with writing(engine) as connection:
        connection.execute(text("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(Unavailable):
            ring.verify(not_yet)
        assert ring.verify(in_memory) == known
        clock.now += apikeys.RETRY_SECONDS + 0.1
        with pytest.raises(Unavailable):
            ring.verify(NEVER_MADE)
        assert counter.count == 1
    while ring._loading_since is not None:
        time.sleep(0.001)
    assert ring.verify(not_yet).name == "phone"
    engine.dispose()


# ---------------------------------------------------------------------------------------------- stream tokens


@pytest.fixture
def key(keys: ApiKeys) -> ApiKey:
    return keys.create("laptop", "acme")[0]


def test_a_stream_token_opens_its_completion_until_it_expires(ring: KeyRing, key: ApiKey) -> None:
    token = make_stream_token(key, "chatcmpl-1", 2000)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", token), "it goes into a URL as it is"
    assert check_stream_token(ring, token, "chatcmpl-1", 1999.9) == key
    for completion, now in (("chatcmpl-2", 1999), ("chatcmpl-1", 2000)):
        with pytest.raises(Unauthenticated):
            check_stream_token(ring, token, completion, now)


def test_a_stream_token_holds_its_bearer_to_the_end_user(ring: KeyRing, key: ApiKey) -> None:
    token = make_stream_token(key, "chatcmpl-1", 2000, end_user="adä")
    assert check_stream_token(ring, token, "chatcmpl-1", 1000).end_user == "adä"


def test_a_stream_token_is_revoked_with_its_key(
    ring: KeyRing, keys: ApiKeys, key: ApiKey, clock: Clock
) -> None:
    token = make_stream_token(key, "chatcmpl-1", 2000)
    check_stream_token(ring, token, "chatcmpl-1", 1000)
    keys.revoke(key.id)
    clock.now += TTL + 0.1
    with pytest.raises(Unauthenticated):
        check_stream_token(ring, token, "chatcmpl-1", 1000)


@given(data=st.data())
def test_a_stream_token_that_was_changed_is_refused(ring: KeyRing, key: ApiKey, data: st.DataObject) -> None:
    token = make_stream_token(key, "chatcmpl-1", 2000)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(
        st.sampled_from(string.ascii_letters + string.digits + "-_.").filter(lambda c: c != token[at])
    )
    with pytest.raises(Unauthenticated):
        check_stream_token(ring, token[:at] + other + token[at + 1 :], "chatcmpl-1", 1000)


@given(junk=st.text(max_size=60))
def test_what_is_not_a_stream_token_is_refused_quietly(ring: KeyRing, junk: str) -> None:
    with pytest.raises(Unauthenticated):
        check_stream_token(ring, junk, "chatcmpl-1", 1000)


def test_a_stream_token_of_another_key_is_refused(ring: KeyRing, keys: ApiKeys, key: ApiKey) -> None:
    """A bearer who knows a key of one tenant can't sign for another's."""
    other, _ = keys.create("intruder", "other")
    grant = make_stream_token(key, "chatcmpl-1", 2000).partition(".")[0]
    forged = ApiKey(key.id, key.tenant, key.name, other.hash, key.admin, key.created_ms, None)
    signature = make_stream_token(forged, "chatcmpl-1", 2000).partition(".")[2]
    with pytest.raises(TailraceError):
        check_stream_token(ring, f"{grant}.{signature}", "chatcmpl-1", 1000)
