"""The script that people write without Tailrace: asyncio and the ``openai`` SDK, straight to the backend, with no
durability. A load generator like ``benchmarks/load.py``, for floods alone: ``python -m benchmarks.sdk``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai

from benchmarks.jobs import Done, Flood, Job
from benchmarks.load import DRAIN, serve, sleep_until, summary


async def do(job: Job) -> Done:
    assert isinstance(job, Flood)
    base_url = job.target.url.removesuffix("/chat/completions")
    chunks = 0
    frames: list[int] = []
    durations: list[float] = []
    complaints: list[str] = []

    async def one(client: openai.AsyncOpenAI) -> None:
        nonlocal chunks
        extra: dict[str, Any] = {"fake": job.order}
        while time.monotonic() < job.end:
            sent = time.monotonic()
            got = 0
            try:
                stream = await client.chat.completions.create(
                    model=job.target.model,
                    messages=[{"role": "user", "content": "go"}],
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body=extra,
                )
                async for _ in stream:
                    got += 1
                    chunks += 1
            except openai.OpenAIError as error:
                complaints.append(str(error))
                await asyncio.sleep(0.01)
                continue
            frames.append(got)
            durations.append(time.monotonic() - sent)

    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        tasks = [asyncio.create_task(one(client)) for _ in range(job.streams)]
        await sleep_until(job.begin)
        before, begun = chunks, time.monotonic()
        await sleep_until(job.end)
        after, ended = chunks, time.monotonic()
        await asyncio.wait(tasks, timeout=DRAIN)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return summary(after - before, ended - begun, frames, complaints, durations)


if __name__ == "__main__":
    serve(do)
