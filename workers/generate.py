"""One attempt at one generation: claim, call the provider, append its chunks, end.

The reading side never waits for Redis as long as little is outstanding: what arrives while an append is in flight goes
out with the next one, so chunks share entries under load and go alone at a human pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, cast

import httpx

from producers.catalog import auth_headers
from producers.submit import Work, decode_work
from schemas.codec import BadChunk, ChunkEncoder, dumps
from schemas.errors import DeadlineExceeded, Failure, ProviderError, TailraceError
from schemas.providers import Provider, Providers, upstream_body
from schemas.records import Accepted, Ended, Usage, decode_record
from schemas.states import State
from stores.rows import storable
from stores.scripts import Claim, EndResult, NotClaimed, Scripts
from workers.logwriter import Appender, Fenced, LogWriter
from workers.upstream import DONE, Patience, make_transport, open_stream, provider_error

log = logging.getLogger("tailrace.worker")

#: How long the bytes after ``[DONE]`` are waited for, in seconds.
LAST_BYTES = 0.02
#: Bytes of text that count as one token where the provider reports no usage.
BYTES_PER_TOKEN = 4
#: No count of tokens is believed beyond this one, and no finish reason is kept beyond this length.
MOST_TOKENS, FINISH_REASON_LENGTH = 10**12, 100


class Generator:
    """Runs attempts. One for a worker process; everything here happens on its loop.

    ``held`` maps the generations that this process has a lease on to their attempt; the control thread renews them.
    """

    def __init__(self, scripts: Scripts, providers: Providers, *, worker: str, lease_ms: int) -> None:
        self._scripts = scripts
        self._providers = providers
        self._worker = worker
        self._lease_ms = lease_ms
        self._transport: httpx.AsyncBaseTransport = make_transport()
        self._appender = Appender(scripts)
        self.held: dict[str, int] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, Failure | None] = {}

    async def run(self, generation: str, queue: str, seq: int) -> str:
        """Claim a generation and carry one attempt to its end. Returns what became of it, for Celery's view."""
        claimed = await self._scripts.claim(
            generation, queue=queue, worker=self._worker, lease_ms=self._lease_ms, seq=seq
        )
        if isinstance(claimed, NotClaimed):
            return claimed.reason
        self.held[generation] = claimed.attempt
        try:
            return await self._attempt(claimed)
        except Fenced:
            log.warning("%s: attempt %d was fenced off", generation, claimed.attempt)
            return "fenced"
        finally:
            self.held.pop(generation, None)

    def cancel(self, generation: str, attempt: int, failure: Failure | None = None) -> None:
        """Stop a stream: it ends as cancelled, or as failed with ``failure``."""
        task = self._streams.get(generation)
        if task is not None and self.held.get(generation) == attempt and generation not in self._cancelled:
            self._cancelled[generation] = failure
            task.cancel()

    def lost(self, generation: str, attempt: int) -> None:
        """The lease is another's by now: stop, and write nothing."""
        if self.held.get(generation) == attempt:
            self.held.pop(generation, None)
            task = self._streams.get(generation)
            if task is not None:
                task.cancel()

    def stop(self, failure: Failure) -> None:
        """End every stream as failed: the process is to stop."""
        for generation, attempt in list(self.held.items()):
            self.cancel(generation, attempt, failure)

    async def close(self) -> None:
        await self._transport.aclose()

    async def _attempt(self, claim: Claim) -> str:
        work = decode_work(claim.request)
        record = decode_record(claim.info)
        assert isinstance(record, Accepted)
        encoder = ChunkEncoder()
        writer = LogWriter(
            self._appender, claim, encoder, on_cancel=lambda: self.cancel(claim.generation, claim.attempt)
        )
        state, failure = State.FAILED, None
        if claim.next > 0:
            # An earlier attempt published chunks and lost its lease; two attempts are never spliced.
            failure = Failure("interrupted", "The worker that streamed this answer was lost.", status=502)
        else:
            task = asyncio.create_task(self._stream(work, record, encoder, writer))
            self._streams[claim.generation] = task
            try:
                await task
                state = State.COMPLETED
            except asyncio.CancelledError:
                if claim.generation not in self._cancelled:
                    if self.held.get(claim.generation) != claim.attempt:
                        raise Fenced from None
                    raise
                failure = self._cancelled[claim.generation]
                state = State.CANCELLED if failure is None else State.FAILED
            except Fenced:
                raise
            except TailraceError as error:
                failure = error.failure()
            except Exception as error:
                log.exception("%s: attempt %d failed", claim.generation, claim.attempt)
                failure = Failure("internal_error", f"The worker failed: {type(error).__name__}.", status=500)
            finally:
                self._streams.pop(claim.generation, None)
                self._cancelled.pop(claim.generation, None)
        ended = Ended(
            generation=claim.generation,
            state=state.value,
            provider=record.provider,
            model=record.resolved_model,
            usage=_usage(encoder, work),
            failure=failure,
            finish_reasons=[
                storable(encoder.finish_reasons[i][:FINISH_REASON_LENGTH])
                for i in sorted(encoder.finish_reasons)
            ],
        )
        batch = await writer.rest()
        if await self._scripts.end(ended, claim.attempt, batch) not in (EndResult.ENDED, EndResult.REPEATED):
            raise Fenced
        return state.value

    async def _stream(self, work: Work, record: Accepted, encoder: ChunkEncoder, writer: LogWriter) -> None:
        provider = self._provider(record)
        body = upstream_body(
            work.params, provider=provider, model=record.resolved_model, end_user=work.end_user
        )
        with Patience(provider, await self._time_left(record)) as patience:
            try:
                async with open_stream(self._transport, provider, auth_headers(provider), body) as pieces:
                    await self._read(provider, work, encoder, writer, patience, pieces)
            except asyncio.CancelledError:
                if patience.expired is not None:
                    raise patience.error() from None
                raise

    async def _time_left(self, record: Accepted) -> float | None:
        """Seconds to the request's deadline by Redis's clock; None without one. Raises DeadlineExceeded past it."""
        if record.deadline_ms is None:
            return None
        redis = self._scripts.redis
        seconds, micros = await redis.command(redis.partition(record.generation), "TIME")
        left = record.deadline_ms / 1000 - (int(seconds) + int(micros) / 1e6)
        if left <= 0:
            raise DeadlineExceeded("The deadline passed before the request was sent to a provider.")
        return left

    async def _read(
        self,
        provider: Provider,
        work: Work,
        encoder: ChunkEncoder,
        writer: LogWriter,
        patience: Patience,
        pieces: Any,
    ) -> None:
        done = False
        try:
            async for events in pieces:
                patience.heard()
                items: list[bytes] = []
                try:
                    for data in events:
                        if data == DONE:
                            done = True
                            break
                        item = self._encode(provider, encoder, data)
                        if item is not None:
                            items.append(item)
                finally:  # also what came before a chunk that is none
                    if items:
                        writer.put(items)
                if encoder.error is not None:
                    raise provider_error(provider.name, encoder.error)
                if done:
                    await _drain(pieces)
                    if not encoder.started:
                        raise ProviderError(
                            f"The provider '{provider.name}' sent no chunk.", code="provider_empty"
                        )
                    return
                if writer.full:
                    await writer.settled()
        except ProviderError as error:
            # A connection that closes without ceremony after the whole answer has taken nothing with it.
            if not (error.code == "provider_truncated" and encoder.whole(work.choices)):
                raise
        finally:
            with contextlib.suppress(Exception):
                await pieces.aclose()
        if not encoder.whole(work.choices):
            raise ProviderError(
                f"The provider '{provider.name}' broke its stream off before the answer was whole.",
                code="provider_truncated",
            )

    @staticmethod
    def _encode(provider: Provider, encoder: ChunkEncoder, data: bytes) -> bytes | None:
        try:
            return encoder.encode(data)
        except BadChunk as error:
            raise ProviderError(
                f"The provider '{provider.name}' sent a chunk that is not usable: {error}",
                code="provider_bad_chunk",
            ) from error

    def _provider(self, record: Accepted) -> Provider:
        provider = self._providers.providers.get(record.provider)
        if provider is None:
            raise ProviderError(
                f"The worker's providers.toml has no provider '{record.provider}': give all processes the same file.",
                code="provider_unknown",
            )
        return provider


async def _drain(pieces: Any) -> None:
    """Read the end of the response, so that its connection can serve the next one; nearly always it is there."""
    with contextlib.suppress(TimeoutError, TailraceError):
        async with asyncio.timeout(LAST_BYTES):
            async for _ in pieces:
                pass


def _usage(encoder: ChunkEncoder, work: Work) -> Usage:
    """What the provider reported; else an estimate, marked as one."""
    reported = encoder.usage
    if reported is None:
        if encoder.text_bytes == 0 and not encoder.finish_reasons:
            return Usage()
        prompt = len(dumps(work.params.get("messages", [])))
        return Usage(
            prompt_tokens=max(1, prompt // BYTES_PER_TOKEN),
            completion_tokens=-(-encoder.text_bytes // BYTES_PER_TOKEN),
            estimated=True,
        )
    return Usage(
        prompt_tokens=_count(reported, "prompt_tokens"),
        completion_tokens=_count(reported, "completion_tokens"),
        reasoning_tokens=_count(reported.get("completion_tokens_details"), "reasoning_tokens"),
        cached_tokens=_count(reported.get("prompt_tokens_details"), "cached_tokens"),
    )


def _count(values: Any, name: str) -> int:
    value = cast("dict[str, Any]", values).get(name) if isinstance(values, dict) else None
    return min(value, MOST_TOKENS) if type(value) is int and value >= 0 else 0
