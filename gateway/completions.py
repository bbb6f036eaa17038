"""Asking for a completion: the seed's streaming endpoint and OpenAI's, with resumption."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect

from consumers.follow import Follow, collect, failure_of, renderer_for
from consumers.lookup import Completion, from_result
from consumers.present import status_body
from consumers.reader import LogReader
from gateway.caller import authenticate, caller_with, named, owned
from gateway.http import Accepted, Call, Headers, Reply
from gateway.leaving import cancels, leave, unless_left
from gateway.streaming import EventStream, OpenAIFraming, SeedFraming
from producers.submit import Caller, Submission
from schemas.caching import cache_policy
from schemas.errors import GenerationFailed, NotFound, TailraceError
from schemas.headers import cache_directives, integer
from schemas.request import ChatCompletionRequest, parse_request
from schemas.states import Queue, State
from stores.keylimits import Ticket


class Asked(msgspec.Struct, frozen=True):
    """What a POST asks for beside its body."""

    caller: Caller
    after: int | None
    completion_id: str | None
    idempotency_key: str | None
    sample: int | None
    directives: dict[str, str]  # of Cache-Control
    cancels: bool  # when the client leaves
    ticket: Ticket | None  # of a key with limits

    @property
    def headers(self) -> Headers:
        """What is left of the key's limits."""
        return {} if self.ticket is None else self.ticket.headers


async def read_headers(call: Call) -> Asked:
    """Raises Unauthenticated and InvalidRequest."""
    key = await authenticate(call)
    caller = caller_with(call, key)
    after: int | None = None
    for name in ("x-last-chunk-index", "last-event-id"):
        value = call.header(name)
        if value is not None:
            after = integer(value, name=name, least=-1)
            break
    sample = call.header("x-sample")
    return Asked(
        caller,
        after,
        named(call, "x-completion-id"),
        named(call, "idempotency-key"),
        None if sample is None else integer(sample, name="x-sample", least=0),
        cache_directives(call.header("cache-control")),
        cancels(call, key),
        Ticket(call.context.key_limits, key) if key.limited else None,
    )


async def stream(call: Call) -> Any:
    """POST …/chat/completions/stream: the seed's endpoint. 200 on acceptance; whatever fails later is an event."""
    asked = await read_headers(call)
    request = parse_request(await call.body())
    follow = await (accept if asked.after is None else resume)(call, asked, request)
    headers = follow_headers(follow) | asked.headers
    return EventStream(follow, SeedFraming(), headers, cancels=asked.cancels)


async def create(call: Call) -> Any:
    """POST …/chat/completions: OpenAI's endpoint: streamed, whole, or at once with ``Prefer: respond-async``."""
    asked = await read_headers(call)
    request = parse_request(await call.body())
    if asked.after is not None:
        follow = await resume(call, asked, request)
    elif "respond-async" in (call.header("prefer") or "").lower():
        return await respond_async(call, asked, request)
    else:
        follow = await accept(call, asked, request)
    headers = follow_headers(follow) | asked.headers
    try:
        if request.stream:
            usage = bool(request.stream_options and request.stream_options.get("include_usage"))
            return await open_stream(call, follow, headers, OpenAIFraming(usage=usage), cancels=asked.cancels)
        answer = collect(follow, renderer_for(follow.completion))
        return Reply(await unless_left(call, answer), headers=headers)
    except TailraceError as error:
        raise Accepted(error, headers) from error
    except ClientDisconnect:
        if asked.cancels:
            await leave(call, follow.completion.id)
        raise


async def open_stream(
    call: Call, follow: Follow, headers: Headers, framing: OpenAIFraming, *, cancels: bool
) -> EventStream:
    """Headers wait for the first chunk or a failure, for a while: a failure before any chunk keeps its HTTP status."""
    if follow.at_hand:
        return EventStream(follow, framing, headers)
    first = asyncio.create_task(follow.next())
    try:
        with contextlib.suppress(TimeoutError):
            entries = await unless_left(call, first, timeout=call.context.settings.header_hold_seconds)
            failure = failure_of(follow.end) if follow.end is not None else None
            if failure is not None and not any(entry.items for entry in entries):
                raise GenerationFailed(failure)
    except BaseException:
        first.cancel()
        follow.close()
        raise
    return EventStream(follow, framing, headers, first=first, cancels=cancels)


async def respond_async(call: Call, asked: Asked, request: ChatCompletionRequest) -> Reply:
    submission = await submit(call, asked, request, None)
    found = await owned(call, asked.caller, submission.id)
    headers = (
        completion_headers(found)
        | asked.headers
        | {
            "preference-applied": "respond-async",
            "location": f"{call.request.scope['path']}/{found.id}",
        }
    )
    return Reply(status_body(found), 202, headers)


async def accept(call: Call, asked: Asked, request: ChatCompletionRequest) -> Follow:
    """Submit and follow: subscribed before any worker hears of it, so that nothing has to be read back."""
    followers = call.context.followers
    readers: list[LogReader] = []

    async def prepare(generation: str) -> None:
        readers.append(await followers.prepare(generation))

    try:
        submission = await submit(call, asked, request, prepare)
    except BaseException:
        for reader in readers:
            reader.close()
        raise
    if submission.fresh and readers:
        return followers.attach(readers[0], new_completion(asked, request, submission))
    for reader in readers:
        reader.close()
    shared = submission.shared
    if shared is not None and shared.result is not None and shared.result.log is not None:
        follow = followers.replay(from_result(shared.record, shared.result), shared.result.log)
        follow.age = shared.age_ms // 1000
        return follow
    return await followers.open(await owned(call, asked.caller, submission.id))


async def submit(call: Call, asked: Asked, request: ChatCompletionRequest, prepare: Any) -> Submission:
    await admit(call, asked)
    return await call.context.submitter.submit(
        request,
        asked.caller,
        sample=asked.sample,
        policy=cache_policy(
            asked.directives,
            temperature=request.temperature,
            sample=asked.sample,
            store=request.store is not False,
        ),
        idempotency_key=asked.idempotency_key,
        prepare=prepare,
        ticket=asked.ticket,
    )


async def admit(call: Call, asked: Asked) -> None:
    """Raises Unavailable while nothing new is let in. A retry of what was accepted is not new."""
    admission = call.context.admission
    if admission.closed is not None and asked.idempotency_key is not None:
        with contextlib.suppress(NotFound):
            known = await call.context.submitter.by_idempotency_key(asked.caller, asked.idempotency_key)
            if await call.context.finder.find(known) is not None:
                return
    admission.check()


async def resume(call: Call, asked: Asked, request: ChatCompletionRequest) -> Follow:
    """The stream that a POST with ``x-last-chunk-index`` is to go on with. It never starts new work."""
    submitter = call.context.submitter
    if asked.completion_id is not None:
        completion_id = asked.completion_id
    elif asked.idempotency_key is not None:
        completion_id = await submitter.by_idempotency_key(asked.caller, asked.idempotency_key)
    else:
        completion_id = await submitter.by_fingerprint(request, asked.caller, asked.sample)
    assert asked.after is not None
    return await call.context.followers.open(await owned(call, asked.caller, completion_id), asked.after)


def new_completion(asked: Asked, request: ChatCompletionRequest, submission: Submission) -> Completion:
    """A completion as it is at its acceptance."""
    return Completion(
        id=submission.id,
        generation=submission.id,
        tenant=asked.caller.tenant,
        key_id=asked.caller.key_id,
        end_user=asked.caller.end_user,
        model=request.model,
        provider=submission.resolved.provider,
        resolved_model=submission.resolved.model,
        queue=Queue.INTERACTIVE.value,
        store=request.store is not False,
        metadata=request.metadata,
        cache=submission.cache,
        state=State.QUEUED,
        failure=None,
        attempt=0,
        base=0,
        next=0,
        created_ms=submission.created_ms,
        ended_ms=None,
    )


def completion_headers(completion: Completion) -> Headers:
    return {"x-completion-id": completion.id, "x-cache": completion.cache}


def follow_headers(follow: Follow) -> Headers:
    headers = completion_headers(follow.completion)
    if follow.age is not None:
        headers["age"] = str(follow.age)
    return headers
