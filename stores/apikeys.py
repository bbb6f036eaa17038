"""API keys, and the tokens that open one stream to a browser.

A key is ``tr-<12 hex>-<43 characters>``: a public part, which names its row, and a secret of 256 bits. Of a
secret that nobody can guess, a plain SHA-256 is enough to keep.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from threading import Lock, Thread

import msgspec
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from schemas.errors import InvalidRequest, TailraceError, Unauthenticated, Unavailable
from schemas.states import OnDisconnect
from schemas.tables import api_keys
from stores.sql import among, reading, writing

#: How long a key in use stays usable after its time in memory while the database is away, seconds.
GRACE_SECONDS = 900.0
#: How long a caller waits for the database, and how long it is left alone after it did not answer, seconds.
LOAD_SECONDS, RETRY_SECONDS = 3.0, 1.0
#: How many unknown key ids are remembered, and for how long, seconds.
UNKNOWN_KEYS, UNKNOWN_SECONDS = 4096, 10.0

#: The limits that a key may have, as columns.
LIMITS = ("rpm", "tpm", "concurrent", "queued", "queued_bytes", "budget_nano")
#: No limit is greater.
MOST = 2**53

_FORM = re.compile(r"tr-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
#: What is compared with where no row is, so that an unknown id takes the same path as a wrong secret.
_NO_HASH = hashlib.sha256(b"").hexdigest()


class ApiKey(msgspec.Struct, frozen=True):
    """A key's row. ``end_user`` comes with stream tokens: the one user whose completions the bearer may see."""

    id: str
    tenant: str
    name: str
    hash: str
    admin: bool
    created_ms: int
    revoked_ms: int | None
    on_disconnect: str | None = None  # for requests without the header of that name
    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    queued: int | None = None
    queued_bytes: int | None = None
    budget_nano: int | None = None
    end_user: str | None = None

    @property
    def limited(self) -> bool:
        return any(getattr(self, name) is not None for name in LIMITS)


class ApiKeys:
    """The keys in SQL. ``clock`` gives milliseconds since the epoch."""

    def __init__(
        self, engine: Engine, *, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._engine = engine
        self._clock = clock

    def create(
        self,
        name: str,
        tenant: str,
        admin: bool = False,
        *,
        on_disconnect: OnDisconnect | None = None,
        limits: Mapping[str, int | None] | None = None,
    ) -> tuple[ApiKey, str]:
        """The row of a new key, and the key itself, which can't be had again. ``limits`` by the names in LIMITS."""
        for field, value in (("name", name), ("tenant", tenant)):
            if not value.strip() or not value.isprintable():
                raise InvalidRequest(f"The {field} of a key must be printable text.", param=field)
        part = secrets.token_hex(6)
        plaintext = f"tr-{part}-{secrets.token_urlsafe(32)}"
        key = ApiKey(f"key_{part}", tenant, name, _hash(plaintext), admin, self._clock(), None, on_disconnect)
        key = msgspec.structs.replace(key, **_checked(limits or {}))
        row = {column.name: getattr(key, column.name) for column in api_keys.c}
        with writing(self._engine) as connection:
            connection.execute(insert(api_keys).values(row))
        return key, plaintext

    def list(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created_ms, api_keys.c.id)).all()
        return [ApiKey(*row) for row in rows]

    def get(self, id: str) -> ApiKey | None:
        """A key, a revoked one too."""
        with reading(self._engine) as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == id)).one_or_none()
        return None if row is None else ApiKey(*row)

    def in_use(self, ids: Collection[str]) -> dict[str, ApiKey]:
        """Those of the ids that are keys and not revoked."""
        statement = select(api_keys).where(among(api_keys.c.id), api_keys.c.revoked_ms.is_(None))
        with reading(self._engine) as connection:
            rows = connection.execute(statement, {"ids": [*ids]}).all()
        return {row.id: ApiKey(*row) for row in rows}

    def set_limits(self, id: str, limits: Mapping[str, int | None]) -> bool:
        """Change some limits, by the names in LIMITS; None takes one away. False where there is no such key in use."""
        change = update(api_keys).where(api_keys.c.id == id, api_keys.c.revoked_ms.is_(None))
        with writing(self._engine) as connection:
            return connection.execute(change.values(_checked(limits))).rowcount > 0

    def revoke(self, id: str) -> bool:
        """False where there is no such key in use."""
        mark = update(api_keys).where(api_keys.c.id == id, api_keys.c.revoked_ms.is_(None))
        with writing(self._engine) as connection:
            return connection.execute(mark.values(revoked_ms=self._clock())).rowcount > 0


class _Known(msgspec.Struct, frozen=True):
    key: ApiKey
    since: float  # when the database was asked for it


class KeyRing:
    """Checks keys, and remembers them for ``ttl_seconds``, so that the next request costs no SQL.

    A revoked key works for ``ttl_seconds`` more (twice that, while requests overlap). While the database is away one
    that was checked lately works for ``grace_seconds`` more, from memory and without waiting: from the first question
    that fails until one is answered, the database is asked beside. ``clock`` is monotonic, in seconds. Threads may
    share a ring.

    The database is asked by one thread at a time, for all the keys that callers wait for, so that a database
    that hangs costs a caller ``LOAD_SECONDS`` and the process one thread and one connection.
    """

    def __init__(
        self,
        engine: Engine,
        ttl_seconds: float,
        *,
        grace_seconds: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = ApiKeys(engine)
        self._ttl = ttl_seconds
        self._grace = grace_seconds
        self._clock = clock
        self._lock = Lock()
        self._known: dict[str, _Known] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._loads: dict[str, Future[ApiKey | None]] = {}
        self._loading_since: float | None = None
        self._away_until = float("-inf")
        self._failing = False

    def verify(self, plaintext: str) -> ApiKey:
        """The key's row. Raises Unauthenticated, or Unavailable where the database is needed and away."""
        id = _key_id(plaintext)
        found, key = self._remembered(id)
        return _match(key if found else self._ask(id), plaintext)

    def verify_cached(self, plaintext: str) -> ApiKey | None:
        """The same from memory, without blocking; None where ``verify`` would ask the database."""
        id = _key_id(plaintext)
        found, key = self._remembered(id)
        return _match(key, plaintext) if found else None

    def key(self, id: str) -> ApiKey:
        """The key in use with that id, for one who holds something that it signed. Raises as ``verify`` does."""
        found, key = self._remembered(id)
        key = key if found else self._ask(id)
        if key is None:
            raise _refused()
        return key

    def _remembered(self, id: str) -> tuple[bool, ApiKey | None]:
        """Whether memory has the answer, and the answer."""
        now = self._clock()
        known = self._known.get(id)
        if known is None:
            since = self._unknown.get(id)
            return since is not None and now - since <= UNKNOWN_SECONDS, None
        age = now - known.since
        trusted = self._ttl
        if self._failing or self._away(now):
            trusted += self._grace
            if self._ttl < age <= trusted:
                self._start_load(id)
        elif id in self._loads:
            trusted *= 2  # the answer is on its way to another caller; don't queue up for it
        return age <= trusted, known.key

    def _away(self, now: float) -> bool:
        since = self._loading_since
        return now < self._away_until or (since is not None and now - since > LOAD_SECONDS)

    def _ask(self, id: str) -> ApiKey | None:
        load = self._start_load(id)
        if load is not None:
            try:
                return load.result(LOAD_SECONDS)
            except TimeoutError:
                self._failing = True
                self._away_until = self._clock() + RETRY_SECONDS
            except SQLAlchemyError:
                pass  # _load has noted that the database is away
        found, key = self._remembered(id)
        if not found:
            raise Unavailable(
                "The database does not answer, so this API key can't be checked. Try again soon."
            )
        return key

    def _start_load(self, id: str) -> Future[ApiKey | None] | None:
        """None while the database is left alone."""
        with self._lock:
            now = self._clock()
            if self._away(now):
                return None
            load = self._loads.setdefault(id, Future())
            if self._loading_since is None:
                self._loading_since = now
                Thread(target=self._load, name="tailrace-keys", daemon=True).start()
            return load

    def _load(self) -> None:
        while True:
            with self._lock:
                ids = [*self._loads]
                now = self._clock()
                self._loading_since = now if ids else None
            if not ids:
                return
            try:
                found = self._keys.in_use(ids)
            except Exception as error:  # noqa: BLE001 - it is handed to the callers; this thread must go on
                with self._lock:
                    self._failing = True
                    self._away_until = self._clock() + RETRY_SECONDS
                    loads = [self._loads.pop(id) for id in ids]
                for load in loads:
                    load.set_exception(error)
                continue
            with self._lock:
                self._failing = False
                self._remember(ids, found, now)
                loads = [(self._loads.pop(id), found.get(id)) for id in ids]
            for load, key in loads:
                load.set_result(key)

    def _remember(self, ids: list[str], found: dict[str, ApiKey], now: float) -> None:
        for id in ids:
            self._unknown.pop(id, None)
            if id in found:
                self._known[id] = _Known(found[id], now)
            else:
                self._known.pop(id, None)
                self._unknown[id] = now
        while len(self._unknown) > UNKNOWN_KEYS:
            self._unknown.popitem(last=False)


def _checked(limits: Mapping[str, int | None]) -> dict[str, int | None]:
    for name, limit in limits.items():
        if limit is not None and not 1 <= limit <= MOST:
            raise InvalidRequest(f"The limit '{name}' of a key must be from 1 to {MOST}.", param=name)
    return dict(limits)


def _key_id(plaintext: str) -> str:
    parts = _FORM.fullmatch(plaintext)
    if parts is None:
        raise _refused()
    return f"key_{parts[1]}"


def _match(key: ApiKey | None, plaintext: str) -> ApiKey:
    right = hmac.compare_digest(_hash(plaintext), _NO_HASH if key is None else key.hash)
    if key is None or not right:
        raise _refused()
    return key


def _hash(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()


def _refused() -> Unauthenticated:
    return Unauthenticated(
        "The API key is not valid: make one with `tailrace keys create`, send it as `Authorization: Bearer KEY`."
    )


class _Grant(msgspec.Struct, frozen=True):
    c: str  # completion id
    k: str  # key id
    e: int  # end of its life, seconds since the epoch
    u: str | None  # end user


_grants: msgspec.json.Decoder[_Grant] = msgspec.json.Decoder(_Grant)


def make_stream_token(
    key: ApiKey, completion_id: str, expires_at: int, *, end_user: str | None = None
) -> str:
    """A token to read one completion's stream until ``expires_at`` (seconds since the epoch), or the key is revoked."""
    grant = _base64(msgspec.json.encode(_Grant(completion_id, key.id, expires_at, end_user)))
    return f"{grant}.{_sign(key, grant)}"


def check_stream_token(ring: KeyRing, token: str, completion_id: str, now: float) -> ApiKey:
    """The key that made the token, with the token's ``end_user``. Raises Unauthenticated; Unavailable as the ring."""
    grant, _, signature = token.partition(".")
    try:
        claim = _grants.decode(base64.urlsafe_b64decode(grant + "=" * (-len(grant) % 4)))
        if claim.c != completion_id or claim.e <= now:
            raise _refused_token()
        key = ring.key(claim.k)
    except (ValueError, Unauthenticated):
        raise _refused_token() from None
    if not hmac.compare_digest(_sign(key, grant).encode(), signature.encode(errors="replace")):
        raise _refused_token()
    return msgspec.structs.replace(key, end_user=claim.u)


def _sign(key: ApiKey, grant: str) -> str:
    return _base64(hmac.digest(key.hash.encode(), f"stream {grant}".encode(), "sha256"))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _refused_token() -> TailraceError:
    return Unauthenticated(
        "The stream token is not valid or has expired: ask for a new one with POST …/{id}/token.",
        code="invalid_stream_token",
    )
