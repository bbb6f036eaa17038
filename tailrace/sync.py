"""The same client for programs without asyncio: it runs on a private thread, and each call waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeVar

from tailrace.batches import Batch, Batches, Files
from tailrace.client import RETRIES, Client
from tailrace.handles import Chunk, Completion, Status

T = TypeVar("T")


class _End:
    """Says that an iteration is over; StopAsyncIteration can't cross a future."""


class _Loop:
    """An event loop on a daemon thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tailrace-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``; an exception in the waiting thread (Ctrl-C) cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T]) -> Generator[T]:
        turn = asyncio.Lock()  # a cancelled step (Ctrl-C) is still closing its connection when close() comes

        async def step() -> T | _End:
            async with turn:
                try:
                    return await anext(source)
                except StopAsyncIteration:
                    return _End()

        async def close() -> None:
            async with turn:
                await source.aclose()

        try:
            while not isinstance(item := self.run(step()), _End):
                yield item
        finally:
            if self._loop.is_running():
                self.run(close())

    def close(self) -> None:
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class SyncCompletion:
    """The handle of an accepted completion; each method is that of ``Completion``, and waits."""

    def __init__(self, completion: Completion, loop: _Loop) -> None:
        self.id = completion.id
        self._completion = completion
        self._loop = loop

    def __repr__(self) -> str:
        return f"SyncCompletion({self.id!r})"

    def retrieve(self) -> dict[str, Any]:
        return self._loop.run(self._completion.retrieve())

    def status(self) -> Status:
        return self._loop.run(self._completion.status())

    def chunks(self, after: int = -1) -> Generator[Chunk]:
        return self._loop.iterate(self._completion.chunks(after))

    def result(self) -> dict[str, Any]:
        return self._loop.run(self._completion.result())

    def text(self) -> str:
        return self._loop.run(self._completion.text())

    def cancel(self) -> Status:
        return self._loop.run(self._completion.cancel())

    def delete(self) -> None:
        self._loop.run(self._completion.delete())


class SyncBatch:
    """The handle of a batch; each method is that of ``Batch``, and waits."""

    def __init__(self, batch: Batch, loop: _Loop) -> None:
        self.id = batch.id
        self._batch = batch
        self._loop = loop

    def __repr__(self) -> str:
        return f"SyncBatch({self.id!r})"

    def retrieve(self) -> dict[str, Any]:
        return self._loop.run(self._batch.retrieve())

    def watch(self) -> Generator[dict[str, Any]]:
        return self._loop.iterate(self._batch.watch())

    def wait(self) -> dict[str, Any]:
        return self._loop.run(self._batch.wait())

    def cancel(self) -> dict[str, Any]:
        return self._loop.run(self._batch.cancel())

    def retry(self, *, errors: Sequence[str] = (), idempotency_key: str | None = None) -> SyncBatch:
        made = self._loop.run(self._batch.retry(errors=errors, idempotency_key=idempotency_key))
        return SyncBatch(made, self._loop)

    def failures(self) -> Sequence[dict[str, Any]]:
        return self._loop.run(self._batch.failures())

    def results(self) -> Generator[bytes]:
        return self._loop.iterate(self._batch.results())

    def save(self, path: Path | str) -> None:
        self._loop.run(self._batch.save(path))


class SyncBatches:
    """Where batches are submitted, found again and listed; see ``Batches``."""

    def __init__(self, batches: Batches, loop: _Loop) -> None:
        self._batches = batches
        self._loop = loop

    def submit(self, file: BinaryIO | Path | str, **settings: Any) -> SyncBatch:
        return SyncBatch(self._loop.run(self._batches.submit(file, **settings)), self._loop)

    def create(self, input_file_id: str, **settings: Any) -> SyncBatch:
        return SyncBatch(self._loop.run(self._batches.create(input_file_id, **settings)), self._loop)

    def batch(self, id: str) -> SyncBatch:
        return SyncBatch(self._batches.batch(id), self._loop)

    def list(self, *, limit: int | None = None) -> Generator[dict[str, Any]]:
        return self._loop.iterate(self._batches.list(limit=limit))

    def estimate(self, input_file_id: str, *, sample: int = 1000) -> dict[str, Any]:
        return self._loop.run(self._batches.estimate(input_file_id, sample=sample))


class SyncFiles:
    """The files of the server, by id; see ``Files``."""

    def __init__(self, files: Files, loop: _Loop) -> None:
        self._files = files
        self._loop = loop

    def upload(
        self,
        file: BinaryIO | Path | str,
        *,
        purpose: str = "batch",
        name: str | None = None,
        expires_after: int | None = None,
    ) -> dict[str, Any]:
        return self._loop.run(
            self._files.upload(file, purpose=purpose, name=name, expires_after=expires_after)
        )

    def retrieve(self, id: str) -> dict[str, Any]:
        return self._loop.run(self._files.retrieve(id))

    def delete(self, id: str) -> None:
        self._loop.run(self._files.delete(id))

    def download(self, id: str, file: BinaryIO) -> int:
        return self._loop.run(self._files.download(id, file))

    def list(self, *, purpose: str | None = None) -> Generator[dict[str, Any]]:
        return self._loop.iterate(self._files.list(purpose=purpose))


class SyncClient:
    """A connection to one Tailrace server; used with ``with``, or closed by ``close()``. See ``Client``."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        end_user: str | None = None,
        timeout: float = 30.0,
        retries: int = RETRIES,
        home: Path | str | None = None,
    ) -> None:
        self._client = Client(url, api_key, end_user=end_user, timeout=timeout, retries=retries, home=home)
        self.url = self._client.url
        self._loop = _Loop()
        self.files = SyncFiles(self._client.files, self._loop)
        self.batches = SyncBatches(self._client.batches, self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._loop.run(self._client.aclose())
        self._loop.close()

    def submit(
        self,
        *,
        idempotency_key: str | None = None,
        sample: int | None = None,
        cache_control: str | None = None,
        **request: Any,
    ) -> SyncCompletion:
        submitted = self._client.submit(
            idempotency_key=idempotency_key, sample=sample, cache_control=cache_control, **request
        )
        return SyncCompletion(self._loop.run(submitted), self._loop)

    def completion(self, id: str) -> SyncCompletion:
        return SyncCompletion(self._client.completion(id), self._loop)

    def list(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Literal["asc", "desc"] | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        status: Status | None = None,
    ) -> Generator[dict[str, Any]]:
        return self._loop.iterate(
            self._client.list(
                limit=limit, after=after, order=order, model=model, metadata=metadata, status=status
            )
        )

    def models(self) -> Sequence[dict[str, Any]]:
        return self._loop.run(self._client.models())

    def usage(
        self, *, start_time: int, end_time: int | None = None, group_by: Sequence[str] = ()
    ) -> dict[str, Any]:
        return self._loop.run(self._client.usage(start_time=start_time, end_time=end_time, group_by=group_by))

    def cache(self) -> dict[str, Any]:
        return self._loop.run(self._client.cache())

    def purge_cache(self, *, model: str | None = None, older_than: int | None = None) -> dict[str, Any]:
        return self._loop.run(self._client.purge_cache(model=model, older_than=older_than))
