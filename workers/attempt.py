"""One attempt at one generation: the provider's chunks into the log, from the first one or from where an earlier
attempt left off.

The reading side never waits for Redis as long as little is outstanding: what arrives while an append is in flight goes
out with the next one, so chunks share entries under load and go alone at a human pace.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from producers.work import Work, decode_work
from schemas.codec import BadChunk, ChunkEncoder, dumps
from schemas.errors import DeadlineExceeded, ProviderError, TailraceError
from schemas.providers import Provider, Providers, Target
from schemas.records import Accepted, Attempted, Usage, decode_record
from schemas.replay import Diverged, Replay, published_text, without_role
from stores.chunklog import ChunkLog
from stores.outcomes import Batch, Claim
from stores.scripts import Scripts
from workers.logwriter import Appender, Fenced, LogWriter
from workers.patience import Patience
from workers.permits import Gate
from workers.providers import Backends
from workers.providers.kind import DONE, Call, provider_error

#: How long the bytes after ``[DONE]`` are waited for, in seconds.
LAST_BYTES = 0.02
#: Bytes of text that count as one token where the provider reports no usage.
BYTES_PER_TOKEN = 4
#: No count of tokens is believed beyond this one.
MOST_TOKENS = 10**12


@dataclass(frozen=True, slots=True)
class Tools:
    """What all attempts of a process share."""

    scripts: Scripts
    providers: Providers
    backends: Backends
    appender: Appender
    gate: Gate


class Attempt:
    """``claim`` gives it the right to write, and says whom it asks; ``on_cancel`` is called when Redis says that a
    cancel is asked for, ``on_answer`` when the provider begins to answer.
    """

    def __init__(
        self,
        tools: Tools,
        claim: Claim,
        *,
        on_cancel: Callable[[], None],
        on_answer: Callable[[Attempt], None],
    ) -> None:
        self.claim = claim
        self.work: Work = decode_work(claim.request)
        record = decode_record(claim.info)
        assert isinstance(record, Accepted)
        self.record = record
        self.first = Target(record.provider, record.resolved_model)
        self.target = Target(*claim.target) if claim.target else self.first
        self.writer = LogWriter(tools.appender, claim, on_cancel=on_cancel)
        self.encoder = self._new_encoder()
        self.answered = False
        self._on_answer = on_answer
        self._tools = tools
        self._started = asyncio.get_running_loop().time()
        self._take: Callable[[bytes], Awaitable[list[bytes]]] | None = None
        self._replay: Replay | None = None
        self._heard: list[bytes] = []

    def published(self, rest: Batch) -> bool:
        """Whether any chunk is in the log, or in the ``rest`` that the writer has left for it."""
        return rest.first + rest.count > 0

    @property
    def age(self) -> float:
        """Seconds since the generation was first claimed."""
        return self.claim.waited_ms / 1000 + asyncio.get_running_loop().time() - self._started

    def past(self, state: str) -> Attempted:
        """The record of this attempt, where it does not end its generation."""
        return Attempted(
            number=self.claim.attempt,
            provider=self.target.provider,
            model=self.target.model,
            state=state,
            usage=self.usage(),
        )

    def usage(self) -> Usage:
        """What the provider reported; else an estimate, marked as one."""
        encoder, reported = self.encoder, self.encoder.usage
        if reported is None:
            if encoder.text_bytes == 0 and not encoder.finish_reasons:
                return Usage()
            prompt = len(dumps(self.work.params.get("messages", [])))
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

    @property
    def provider(self) -> Provider:
        """Raises KeyError where this worker's providers.toml doesn't have it."""
        return self._tools.providers.providers[self.target.provider]

    async def time_left(self) -> float | None:
        """Seconds to the generation's deadline by Redis's clock; None without one. Where others may share it, a
        deadline is the completion's alone, which the reaper ends."""
        if self.record.deadline_ms is None or self.record.cache == "miss":
            return None
        redis = self._tools.scripts.redis
        now = await redis.now_ms(redis.partition(self.record.generation))
        return (self.record.deadline_ms - now) / 1000

    async def stream(self) -> None:
        """Returns when the answer is whole. Raises ProviderError, DeadlineExceeded, Fenced, Behind, NoPermit and
        Unavailable."""
        backend = self._tools.backends[self.target.provider]
        provider = self.provider
        left = await self.time_left()
        if left is not None and left <= 0:
            raise DeadlineExceeded("The deadline passed before the request was sent to a provider.")
        params = self.work.params
        if self.claim.skip:
            self._take = self._take_restarting
        elif self.claim.next > self.claim.base:
            params = await self._go_on(provider)
        else:
            self.writer.begin(self.encoder, base=self.claim.next)
        call = Call(params, self.target.model, self.work.end_user)
        with Patience(provider, left, on_first=self._first) as patience:
            try:
                stream = backend.stream(call)
                async with self._tools.gate.opened(self, provider, stream) as pieces:
                    await self._read(provider, patience, pieces)
            except asyncio.CancelledError:
                if patience.expired is not None:
                    raise patience.error() from None
                raise

    def _first(self) -> None:
        self.answered = True
        self._on_answer(self)

    async def _read(self, provider: Provider, patience: Patience, pieces: Any) -> None:
        done = False
        writer = self.writer
        try:
            async for events in pieces:
                patience.heard()
                items: list[bytes] = []
                try:
                    for data in events:
                        if data == DONE:
                            done = True
                            break
                        if self._take is not None:
                            items += await self._take(data)
                            continue
                        item = self.encoder.encode(data)
                        if item is not None:
                            items.append(item)
                except BadChunk as error:
                    raise ProviderError(
                        f"The provider '{provider.name}' sent a chunk that is not usable: {error}",
                        code="provider_bad_chunk",
                    ) from error
                finally:  # also what came before a chunk that is none
                    if items:
                        writer.put(items)
                if self.encoder.error is not None:
                    raise provider_error(provider.name, self.encoder.error)
                if done:
                    await _drain(pieces)
                    break
                if writer.full:
                    await writer.settled()
        except ProviderError as error:
            # A connection that closes without ceremony after the whole answer has taken nothing with it.
            if not (error.code == "provider_truncated" and self.encoder.whole(self.work.choices)):
                raise
        finally:
            with contextlib.suppress(Exception):
                await pieces.aclose()
        await self._ended(provider, done)

    async def _ended(self, provider: Provider, done: bool) -> None:
        """The provider has said all. Raises ProviderError where that is no whole answer."""
        if done and not self.encoder.observed:
            raise ProviderError(f"The provider '{provider.name}' sent no chunk.", code="provider_empty")
        if not done and not self.encoder.whole(self.work.choices):
            raise ProviderError(
                f"The provider '{provider.name}' broke its stream off before the answer was whole.",
                code="provider_truncated",
            )
        if self._replay is not None:
            try:
                self._replay.finish()
            except Diverged:
                self.writer.put(await self._abandon())

    # Going on after an earlier attempt

    async def _go_on(self, provider: Provider) -> dict[str, Any]:
        """Decide how, and say what the provider is to be asked."""
        log = ChunkLog(self._tools.scripts.redis)
        items = [
            item
            async for entries in log.pages(self.claim.generation, self.claim.base - 1)
            for entry in entries
            for item in entry.items
        ]
        params = self.work.params
        if params.get("temperature") == 0:
            self._replay = Replay(self.claim.head, items)
            self._take = self._take_replaying
        elif provider.supports_prefill and (said := published_text(self.claim.head, items)):
            params = _prefilled(params, said, len(items))
            self._take = self._take_prefilled
        else:
            self._take = self._take_restarting
            return params
        self.encoder = ChunkEncoder(self.claim.head)
        self.writer.begin(self.encoder)
        return params

    async def _take_restarting(self, data: bytes) -> list[bytes]:
        """The first chunk: what was published before is abandoned only when there is something in its place."""
        item = self.encoder.encode(data)
        if item is None:
            return []
        await self._restart()
        return [item]

    async def _take_replaying(self, data: bytes) -> list[bytes]:
        """Nothing while the attempt repeats what is published, then what goes beyond."""
        replay = self._replay
        assert replay is not None
        self._heard.append(data)
        chunk = self.encoder.parse(data)
        if chunk is None:
            return []
        self.encoder.observe(chunk)
        try:
            items = [self.encoder.encode_chunk(rest, observe=False) for rest in replay.feed(chunk)]
        except Diverged:
            return await self._abandon()
        if replay.caught_up:
            self._take = self._replay = None
            self._heard.clear()
        return items

    async def _take_prefilled(self, data: bytes) -> list[bytes]:
        """The rest of the text, without another beginning."""
        chunk = self.encoder.parse(data)
        if chunk is None:
            return []
        self.encoder.observe(chunk)
        rest = without_role(chunk)
        if rest is None:
            return []
        if rest.get("choices"):  # some providers begin with a chunk that has none
            self._take = None
        return [self.encoder.encode_chunk(rest, observe=False)]

    async def _abandon(self) -> list[bytes]:
        """The attempt says something else than what is published: all that it said so far, after a restart."""
        self._replay = None
        self.encoder = self._new_encoder()
        items = [item for data in self._heard if (item := self.encoder.encode(data)) is not None]
        self._heard.clear()
        await self._restart()
        return items

    def _new_encoder(self) -> ChunkEncoder:
        return ChunkEncoder(
            by=None if self.target == self.first else (self.target.provider, self.target.model)
        )

    async def _restart(self) -> None:
        self._take = None
        base = await self._tools.scripts.restart(self.claim.generation, self.claim.fence)
        if base is None:
            raise Fenced
        self.writer.begin(self.encoder, base=base)


def _prefilled(params: dict[str, Any], said: str, chunks: int) -> dict[str, Any]:
    """The request with the answer's beginning; a token limit is lowered by one for each published chunk."""
    messages: list[Any] = [*params.get("messages", []), {"role": "assistant", "content": said}]
    limits = {
        name: max(1, params[name] - chunks)
        for name in ("max_tokens", "max_completion_tokens")
        if params.get(name) is not None
    }
    return params | {"messages": messages} | limits


async def _drain(pieces: Any) -> None:
    """Read the end of the response, so that its connection can serve the next one; nearly always it is there."""
    with contextlib.suppress(TimeoutError, TailraceError):
        async with asyncio.timeout(LAST_BYTES):
            async for _ in pieces:
                pass


def _count(values: Any, name: str) -> int:
    value = cast("dict[str, Any]", values).get(name) if isinstance(values, dict) else None
    return min(value, MOST_TOKENS) if type(value) is int and value >= 0 else 0
