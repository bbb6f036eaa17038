"""A load generator: a process that does jobs. ``Load`` is the parent's end; ``python -m benchmarks.load`` the other."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import msgspec
import uvloop

from benchmarks.backend import STAMP, stamps
from benchmarks.jobs import Done, FirstChunks, Flood, Flooded, Job, Paced, Resume, Target, Times
from benchmarks.rawclient import Answer, Connection, request

#: How long a flood's last streams may take to end, in seconds.
DRAIN = 5.0
#: Completions that a flood names for a look at their logs.
NAMED = 40

_job_decoder: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
_done_decoder: msgspec.json.Decoder[Done] = msgspec.json.Decoder(Done)


class Load:
    """The parent's end of a load generator."""

    def __init__(self, module: str = "benchmarks.load") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._read()

    def start(self, job: Job) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()

    def result(self) -> Done:
        return _done_decoder.decode(self._read())

    def run(self, job: Job) -> Done:
        self.start(job)
        return self.result()

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a load generator ended; what it said is above")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def serve(do: Callable[[Job], Awaitable[Done]]) -> None:
    """The generator's main: a line says that it is ready, then each job has its line."""
    gc.collect()
    gc.freeze()
    gc.disable()
    print(flush=True)
    for line in sys.stdin.buffer:
        done = uvloop.run(_awaited(do, _job_decoder.decode(line)))
        sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
        sys.stdout.buffer.flush()
        gc.collect()


async def _awaited(do: Callable[[Job], Awaitable[Done]], job: Job) -> Done:
    return await do(job)


def post(target: Target, order: Mapping[str, Any]) -> bytes:
    """A request for a stream, as bytes."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": "go"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "fake": order,
    }
    return request(target.url, target.headers, json.dumps(body).encode())


async def sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.monotonic()))


async def flood(job: Flood) -> Flooded:
    asking = post(job.target, job.order)
    connections = [await Connection.open(job.target.url) for _ in range(job.streams)]
    answers: list[Answer] = []
    complaints: list[str] = []
    frames: list[int] = []
    durations: list[float] = []
    completions: list[str] = []

    async def one(connection: Connection) -> None:
        while time.monotonic() < job.end:
            try:
                answer = await connection.ask(asking)
            except ConnectionError as error:
                complaints.append(str(error))
                return
            answers.append(answer)
            if answer.whole:
                frames.append(answer.frames)
                durations.append((answer.times[-1] - answer.sent) / 1e9)
                completion = answer.completion
                if completion is not None and len(completions) < NAMED and answer.sent > job.begin * 1e9:
                    completions.append(completion)
            else:
                complaints.append(answer.raw[:500].decode("utf-8", "replace"))
                await asyncio.sleep(0.01)
            answer.pieces.clear()

    tasks = [asyncio.create_task(one(connection)) for connection in connections]
    await sleep_until(job.begin)
    before, begun = sum(c.counted for c in connections), time.monotonic()
    await sleep_until(job.end)
    after, ended = sum(c.counted for c in connections), time.monotonic()
    await asyncio.wait(tasks, timeout=DRAIN)
    for connection in connections:
        connection.close()
    return summary(after - before, ended - begun, frames, complaints, durations, completions)


def summary(
    chunks: int,
    seconds: float,
    frames: list[int],
    complaints: list[str],
    durations: list[float],
    completions: list[str] | None = None,
) -> Flooded:
    if not chunks or not frames:
        complaints = [*complaints, f"no {'stream ended' if chunks else 'chunk came'} while it was measured"]
    usual = max(set(frames), key=frames.count, default=0)
    odd = [f"a stream of {n} chunks, not {usual}" for n in frames if n != usual]
    complaints = complaints + odd
    return Flooded(
        chunks=chunks,
        seconds=seconds,
        per_stream=usual,
        streams=len(frames),
        broken=len(complaints),
        durations=durations,
        completions=completions or [],
        complaint=complaints[0] if complaints else "",
    )


async def first_chunks(job: FirstChunks) -> Times:
    requests = {target.name: post(target, job.order) for target in job.targets}
    connections = {target.name: await Connection.open(target.url) for target in job.targets}
    times: dict[str, list[float]] = {name: [] for name in requests}
    for _ in range(job.count):
        for name, asking in requests.items():
            connection = connections[name]
            answer = await connection.ask(asking)
            if not answer.whole:
                raise RuntimeError(f"{name} answered {answer.raw[:500]!r}")
            times[name].append((answer.first - answer.sent) / 1e6)
    return Times(times)


async def paced(job: Paced) -> Times:
    order = {"pieces": [STAMP] * job.chunks, "interval_ms": job.interval_ms}
    asking = post(job.target, order)
    delays: list[float] = []

    async def one(connection: Connection, after: float) -> None:
        await asyncio.sleep(after)
        for _ in range(job.repeats):
            answer = await connection.ask(asking)
            if not answer.whole:
                raise RuntimeError(f"{job.target.name} answered {answer.raw[:500]!r}")
            for at, piece in zip(answer.times, answer.pieces, strict=True):
                delays.extend((at - stamp) / 1e6 for stamp in stamps(piece))

    connections = [await Connection.open(job.target.url) for _ in range(job.streams)]
    spread = job.interval_ms / 1000 / job.streams  # streams of people don't tick in step
    await asyncio.gather(*(one(c, i * spread * 7) for i, c in enumerate(connections)))
    for connection in connections:
        connection.close()
    return Times({job.target.name: delays})


async def resume(job: Resume) -> Times:
    times: dict[str, list[float]] = {str(index): [] for index in job.indexes}
    for _ in range(job.count):
        for index in job.indexes:
            connection = await Connection.open(job.url)
            answer = await connection.ask_first(request(f"{job.url}{index}", job.headers))
            connection.close()
            if b"id: %d\n" % (index + 1) not in answer.raw:
                raise RuntimeError(f"after={index} was answered {answer.raw[:500]!r}")
            times[str(index)].append((answer.first - answer.sent) / 1e6)
            await asyncio.sleep(0.005)  # the server hears that the client has left
    return Times(times)


async def do(job: Job) -> Done:
    match job:
        case Flood():
            return await flood(job)
        case FirstChunks():
            return await first_chunks(job)
        case Paced():
            return await paced(job)
        case Resume():
            return await resume(job)


if __name__ == "__main__":
    serve(do)
