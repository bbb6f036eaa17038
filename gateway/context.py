"""What the gateway's handlers share: made at start-up, handed to every handler."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
from sqlalchemy import Engine

from consumers.follow import Followers
from consumers.lookup import Finder
from producers.batches import BatchMaker
from producers.catalog import Catalog
from producers.publish import Publisher, make_publisher
from producers.submit import Submitter
from schemas.settings import Settings
from stores.admission import Admission
from stores.apikeys import KeyRing
from stores.batches import Batches
from stores.books import Books
from stores.cache import Cache, CacheLimits
from stores.config import read_providers
from stores.files import Files
from stores.flights import Flights
from stores.keylimits import KeyLimits
from stores.migration import check_schema
from stores.redis import Redis
from stores.scripts import Scripts
from stores.sql import make_engine
from stores.storage import Storage, open_storage
from stores.usage import UsageReports

#: The longest statement of a request, in seconds.
STATEMENT_SECONDS = 5.0
#: Threads for what waits for the database, more than it has connections: while it is silent each of them waits for some
#: seconds, and a request that needs nothing but a key must find one.
THREADS = 64
#: Threads for the bytes of files, which may wait for a slow storage.
FILE_THREADS = 16
#: How long these may take to end with the process, in seconds.
FILES_END = 2.0


@dataclass(frozen=True)
class Context:
    settings: Settings
    engine: Engine
    redis: Redis
    scripts: Scripts
    books: Books
    usage: UsageReports
    cache: Cache
    files: Files
    storage: Storage
    file_threads: ThreadPoolExecutor
    batches: Batches
    batch_maker: BatchMaker
    flights: Flights
    keys: KeyRing
    catalog: Catalog
    publisher: Publisher
    submitter: Submitter
    admission: Admission
    watching: asyncio.Task[None]
    key_limits: KeyLimits
    followers: Followers
    finder: Finder
    http: httpx.AsyncClient

    async def close(self) -> None:
        self.watching.cancel()
        await self.followers.close()
        await self.http.aclose()
        await self.publisher.close()
        self.redis.close()
        self.engine.dispose()
        self._end_file_threads()

    def _end_file_threads(self) -> None:
        """What was given up a moment ago is being removed, and uvicorn ends the process by a signal, which waits for no
        thread. Nor is a storage that hangs waited for. Blocks: nothing else is left to do."""
        ending = threading.Thread(target=self.file_threads.shutdown, name="end of files", daemon=True)
        ending.start()
        ending.join(FILES_END)


async def open_context(settings: Settings) -> Context:
    """Raises ConfigurationError and Unavailable: each with one line that says what to change."""
    providers = read_providers(settings)
    storage = open_storage(settings)
    storage.prepare()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "gateway"))
    engine = make_engine(settings.database_url, statement_seconds=STATEMENT_SECONDS)
    check_schema(engine)
    redis = await Redis.open(settings.redis_url, partitions=settings.partitions)
    books, files, batches = Books(engine), Files(engine), Batches(engine)
    http = httpx.AsyncClient(timeout=5.0)
    catalog = Catalog(providers, http)
    publisher = make_publisher(settings)
    followers = Followers(redis, books)
    admission = Admission(redis, ledger_limit=settings.ledger_limit)
    await admission.look()
    return Context(
        settings=settings,
        engine=engine,
        redis=redis,
        scripts=Scripts(redis),
        books=books,
        usage=UsageReports(engine),
        cache=Cache(engine),
        files=files,
        storage=storage,
        file_threads=ThreadPoolExecutor(FILE_THREADS, "files"),
        batches=batches,
        batch_maker=BatchMaker(redis, batches, files, storage),
        flights=Flights(redis),
        keys=KeyRing(engine, settings.key_cache_seconds, grace_seconds=settings.key_grace_seconds),
        catalog=catalog,
        publisher=publisher,
        submitter=Submitter(redis, catalog, publisher, books, CacheLimits.of(settings)),
        admission=admission,
        watching=asyncio.create_task(admission.watch()),
        key_limits=KeyLimits(redis, books, window_ms=int(settings.limit_window_seconds * 1000)),
        followers=followers,
        finder=followers.finder,
        http=http,
    )
